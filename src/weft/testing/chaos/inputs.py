"""R14, R16: what people and disks hand in: shards that are not what they were, recipes that are
wrong. Refused with a reason, or right; never a traceback, never trained on garbage.
"""

import random
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.config.load import build, dump
from weft.config.run import RunConfig
from weft.data.document import Document, Sieve
from weft.data.prepared import shard as room
from weft.data.prepared.manifest import Shard
from weft.data.prepared.shard import ShardTokens, read_index, write_shard
from weft.data.tokenizer import Bytes
from weft.errors import DataError, WeftError
from weft.testing.chaos.hostile import pickle_for
from weft.testing.chaos.recipe import LAYOUTS, tiny
from weft.testing.chaos.result import Result, Size

Harm = Callable[[Path, random.Random], None]


# ---- R14 ----


def check_shards(size: Size) -> Result:
    """So many shards, each harmed in one place; none gives another token than it had."""
    trials, faults, refused = size.trials(100, 5000), [], 0
    folder = size.folder / "shards"
    folder.mkdir(parents=True)
    shard, expected = _written(folder)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    canary = size.folder / "shard-canary"
    for number in trials:
        draw = random.Random(size.seed + number)
        path = draw.choice(sorted(whole))
        path.write_bytes(_harmed(whole[path], draw, pickle_for(canary)))
        found = _read(folder, shard)
        refused += found is None
        if found is not None and found != expected:
            faults.append(f"seed {size.seed + number}: {path.name} gave other tokens")
        path.write_bytes(whole[path])
    if canary.exists():
        faults.append("a shard ran code")
    return Result(
        promise="R14 no damaged shard is trained on",
        counts={"shards": len(trials), "refused": refused},
        faults=faults,
        control=_control_shards(folder, shard, expected, whole, size.seed),
    )


def _written(folder: Path) -> tuple[Shard, list[int]]:
    texts = [f"warp {n} and weft {n * n}".encode() for n in range(40)]
    documents = [Document(name=str(n), content=text) for n, text in enumerate(texts)]
    shard = write_shard(folder, "s", documents, tokenizer=Bytes(), sieve=Sieve("stop"))
    expected = _read(folder, shard)
    assert expected is not None
    return shard, expected


def _harmed(content: bytes, draw: random.Random, pickle: bytes) -> bytes:
    at = draw.randrange(len(content))
    match draw.randrange(6):
        case 0:
            return content[:at]
        case 1:
            return content + draw.randbytes(3)
        case 2:
            return draw.randbytes(8) + content[8:]
        case 3:
            return b""
        case 4:
            return pickle
        case _:
            harmed = bytearray(content)
            harmed[at] ^= 1 << draw.randrange(8)
            return bytes(harmed)


def _read(folder: Path, shard: Shard) -> list[int] | None:
    """The tokens of a shard, or None where it is refused; anything else is an error of ours."""
    try:
        index = read_index(folder, shard, token_bytes=2)
        tokens = ShardTokens(folder, shard, index, token_bytes=2)
        found = tokens[:].tolist()
        tokens.close()
    except DataError:
        return None
    return found


def _control_shards(
    folder: Path, shard: Shard, expected: list[int], whole: dict[Path, bytes], seed: int
) -> str:
    """Without checksums a flip is read as a token."""
    honest = room.ShardTokens._check
    room.ShardTokens._check = lambda *_: None  # type: ignore[method-assign]
    path = folder / "s.bin"
    wrong = 0
    try:
        for number in range(20):
            harmed = bytearray(whole[path])
            harmed[random.Random(seed + number).randrange(len(harmed))] ^= 1
            path.write_bytes(harmed)
            wrong += _read(folder, shard) not in (None, expected)
    finally:
        room.ShardTokens._check = honest  # type: ignore[method-assign]
        path.write_bytes(whole[path])
    return f"without checksums {wrong} of 20 flips became tokens" if wrong else ""


# ---- R16 ----

STRANGE: tuple[Any, ...] = (
    *(0, 1, 2, 3, 5, 7, 8, 12, 64, 2**31 - 1, 2**31, 2**63, 10**40, -1, -(2**70)),
    *(0.0, -0.0, 0.5, 1.0, 3.0, 1e300, 1e-320, float("inf"), float("nan"), True, False),
    *("", "x", "3", "true", "float32", "cuda", "\ud800", "\0", "a" * 10_000, "../up"),
    *("__import__('os').system('true')", "cos\nsystem\n(S'true'\ntR.", "!!python/object:os.system"),
    *([], [1], {}, {"a": 1}, {"preset": "tiny-mixtral"}, None),
)


def check_recipes(size: Size) -> Result:
    """So many recipes, each spoiled in one to three places: legal, or refused with a reason."""
    trials, faults = size.trials(300, 20_000), []
    kinds: Counter[str] = Counter()
    whole = tomllib.loads(dump(tiny(size.folder, "fuzz", *LAYOUTS["sp2 ep2"])))
    for number in trials:
        draw = random.Random(size.seed + number)
        recipe = {key: dict(v) if isinstance(v, dict) else v for key, v in whole.items()}
        for _ in range(draw.randrange(1, 4)):
            _spoil(draw, recipe)
        fault = _judge(recipe, kinds)
        if fault:
            faults.append(f"seed {size.seed + number}: {fault}")
    if not kinds["legal"] or not kinds["refused"]:
        faults.append(f"recipes were all of one kind: {dict(kinds)}")
    return Result(
        promise="R16 a recipe is legal or refused",
        counts={"recipes": len(trials), **kinds},
        faults=faults,
        control="an error that weft does not raise was found" if _judge(None, Counter()) else "",
    )


def _judge(recipe: Any, kinds: Counter[str]) -> str:
    """What is wrong with how a recipe was judged; nothing for the two things that may happen."""
    try:
        config = build(recipe)
        kinds["legal"] += 1
        if _round_trip(config) != config:
            return "it is another recipe once written and read"
    except WeftError as error:
        kinds["refused"] += 1
        if "Traceback" in str(error) or not str(error) or len(str(error)) > 8000:
            return f"refused as {error!s:.200}"
    except Exception as error:  # noqa: BLE001 - what must not happen is what is looked for
        return f"{type(error).__name__}: {error!s:.200}"
    return ""


def _round_trip(config: RunConfig) -> RunConfig:
    return build(tomllib.loads(dump(config)))


def _spoil(draw: random.Random, recipe: dict[str, Any]) -> None:
    """One wrong value, typo, lost key or impossible layout."""
    tables = [recipe, *(value for value in recipe.values() if isinstance(value, dict) and value)]
    table = draw.choice(tables)
    key = draw.choice(sorted(table))
    match draw.randrange(5):
        case 0:
            table[key] = draw.choice(STRANGE)
        case 1:
            at = draw.randrange(len(key) + 1)
            table[key[:at] + draw.choice("aeiou_.\u00e9") + key[at:]] = table.pop(key)
        case 2:
            del table[key]
        case 3:
            axes = {axis: draw.randrange(1, 17) for axis in ("dp", "sp", "ep")}
            recipe["parallel"] = {**axes, "dispatch": draw.choice(["all_to_all", "all_gather"])}
        case _:
            model = recipe.get("model")
            if isinstance(model, dict):
                names = ("heads", "kv_heads", "experts", "top_k", "head_dim", "dense_layers")
                model[draw.choice(names)] = draw.randrange(20)
