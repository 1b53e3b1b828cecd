"""R15: a pickle that would run a command, in place of every file that weft loads; none of it runs.

Each file is refused with a reason, or it is text like any other; nothing else may come of it.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch

from weft.checkpoint.format import sign
from weft.checkpoint.hf.read import INDEX, SINGLE, open_pretrained
from weft.checkpoint.hf.write import export
from weft.checkpoint.verify import verify
from weft.config.data import DataConfig
from weft.config.load import load
from weft.config.presets import tiny_mixtral
from weft.data.document import Fields
from weft.data.opening import open_data
from weft.data.prepared.prepare import Request, prepare
from weft.data.tokenizer import BYTES, open_tokenizer
from weft.errors import WeftError
from weft.telemetry import events, metrics
from weft.testing.chaos.damage import write
from weft.testing.chaos.result import Result, Size

Place = tuple[Path, Callable[[], object]]  # a file, and what loads it
Plant = Callable[[Path], Iterator[Place]]  # fills a folder with honest files
OUTSIDE = ("../escape", "/etc/passwd", "rank-00000.safetensors/../../x")


def pickle_for(canary: Path) -> bytes:
    """A pickle (protocol 0, written by hand) that makes a file where it is loaded."""
    return b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."


def check(size: Size) -> Result:
    """A pickle in every place, and manifests that name files elsewhere."""
    canary = size.folder / "canary"
    content = pickle_for(canary)
    faults: list[str] = []
    count = 0
    for kind, plant in PLANTS.items():
        for number in range(len(list(plant(size.folder / kind)))):
            path, read = list(plant(size.folder / f"{kind}-{number}"))[number]
            path.write_bytes(content)
            count += 1
            faults += _judge(f"{kind} {path.name}", read)
    faults += _escapes(size.folder / "paths")
    if canary.exists():
        faults.append("a pickle ran")
    return Result(
        promise="R15 no loaded file runs code",
        counts={"files": count, "paths": len(OUTSIDE)},
        faults=faults,
        control=_control(size.folder / "bait", content, canary),
    )


def _judge(where: str, read: Callable[[], object]) -> list[str]:
    """What is wrong with how a file was taken; nothing where it was refused, or is text."""
    try:
        read()
    except WeftError:
        return []
    except Exception as error:  # noqa: BLE001 - what must not happen is what is looked for
        return [f"{where}: {type(error).__name__}: {error!s:.200}"]
    return [] if where in TEXT else [f"{where}: a pickle was taken for it"]


def _escapes(run_dir: Path) -> list[str]:
    faults = []
    for text in OUTSIDE:
        folder = write(run_dir, 100)
        path = folder / "manifest.json"
        told = json.loads(path.read_bytes())
        told.pop("digest")
        told["files"][0]["file"] = told["entries"][0]["file"] = text
        path.write_bytes(sign(told))
        try:
            verify(folder)
        except WeftError:
            pass
        else:
            faults.append(f"a manifest may name {text}")
        shutil.rmtree(folder)
    return faults


def _control(bait: Path, content: bytes, canary: Path) -> str:
    """The same bytes, where pickles are loaded."""
    bait.write_bytes(content)
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", code, str(bait)], check=False)
    return "the same pickle runs where pickles are loaded" if canary.exists() else ""


# ---- what weft loads ----


def _checkpoint(folder: Path) -> Iterator[Place]:
    made = write(folder, 1)
    for path in sorted(made.iterdir()):
        yield path, partial(verify, made)


def _pretrained(folder: Path) -> Iterator[Place]:
    for name in ("config.json", SINGLE, INDEX, "pytorch_model.bin"):
        made = folder / f"of {name}"
        folder.mkdir(parents=True, exist_ok=True)
        if not made.exists():
            export(made, tiny_mixtral(), lambda part: torch.zeros(part.shape))
        if name != "config.json":
            (made / SINGLE).unlink(missing_ok=True)
        yield made / name, partial(open_pretrained, made, report=_quiet)


def _words(folder: Path) -> Iterator[Place]:
    folder.mkdir(parents=True, exist_ok=True)
    yield folder / "recipe.toml", partial(load, folder / "recipe.toml")
    yield folder / "tokenizer.json", partial(open_tokenizer, str(folder / "tokenizer.json"))


def _corpora(folder: Path) -> Iterator[Place]:
    for source, name in (
        ("text", "a.txt"),
        ("jsonl", "a.jsonl"),
        ("parquet", "a.parquet"),
        ("megatron", "a.bin"),
        ("megatron", "a.idx"),
    ):
        place = folder / f"{source}-{name}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "a.bin").write_bytes(bytes(64))
        path = place / ("a" if source == "megatron" else name)
        yield place / name, partial(_open, source, path)


def _prepared(folder: Path) -> Iterator[Place]:
    texts, out = folder / "texts", folder / "out"
    texts.mkdir(parents=True, exist_ok=True)
    (texts / "a.txt").write_text("over and under " * 40, encoding="utf-8")
    request = Request(
        source="text", path=str(texts), fields=Fields(), tokenizer=BYTES, on_bad="stop"
    )
    prepare(request, out, workers=1, report=_quiet)
    for path in sorted(path for path in out.iterdir() if path.suffix in (".json", ".bin", ".idx")):
        yield path, partial(_open, "prepared", out)


def _run(folder: Path) -> Iterator[Place]:
    folder.mkdir(parents=True, exist_ok=True)
    yield folder / metrics.FILE, partial(metrics.read, folder / metrics.FILE)
    yield folder / events.FILE, partial(events.read, folder)


def _open(source: str, path: Path) -> object:
    data = DataConfig.model_validate({"source": source, "path": str(path), "validation_bytes": 8})
    opened = open_data(data, open_tokenizer(BYTES), seed=0)
    return opened.training


def _quiet(_text: str) -> None:
    """Reports nothing."""


PLANTS: Mapping[str, Plant] = {
    "checkpoint": _checkpoint,
    "pretrained": _pretrained,
    "words": _words,
    "corpora": _corpora,
    "prepared": _prepared,
    "run": _run,
}
# A pickle is a text as good as any in a corpus, and in a log no line.
TEXT = ("corpora a.txt", "run metrics.jsonl", "run events.jsonl")
