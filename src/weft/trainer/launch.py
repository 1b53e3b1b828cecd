"""From one command to all ranks: everything that can be refused is refused before the first process starts.

One rank runs in this process. More are children of it, each with a log of its own in `run_dir/logs`; the first rank
keeps the terminal. If one fails the others are ended within seconds and its own words are shown first.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from weft.config.load import dump
from weft.config.run import RunConfig
from weft.errors import ConfigError, RankError
from weft.runtime.backends import pick_device
from weft.trainer.feed import open_feed
from weft.trainer.rank import Summary, run_rank
from weft.trainer.recover import resumable
from weft.trainer.session import Place

GRACE_SECONDS = 3.0  # for victims of a failed rank to write down their own errors
POLL_SECONDS = 0.1
TAIL_LINES = 30


def train(config: RunConfig, *, nproc: int | None = None, resume: str = "auto") -> None:
    """Trains a recipe on this machine.

    Raises:
        ConfigError: the number of processes does not fit the layout, or a device is missing.
        DataError: the corpus cannot be used.
        CheckpointError: there is nothing good to resume from.
        RankError: a rank ended badly.
    """
    world = check_processes(config, nproc)
    devices = [pick_device(config.train.device, rank) for rank in range(world)]
    open_feed(config)
    checkpoint = resumable(config, resume, print)
    if world == 1:
        run_rank(config, Place(rank=0, world=1, device=devices[0], meeting=None), checkpoint)
        return
    with tempfile.TemporaryDirectory(prefix="weft-") as scratch:
        _run_children(config, world, checkpoint, Path(scratch))


def check_processes(config: RunConfig, nproc: int | None) -> int:
    """The number of ranks of a layout, if that is how many processes are asked for."""
    world = config.parallel.ranks
    if nproc is not None and nproc != world:
        raise ConfigError(
            f"--nproc {nproc}: the layout has parallel.dp * parallel.sp = {config.parallel.dp} * "
            f"{config.parallel.sp} = {world} ranks; try --nproc {world}, or "
            f"--set parallel.dp={max(nproc // config.parallel.sp, 1)}"
        )
    return world


def join(config: RunConfig, environment: Mapping[str, str], resume: str) -> Summary | None:
    """Runs the one rank that torchrun describes in its environment.

    Raises:
        ConfigError: its world is not the layout's.
    """
    world = check_processes(config, int(environment["WORLD_SIZE"]))
    rank, local = int(environment["RANK"]), int(environment.get("LOCAL_RANK", "0"))
    device = pick_device(config.train.device, local)
    checkpoint = resumable(config, resume, print)
    return run_rank(
        config, Place(rank=rank, world=world, device=device, meeting="env://"), checkpoint
    )


def _run_children(
    config: RunConfig, world: int, checkpoint: Path | None, scratch: Path
) -> None:
    recipe = scratch / "recipe.toml"
    recipe.write_text(dump(config), encoding="utf-8")
    logs = Path(config.train.run_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "weft.trainer.child", str(recipe), str(scratch / "meeting")]
    children = [
        _start([*command, str(rank), str(world), str(checkpoint or "")], rank, logs)
        for rank in range(world)
    ]
    with _ending(children):
        _watch(children, logs)


def _start(command: Sequence[str], rank: int, logs: Path) -> subprocess.Popen[bytes]:
    with (logs / f"rank-{rank}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=None if rank == 0 else log, stderr=log)


class _ending:
    """Whatever happens, no child outlives its parent; a SIGTERM to the parent is one to all."""

    def __init__(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        self.children = children

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    def __exit__(self, *_error: object) -> None:
        signal.signal(signal.SIGTERM, self.before)
        for child in self.children:
            if child.poll() is None:
                child.kill()
        for child in self.children:
            child.wait()


def _watch(children: Sequence[subprocess.Popen[bytes]], logs: Path) -> None:
    while True:
        codes = [child.poll() for child in children]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            _let_end(children)
            raise _first_failure(children, failed, logs)
        if all(code == 0 for code in codes):
            return
        time.sleep(POLL_SECONDS)


def _let_end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(child.poll() is None for child in children):
        time.sleep(POLL_SECONDS)


def _first_failure(
    children: Sequence[subprocess.Popen[bytes]], first: int, logs: Path
) -> RankError:
    """The rank that a signal killed, if there is one: the others are its victims; else the first that was seen."""
    killed = [rank for rank, child in enumerate(children) if (child.returncode or 0) < 0]
    rank = killed[0] if killed else first
    log = logs / f"rank-{rank}.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    code = children[rank].returncode
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    tail = "\n".join(lines[-TAIL_LINES:])
    return RankError(f"rank {rank} ended with {how}; the end of {log}:\n{tail}")
