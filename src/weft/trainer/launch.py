"""From one command to all ranks: what can be refused is refused before the first process starts.

One rank runs in this process. More are children of it, each with a log of its own in
`run_dir/logs`; the first rank keeps the terminal. If one fails the others are ended within seconds
and its own words are shown first.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from weft.config.load import dump
from weft.config.run import RunConfig
from weft.errors import ConfigError, RankError
from weft.runtime.backends import pick_device
from weft.telemetry import events
from weft.telemetry.trackers import check_tracker
from weft.trainer.feed import open_feed
from weft.trainer.rank import Summary, run_rank
from weft.trainer.recover import check_start, resumable
from weft.trainer.session import Place

GRACE_SECONDS = 3.0  # for victims of a failed rank to write down their own errors
POLL_SECONDS = 0.1  # how late a failure may be noticed; a look costs microseconds
TAIL_LINES = 30  # a traceback through the executor, whole, on one screen


class Process(Protocol):
    """A rank as its supervisor sees it; `subprocess.Popen` is one."""

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        ...

    def kill(self) -> None:
        """Ends it at once."""
        ...

    def wait(self) -> int:
        """The exit code, once there is one."""
        ...


Start = Callable[[Sequence[str], int, Path], Process]  # arguments of `child`, rank, its log


def start_process(arguments: Sequence[str], rank: int, log: Path) -> Process:
    """Starts a rank as a process of its own; the first one keeps the terminal."""
    command = [sys.executable, "-m", "weft.trainer.child", *arguments]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=None if rank == 0 else file, stderr=file)


def train(
    config: RunConfig,
    *,
    nproc: int | None = None,
    resume: str = "auto",
    start: Start = start_process,
) -> None:
    """Trains a recipe on this machine; `start` starts its ranks where there are several.

    Raises:
        ConfigError: the number of processes does not fit the layout, a device or the tracker is
            missing, or the folder of the run cannot be made.
        DataError: the corpus cannot be used.
        CheckpointError: there is nothing good to resume from, or it is of another run.
        RankError: a rank ended badly.
    """
    check_tracker(config.train.tracker)
    world = check_processes(config, nproc)
    devices = [pick_device(config.train.device, rank) for rank in range(world)]
    checkpoint = resumable(config, resume, open_feed(config).digest, print)
    if checkpoint is None:
        check_start(config)
    _make_run_dir(config)
    if world == 1:
        run_rank(config, Place(rank=0, world=1, device=devices[0], meeting=None), checkpoint)
        return
    with tempfile.TemporaryDirectory(prefix="weft-") as scratch:
        _run_children(config, world, checkpoint, Path(scratch), start)


def check_processes(config: RunConfig, nproc: int | None) -> int:
    """The number of ranks of a layout, if that is how many processes are asked for."""
    world = config.parallel.ranks
    if nproc is not None and nproc != world:
        raise ConfigError(
            f"--nproc {nproc}: the layout has parallel.dp * parallel.sp = {config.parallel.dp} * "
            f"{config.parallel.sp} = {world} rank(s); {_remedy(config, nproc)}"
        )
    return world


def _remedy(config: RunConfig, nproc: int) -> str:
    dp, remainder = divmod(nproc, config.parallel.sp)
    start_as_many = f"try --nproc {config.parallel.ranks}"
    return start_as_many if remainder or not dp else f"{start_as_many}, or --set parallel.dp={dp}"


def _make_run_dir(config: RunConfig) -> None:
    try:
        Path(config.train.run_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"train.run_dir = {config.train.run_dir!r}: cannot be made ({error.strerror}); "
            "expected a folder that may be written; try another train.run_dir"
        ) from None


def join(config: RunConfig, environment: Mapping[str, str], resume: str) -> Summary | None:
    """Runs the one rank that torchrun describes in its environment.

    Raises:
        ConfigError: its world is not the layout's, or the tracker is missing.
    """
    check_tracker(config.train.tracker)
    world = check_processes(config, int(environment["WORLD_SIZE"]))
    rank, local = int(environment["RANK"]), int(environment.get("LOCAL_RANK", "0"))
    neighbours = int(environment.get("LOCAL_WORLD_SIZE", str(world)))
    device = pick_device(config.train.device, local)
    checkpoint = resumable(config, resume, open_feed(config).digest, print)
    return run_rank(
        config,
        Place(rank=rank, world=world, device=device, meeting="env://", neighbours=neighbours),
        checkpoint,
    )


def _run_children(
    config: RunConfig, world: int, checkpoint: Path | None, scratch: Path, start: Start
) -> None:
    recipe = scratch / "recipe.toml"
    recipe.write_text(dump(config), encoding="utf-8")
    logs = Path(config.train.run_dir) / "logs"
    logs.mkdir(exist_ok=True)
    meeting, parent = str(scratch / "meeting"), str(os.getpid())
    children: list[Process] = []
    with _Ending(children):
        for rank in range(world):
            place = [str(recipe), meeting, str(rank), str(world), str(checkpoint or ""), parent]
            children.append(start(place, rank, _log(logs, rank)))
        _watch(children, logs)


def _log(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank}.log"


class _Ending:
    """Whatever happens, no child outlives its parent; a SIGTERM to the parent is one to all."""

    def __init__(self, children: Sequence[Process]) -> None:
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


def _watch(children: Sequence[Process], logs: Path) -> None:
    while True:
        codes = [child.poll() for child in children]
        if any(codes):
            _let_end(children)
            error = _first_failure(children, logs)
            events.append(logs.parent, "failure", error=str(error).partition(";")[0])
            raise error
        if all(code == 0 for code in codes):
            return
        time.sleep(POLL_SECONDS)


def _let_end(children: Sequence[Process]) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(child.poll() is None for child in children):
        time.sleep(POLL_SECONDS)


def _first_failure(children: Sequence[Process], logs: Path) -> RankError:
    """The error of the rank that failed first.

    One that a signal ended, if there is one: the others are its victims. Else the one whose log
    was the first to end: a rank writes down its error before the others can miss it.
    """
    codes = {rank: child.returncode or 0 for rank, child in enumerate(children)}
    failed = [rank for rank, code in codes.items() if code]
    killed = [rank for rank in failed if codes[rank] < 0]
    rank = killed[0] if killed else min(failed, key=lambda r: _log(logs, r).stat().st_mtime_ns)
    how = f"signal {-codes[rank]}" if codes[rank] < 0 else f"exit code {codes[rank]}"
    log = _log(logs, rank)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    words = "\n".join(lines[-TAIL_LINES:]) or "(it wrote nothing)"
    return RankError(f"rank {rank} of {len(children)} ended with {how}; the end of {log}:\n{words}")
