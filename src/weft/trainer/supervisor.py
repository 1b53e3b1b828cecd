"""Who looks after the ranks of a run on this machine: starts them, watches, ends and restarts them.

    every 0.1 s     a rank ended badly        the others are ended, the first to fail is named
                    one gets no further       stacks are written, the culprit is named, all end
                    asked to stop             the ranks are told once; told again, they are ended

A run that failed is started again from its newest good checkpoint as often as `train.restarts`
says, but not a third time in a row from the same step: that is a loop.
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from weft.config.load import dump
from weft.config.run import RunConfig
from weft.errors import ConfigError, RankError, StoppedError
from weft.telemetry import events
from weft.trainer import hang, pulse
from weft.trainer.stop import ENDED, STOPPED, Stop, listening

REFUSED = 2  # cli.main: a recipe that is refused once is refused again
GRACE_SECONDS = 3.0  # for victims of a failed rank to write down their own errors
POLL_SECONDS = 0.1  # how late a failure may be noticed; a look costs microseconds
STACK_SECONDS = 0.5  # for a rank to write down its stack; a stopped one is woken for it
LOOP = 3  # failures in a row after the same step
TAIL_LINES = 30  # a traceback through the executor, whole, on one screen


class Process(Protocol):
    """A rank as its supervisor sees it; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int: ...

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

    def send_signal(self, sig: int) -> None:
        """Sends it a signal, unless it has ended."""
        ...


Start = Callable[[Sequence[str], int, Path], Process]  # arguments of `child`, rank, its log


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """The ranks of one start, and where they leave signs of themselves."""

    processes: list[Process]
    scratch: Path
    logs: Path
    begun_ns: int
    timeout_seconds: float

    def signs(self) -> Mapping[int, pulse.Sign | None]:
        """What each rank shows now."""
        return {r: pulse.read(self.scratch / f"pulse-{r}") for r in range(len(self.processes))}

    def log(self, rank: int) -> Path:
        """Where a rank writes its errors."""
        return self.logs / f"rank-{rank}.log"

    def stack(self, rank: int) -> Path:
        """Where a rank writes its stack when it is asked for it."""
        return self.scratch / f"stack-{rank}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Whatever happened, no rank outlives its supervisor."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait()


def supervise(
    config: RunConfig, checkpoint: Path | None, newest: Callable[[], Path | None], start: Start
) -> None:
    """Runs all ranks of a recipe to the end, from a checkpoint and after a failure from the newest.

    Raises:
        RankError: a rank ended badly or stood still, and no restart is left or would help.
        StoppedError: the run was asked to stop.
    """
    failed_after: list[int] = []
    run_dir = Path(config.train.run_dir)
    with listening(_nothing) as stop:
        while True:
            try:
                _run(config, checkpoint, start, stop)
            except _FailedError as failure:
                text = str(failure.error).partition(";")[0]
                events.append(run_dir, "failure", error=text, step=failure.step)
                failed_after.append(failure.step)
                error = _last_word(config, failure, failed_after)
                if error is not None:
                    raise error from None
                checkpoint = newest()
                _announce(config, failure, len(failed_after), checkpoint)
            else:
                return


class _FailedError(Exception):
    """What ended one start, and the step it was in."""

    def __init__(self, error: RankError, step: int, *, final: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.step = step
        self.final = final


def _nothing(_number: int) -> None:
    """The loop below looks at the count itself."""


def _last_word(
    config: RunConfig, failure: _FailedError, failed_after: Sequence[int]
) -> RankError | None:
    """The error a run ends with, or None where it is to be started again."""
    budget = config.train.restarts
    if failure.final or not budget:
        return failure.error
    if len(failed_after) >= LOOP and len(set(failed_after[-LOOP:])) == 1:
        return RankError(
            f"{failure.error}\nstep {failure.step} failed {LOOP} times in a row; expected a "
            "restart to get further; look at the error above, it is no accident"
        )
    if len(failed_after) > budget:
        return RankError(
            f"{failure.error}\nall restarts are used up (train.restarts = {budget}); start the run "
            "again to go on from its last checkpoint"
        )
    return None


def _announce(
    config: RunConfig, failure: _FailedError, number: int, checkpoint: Path | None
) -> None:
    print(failure.error, flush=True)
    origin = checkpoint.name if checkpoint else "the beginning"
    print(f"restart {number} of {config.train.restarts}, from {origin}", flush=True)
    events.append(Path(config.train.run_dir), "restart", number=number, origin=origin)


def _run(config: RunConfig, checkpoint: Path | None, start: Start, stop: Stop) -> None:
    """One start of all ranks, to its end."""
    logs = Path(config.train.run_dir) / "logs"
    logs.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="weft-") as scratch,
        Crew(
            processes=[],
            scratch=Path(scratch),
            logs=logs,
            begun_ns=time.monotonic_ns(),
            timeout_seconds=config.train.timeout_seconds,
        ) as crew,
    ):
        recipe = crew.scratch / "recipe.toml"
        recipe.write_text(dump(config), encoding="utf-8")
        world, parent = config.parallel.ranks, str(os.getpid())
        for rank in range(world):
            place = [str(recipe), scratch, str(rank), str(world), str(checkpoint or ""), parent]
            crew.processes.append(start(place, rank, crew.log(rank)))
        _watch(crew, stop)


