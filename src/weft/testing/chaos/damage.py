"""R2, R3, R4: at any moment of a save, and after any damage, a checkpoint is whole or refused.

R2  every prefix of what a save does to the disk, with and without what was not synced
R3  flips, cuts, files missing, swapped and doubled, manifests edited and signed again
R4  the newest k of n are bad: the next one is taken, and said why
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from weft.checkpoint import durable, load, shard, verify
from weft.checkpoint.format import Kind, sign
from weft.checkpoint.load import Checkpoint, find_latest
from weft.checkpoint.save import Piece, Progress, save_shards
from weft.errors import CheckpointError
from weft.testing.chaos.result import Result, Size

RANKS = 3
STEPS = (1, 2, 3)
Harm = Callable[[Path, random.Random], None]


def make_pieces(step: int) -> dict[str, Tensor]:
    """A few experts and a matrix, of values that say which step they are of."""
    draw = torch.Generator().manual_seed(step)
    names = ["embed", *(f"layers.0.experts.{e}.gate" for e in range(4))]
    return {name: torch.randn(24, generator=draw) for name in names}


def write(run_dir: Path, step: int) -> Path:
    """A checkpoint of three shard files."""

    def part(rank: int) -> Callable[[], list[Piece]]:
        return lambda: [
            Piece(
                kind=kind,
                name=name,
                shape=(4, 6),
                start=8 * rank,
                stop=8 * rank + 8,
                tensor=tensor[8 * rank : 8 * rank + 8],
            )
            for name, tensor in make_pieces(step).items()
            for kind in ("master", "mean", "square")
        ]

    progress = Progress(step=step, config={"optim": {"lr": 0.5}}, data={"next_step": step})
    return save_shards(run_dir, [part(rank) for rank in range(RANKS)], progress=progress)


def is_of(folder: Path, step: int) -> bool:
    """Whether a checkpoint holds what was written of a step, after all its checks."""
    kinds: tuple[Kind, ...] = ("master", "mean", "square")
    with Checkpoint.open(folder) as checkpoint:
        return all(
            torch.equal(checkpoint.read(kind, name), tensor)
            for name, tensor in make_pieces(step).items()
            for kind in kinds
        )


# ---- R2 ----


class CutError(BaseException):
    """Stands for the power cut."""


@contextmanager
def power_cut(after: int, synced: dict[Path, int]) -> Iterator[list[str]]:
    """Ends what runs inside at the `after`-th thing it does to the disk; `synced` learns how many
    bytes of a file would outlive the cut.
    """
    done: list[str] = []
    honest = (shard._write, durable.os.fsync, Path.rename, Path.mkdir, Path.unlink)

    def counted(name: str, act: Callable) -> Callable:
        def call(*given: object, **settings: object) -> object:
            if len(done) == after:
                raise CutError
            done.append(name)
            return act(*given, **settings)

        return call

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        honest[1](descriptor)
        if path.is_file():
            synced[path] = path.stat().st_size

    def rename(self: Path, target: Path) -> Path:
        for path in list(synced):
            if self in path.parents:
                synced[target / path.relative_to(self)] = synced.pop(path)
        return honest[2](self, target)

    shard._write = counted("write", honest[0])
    durable.os.fsync = counted("fsync", fsync)
    Path.rename, Path.mkdir = counted("rename", rename), counted("mkdir", honest[3])  # type: ignore[method-assign]
    Path.unlink = counted("unlink", honest[4])  # type: ignore[method-assign]
    try:
        yield done
    finally:
        shard._write, durable.os.fsync = honest[0], honest[1]
        Path.rename, Path.mkdir, Path.unlink = honest[2:]  # type: ignore[method-assign]


def lose_unsynced(run_dir: Path, synced: dict[Path, int]) -> None:
    """Takes from every file what was not on the disk yet."""
    for path in run_dir.rglob("*"):
        if path.is_file() and "step-00000003" in str(path):
            os.truncate(path, min(path.stat().st_size, synced.get(path, 0)))


def check_prefixes(size: Size) -> Result:
    """R2: a cut after everything that a save does to the disk, twice."""
    faults: list[str] = []
    whole = _tried(size.folder / "count", 10**9, {})
    for after in range(len(whole) + 1):
        for lost in (False, True):
            run_dir, synced = size.folder / f"cut-{after}-{lost}", {}
            _tried(run_dir, after, synced)
            if lost:
                lose_unsynced(run_dir, synced)
            faults += _absent_or_whole(run_dir, f"cut after {after} of {len(whole)}, {lost=}")
    return Result(
        promise="R2 a checkpoint is absent or whole",
        counts={"prefixes": 2 * (len(whole) + 1), "kinds of act": len(set(whole))},
        faults=faults,
        control=_control_prefixes(size),
    )


def _tried(run_dir: Path, after: int, synced: dict[Path, int]) -> list[str]:
    write(run_dir, 2)
    with power_cut(after, synced) as done, suppress(CutError):
        write(run_dir, 3)
    return done


def _absent_or_whole(run_dir: Path, where: str) -> list[str]:
    try:
        folder = find_latest(run_dir, report=lambda _: None)
    except CheckpointError as error:
        return [f"{where}: {error}"]
    bad = [p.name for p in run_dir.glob("step-????????") if not _is_good(p)]
    step = int(folder.name[-8:]) if folder else 0
    if bad or folder is None or step not in (2, 3) or not is_of(folder, step):
        return [f"{where}: {folder} with {bad}"]
    return []


def _is_good(folder: Path) -> bool:
    try:
        verify.verify(folder)
    except CheckpointError:
        return False
    return True


def _control_prefixes(size: Size) -> str:
    """Without a sync of the shards, a checkpoint that counts is not whole after a cut."""
    honest, run_dir, synced = shard.sync_file, size.folder / "control-cut", {}
    shard.sync_file = lambda _path: None
    try:
        _tried(run_dir, 10**9, synced)
    finally:
        shard.sync_file = honest
    lose_unsynced(run_dir, synced)
    return "a save that syncs no shard was found" if _absent_or_whole(run_dir, "") else ""


# ---- R3 ----


def flip(folder: Path, draw: random.Random) -> None:
    """One bit of one file."""
    path = draw.choice(sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(folder: Path, draw: random.Random) -> None:
    """A file that ends early, at any place."""
    path = draw.choice(sorted(folder.iterdir()))
    os.truncate(path, draw.randrange(path.stat().st_size))


def grow(folder: Path, draw: random.Random) -> None:
    """A file with more behind its end."""
    path = draw.choice(sorted(folder.iterdir()))
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 9)))


def lose(folder: Path, draw: random.Random) -> None:
    """A file that is gone."""
    draw.choice(sorted(folder.iterdir())).unlink()


def exchange(folder: Path, draw: random.Random) -> None:
    """Two ranks' shards under each other's names."""
    one, other = draw.sample(sorted(folder.glob("rank-*")), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def double(folder: Path, draw: random.Random) -> None:
    """One rank's shard twice, another's not at all."""
    one, other = draw.sample(sorted(folder.glob("rank-*")), 2)
    shutil.copy(one, other)


def mix(folder: Path, draw: random.Random) -> None:
    """A shard of another step."""
    other = folder.with_name("step-00000002")
    name = draw.choice(sorted(path.name for path in folder.glob("rank-*")))
    shutil.copy(other / name, folder / name)


def edit(folder: Path, draw: random.Random) -> None:
    """A manifest that says something else and carries the digest of that."""
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    content.pop("digest")
    entries = content["entries"]
    one, other = draw.sample(range(len(entries)), 2)
    match draw.randrange(5):
        case 0:
            del entries[one]
        case 1:
            entries.append(entries[one])
        case 2:
            entries[one]["crc32"] ^= 1
        case 3:
            entries[one]["name"] = f"{entries[other]['name']}x"
        case _:
            content["step"] += 1
    path.write_bytes(sign(content))


HARMS: tuple[Harm, ...] = (flip, flip, flip, cut, grow, lose, exchange, double, mix, edit)


def check_damage(size: Size) -> Result:
    """R3: so many harms; each is refused, and the good one before it is taken."""
    run_dir, trials = size.folder / "damage", size.trials(200, 5000)
    for step in STEPS:
        write(run_dir, step)
    newest, spare = run_dir / "step-00000003", size.folder / "spare"
    shutil.copytree(newest, spare)
    faults: list[str] = []
    harmless = 0  # a checksum in a manifest that is wrong while the bytes are right
    counts = dict.fromkeys((harm.__name__ for harm in HARMS), 0)
    for number in trials:
        harm = HARMS[number % len(HARMS)]
        harm(newest, random.Random(size.seed + number))
        counts[harm.__name__] += 1
        if _is_good(newest):
            harmless += 1
            if not _is_right(newest):
                faults.append(f"{harm.__name__} with seed {size.seed + number} was not found")
        elif find_latest(run_dir, report=lambda _: None) != run_dir / "step-00000002":
            faults.append(f"{harm.__name__} with seed {size.seed + number}: another was taken")
        _restore(spare, newest)
    return Result(
        promise="R3 no damage is silent",
        counts={"harms": len(trials), **counts, "harmless": harmless},
        faults=faults,
        control=_control_damage(newest, spare, size.seed),
    )


def _is_right(folder: Path) -> bool:
    """Whether what can be read is what was written; a piece that is refused gives nothing."""
    try:
        return is_of(folder, 3)
    except CheckpointError:
        return True


def _restore(spare: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(spare, folder)


def _control_damage(newest: Path, spare: Path, seed: int) -> str:
    """Without the digests, flips reach the weights."""
    honest = verify.check_digests, load.crc32_of
    verify.check_digests = lambda *_: None
    load.crc32_of = lambda _: 0  # type: ignore[assignment]
    silent = 0
    try:
        for number in range(30):
            flip(newest, random.Random(seed + number))
            silent += _is_good(newest)
            _restore(spare, newest)
    finally:
        verify.check_digests, load.crc32_of = honest
    return f"without digests {silent} of 30 flips were silent" if silent else ""


# ---- R4 ----


def check_fallback(size: Size) -> Result:
    """R4: the newest k of n bad, in any way; the next one is taken, each bad one is named."""
    trials, faults = size.trials(20, 200), []
    bad_ones = 0
    for number in trials:
        draw = random.Random(size.seed + number)
        run_dir = size.folder / f"fallback-{number}"
        folders = [write(run_dir, step) for step in (1, 2, 3, 4)]
        bad = draw.randrange(1, 5)
        for folder in folders[4 - bad :]:
            draw.choice([flip, cut, lose])(folder, draw)
        bad_ones += bad
        said: list[str] = []
        try:
            found = find_latest(run_dir, report=said.append)
        except CheckpointError:
            found = None
        expected = folders[3 - bad] if bad < 4 else None
        there = all(folder.exists() for folder in folders)
        if found != expected or len(said) != bad or not there:
            faults.append(f"seed {size.seed + number}: {found}, expected {expected}; said {said}")
    folders = [write(size.folder / "fallback-control", step) for step in (1, 2)]
    flip(folders[1], random.Random(size.seed))
    honest, load.verify = load.verify, verify.verify_structure
    try:
        taken = find_latest(folders[0].parent, report=lambda _: None)
    finally:
        load.verify = honest
    control = "without digests the bad one is taken" if taken == folders[1] else ""
    return Result(
        promise="R4 the newest good one is taken",
        counts={"runs": len(trials), "bad checkpoints": bad_ones},
        faults=faults,
        control=control or "a flip of the manifest is found without digests too",
    )