def _watch(crew: Crew, stop: Stop) -> None:
    told = 0
    while True:
        codes = [process.poll() for process in crew.processes]
        if all(code == 0 for code in codes):
            return
        if all(code == STOPPED for code in codes):
            raise StoppedError(
                "asked to stop: the step was finished and saved; start the same command again "
                "to go on"
            )
        if stop.count > told:
            told = stop.count
            _pass_on(crew, told)
        if any(code not in (None, 0, STOPPED) for code in codes):
            _let_end(crew)
            _raise_first_failure(crew, stop)
        stuck = hang.find(crew.signs(), begun_ns=crew.begun_ns, timeout=crew.timeout_seconds)
        if stuck and None in codes:
            raise _FailedError(_hung(crew, stuck), _step(crew))
        time.sleep(POLL_SECONDS)


def _pass_on(crew: Crew, told: int) -> None:
    """Tells the ranks to stop; told twice, they are ended and so is the supervisor."""
    for process in crew.processes:
        if told == 1:
            process.send_signal(signal.SIGTERM)
        else:
            process.kill()
    if told > 1:
        raise StoppedError(
            "asked to stop twice: ended at once, without saving; start the same command again to "
            "go on from the last checkpoint",
            code=ENDED,
        )


def _hung(crew: Crew, stuck: hang.Hang) -> RankError:
    """What the ranks show, and their stacks; a stopped rank is woken to write its own."""
    for process in crew.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGUSR1)
            process.send_signal(signal.SIGCONT)
    time.sleep(STACK_SECONDS)
    stacks = {r: _text(crew.stack(r)) for r in range(len(crew.processes))}
    path = crew.logs / "hang.txt"
    path.write_text(hang.report(stuck, stacks), encoding="utf-8")
    words = hang.describe(stuck, stacks)
    return RankError(f"{words}\nall stacks: {path}")


def _let_end(crew: Crew) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(p.poll() is None for p in crew.processes):
        time.sleep(POLL_SECONDS)


def _raise_first_failure(crew: Crew, stop: Stop) -> None:
    """Raises the error of the rank that failed first.

    One that was killed, if there is one: the others are its victims. Else the one whose log was the
    first to end: a rank writes down its error before the others can miss it. An abort is no kill:
    libraries end a process so after an error of theirs, a victim's too.
    """
    codes = {rank: process.returncode or 0 for rank, process in enumerate(crew.processes)}
    failed = [rank for rank, code in codes.items() if code not in (0, STOPPED)]
    killed = [rank for rank in failed if codes[rank] < 0 and codes[rank] != -signal.SIGABRT]
    if stop.asked and any(codes[rank] == -signal.SIGTERM for rank in killed):
        raise StoppedError("asked to stop before the first step: nothing to save", code=ENDED)
    rank = min(killed or failed, key=lambda r: crew.log(r).stat().st_mtime_ns)
    how = f"signal {-codes[rank]}" if codes[rank] < 0 else f"exit code {codes[rank]}"
    lines = _text(crew.log(rank)).splitlines()
    words = "\n".join(lines[-TAIL_LINES:]) or "(it wrote nothing)"
    error = RankError(
        f"rank {rank} of {len(codes)} ended with {how}; the end of {crew.log(rank)}:\n{words}"
    )
    raise _FailedError(error, _step(crew), final=codes[rank] == REFUSED)


def _step(crew: Crew) -> int:
    """The step that the ranks were in."""
    return max((sign.step for sign in crew.signs().values() if sign), default=0)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def make_run_dir(config: RunConfig) -> Path:
    """The folder of a run, made if it is not there.

    Raises:
        ConfigError: it cannot be made or written.
    """
    run_dir = Path(config.train.run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"train.run_dir = {config.train.run_dir!r}: cannot be made ({error.strerror}); "
            "expected a folder that may be written; try another train.run_dir"
        ) from None
    return run_dir
