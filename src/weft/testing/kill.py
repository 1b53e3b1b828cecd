"""Kill -9 in mid-training, start again, and what became of the run.

    this process --fork--> supervisor (launch.train) --fork--> ranks (child.main)

Everything is what `weft train` runs but for the fork: torch is imported already, so a start takes
a fraction of a second. A kill is aimed by progress that is read off the metrics file, never by a
clock alone, and says where it landed: a test of resumption whose kills all land before the first
checkpoint has tested nothing.
"""

import hashlib
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import final

from weft.checkpoint.format import Kind
from weft.checkpoint.load import Checkpoint
from weft.checkpoint.prune import list_checkpoints
from weft.checkpoint.verify import read_manifest
from weft.config.run import RunConfig
from weft.errors import (
    ConfigError,
    DataError,
    LayoutError,
    StoppedError,
    VerificationError,
    WeftError,
)
from weft.telemetry import metrics
from weft.trainer import child, launch
from weft.trainer.supervisor import Process

KINDS: tuple[Kind, ...] = ("master", "mean", "square", "state")
POLL_SECONDS = 0.002  # a fraction of the shortest step
LIMIT_SECONDS = 120.0  # no forked process lives longer, whatever becomes of its parent
EVERY_RANK = 0.25  # the share of kills that hit all ranks at once

Tamper = Callable[[], None]  # runs in the supervisor before it starts
FailPoint = Callable[[int, str], None]  # is told where each rank is, by name


def honest() -> None:
    """Tampers with nothing."""


def pass_all(_rank: int, _point: str) -> None:
    """Passes every fail-point."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Landing:
    """Where a kill hit: the last step in the metrics, the newest checkpoint, what went on."""

    ranks: tuple[int, ...]
    step: int
    saved: int
    saving: bool

    def is_between(self, steps: int) -> bool:
        """Whether it hit after a checkpoint, strictly between the first and the last step."""
        return self.saved > 0 and 1 < self.step < steps

    def __str__(self) -> str:
        where = "inside a save" if self.saving else "inside a step"
        return f"ranks {self.ranks} after step {self.step}, {where}; newest checkpoint {self.saved}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What has to be equal, killed or not: every recorded loss and the state at the end."""

    losses: Mapping[int, str]
    validation: Mapping[int, float]
    digest: str


# ---- one start of a run ----


@final
class Run:
    """A supervisor and its ranks, from their start to their end."""

    def __init__(
        self, config: RunConfig, *, tamper: Tamper = honest, fail_point: FailPoint = pass_all
    ) -> None:
        self.config = config
        self.folder = Path(config.train.run_dir)
        self.scratch = self.folder.with_name(f"{self.folder.name}.kill")
        self.scratch.mkdir(parents=True, exist_ok=True)
        for stale in self.scratch.glob("rank-*"):
            stale.unlink()
        self.output = self.scratch / "output"
        life = partial(_supervise, config, self.scratch, tamper, fail_point)
        self._process = Forked(life, self.output, self.output)

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code of the supervisor, or None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """The exit code of the supervisor, once there is one."""
        return self._process.wait()

    def pids(self) -> Mapping[int, int]:
        """The process of each rank that has been started; a rank alone is its own supervisor."""
        if self.config.parallel.ranks == 1:
            return {0: self.pid}
        found = {path: path.read_text() for path in self.scratch.glob("rank-*")}
        return {
            int(path.name.removeprefix("rank-")): int(pid) for path, pid in found.items() if pid
        }

    def reaches(self, step: int) -> bool:
        """Waits until a step is recorded; False when the run is over before."""
        while last_step(self.folder) < step:
            if self.poll() is not None:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def kill(self, ranks: Iterable[int]) -> None:
        """Ends ranks as a power cut would; one that has left already is passed over."""
        pids = self.pids()
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(pids[rank], signal.SIGKILL)


def _supervise(config: RunConfig, scratch: Path, tamper: Tamper, fail_point: FailPoint) -> int:
    """The command behind `weft train --resume auto`, but for its name."""
    tamper()
    try:
        start = partial(_start, scratch, fail_point)
        launch.train(config, start=start, fail_point=partial(fail_point, 0))
    except (ConfigError, DataError, LayoutError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except StoppedError as stopped:
        sys.stderr.write(f"{stopped}\n")
        return stopped.code
    except WeftError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _start(
    scratch: Path, fail_point: FailPoint, arguments: Sequence[str], rank: int, log: Path
) -> Process:
    log.write_bytes(b"")
    output = None if rank == 0 else log
    life = partial(child.main, arguments, fail_point=partial(fail_point, rank))
    process = Forked(life, output, log)
    (scratch / f"rank-{rank}").write_text(str(process.pid))
    return process


@final
class Forked:
    """A process forked from this one; `subprocess.Popen` for a function."""

    def __init__(self, life: Callable[[], int], output: Path | None, errors: Path) -> None:
        self.returncode: int | None = None
        self.pid = _fork(life, output, errors)

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        """Ends it at once."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def send_signal(self, sig: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def wait(self) -> int:
        """The exit code, once there is one."""
        while (code := self.poll()) is None:
            time.sleep(POLL_SECONDS)
        return code


def _fork(life: Callable[[], int], output: Path | None, errors: Path) -> int:
    """The pid of a child that lives a function and leaves without this process's exit handlers."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # python 3.12 warns of threads in the parent; a child uses none of them
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
        _redirect(output, errors)
        code = life()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - whatever ended it belongs in its log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(output: Path | None, errors: Path) -> None:
    """Points both streams, and Python's idea of them, at files."""
    for number, path in ((1, output), (2, errors)):
        if path is not None:
            with path.open("ab") as file:
                os.dup2(file.fileno(), number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


# ---- a run that is killed until it is done ----


def finish(config: RunConfig, *, tamper: Tamper = honest) -> Outcome:
    """Runs to the end, from the newest checkpoint if there is one.

    Raises:
        VerificationError: it did not end well; with what it said.
    """
    run = Run(config, tamper=tamper)
    code = run.wait()
    if code:
        said = run.output.read_text(encoding="utf-8", errors="replace")
        raise VerificationError(f"{config.name} ended with exit code {code}, expected 0:\n{said}")
    return outcome(run.folder)


def survive(
    config: RunConfig, *, kills: int, seed: int, tamper: Tamper = honest
) -> tuple[Outcome, tuple[Landing, ...]]:
    """Starts a run, kills it, starts it again, and so on; then lets it come to its end."""
    draw = random.Random(seed)
    struck = [strike(config, step, draw, tamper=tamper) for step in spread(config, kills, draw)]
    return finish(config, tamper=tamper), tuple(landing for landing in struck if landing)


def spread(config: RunConfig, kills: int, draw: random.Random) -> list[int]:
    """A step for each kill: one of each equal stretch between the first checkpoint and the end."""
    first, last = config.train.checkpoint_every, config.train.steps - 1
    edges = [first + (last - first) * i // kills for i in range(kills + 1)]
    return [draw.randrange(low, high) for low, high in pairwise(edges)]


def strike(
    config: RunConfig, step: int, draw: random.Random, *, tamper: Tamper = honest
) -> Landing | None:
    """Starts a run and kills one rank or all, anywhere in a step after this one.

    Returns where that hit; None where the run was over before.
    """
    ranks = tuple(range(config.parallel.ranks))
    share, all_at_once, victim = draw.random(), draw.random() < EVERY_RANK, draw.choice(ranks)
    victims = ranks if all_at_once else (victim,)
    run = Run(config, tamper=tamper)
    if run.reaches(max(step, last_step(run.folder) + 1)):
        time.sleep(share * _step_seconds(run.folder))
    run.kill(victims)
    return _landing(run.folder, victims) if run.wait() else None


def strike_at(config: RunConfig, point: str, step: int, victim: int, passes: int) -> Landing | None:
    """Starts a run, of which one rank kills itself at a fail-point that it has passed so often
    after this step.

    Returns where that hit; None where it never came by.
    """
    folder = Path(config.train.run_dir)
    checkpoints = list_checkpoints(folder)
    start = read_manifest(checkpoints[0]).step if checkpoints else 0
    passed, finished = count(1), start

    def die(rank: int, here: str) -> None:
        nonlocal finished
        finished += (rank, here) == (victim, "after_step")
        if (rank, here) == (victim, point) and finished >= step and next(passed) == passes:
            os.kill(os.getpid(), signal.SIGKILL)

    return _landing(folder, (victim,)) if Run(config, fail_point=die).wait() else None


def _step_seconds(folder: Path) -> float:
    return next(r["step_ms"] / 1e3 for r in reversed(_records(folder)) if "step_ms" in r)


def _landing(folder: Path, victims: tuple[int, ...]) -> Landing:
    checkpoints = list_checkpoints(folder)
    return Landing(
        ranks=victims,
        step=last_step(folder),
        saved=read_manifest(checkpoints[0]).step if checkpoints else 0,
        saving=any(folder.glob("step-*.partial")),
    )


# ---- what is left of a run ----


def last_step(folder: Path) -> int:
    """The last step in the metrics of a run, 0 before the first."""
    return max((r["step"] for r in _records(folder) if "loss_hex" in r), default=0)


def outcome(folder: Path) -> Outcome:
    """The losses of a run and the digest of its newest checkpoint.

    Raises:
        VerificationError: a step is recorded twice, or none is.
    """
    records = _records(folder)
    steps = [record["step"] for record in records if "loss_hex" in record]
    if not steps or steps != list(range(1, len(steps) + 1)):
        raise VerificationError(f"{folder} records the steps {steps}; expected each once, in order")
    return Outcome(
        losses={r["step"]: r["loss_hex"] for r in records if "loss_hex" in r},
        validation={r["step"]: r["validation_loss"] for r in records if "validation_loss" in r},
        digest=digest(list_checkpoints(folder)[0]),
    )


def digest(folder: Path) -> str:
    """The SHA-256 over every logical tensor of a checkpoint, whatever layout wrote it."""
    total = hashlib.sha256()
    with Checkpoint.open(folder) as checkpoint:
        for kind in KINDS:
            for name in checkpoint.names(kind):
                tensor = checkpoint.read(kind, name)
                total.update(
                    f"{kind} {name} {checkpoint.shape(kind, name)} {tensor.dtype}".encode()
                )
                total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def differences(found: Outcome, expected: Outcome) -> list[str]:
    """Everything in which two outcomes are not the same bits; empty for a run that survived."""
    texts = [
        f"{what} of step {step}: found {ours.get(step)}, expected {theirs.get(step)}"
        for what, ours, theirs in (
            ("loss", found.losses, expected.losses),
            ("validation loss", found.validation, expected.validation),
        )
        for step in sorted({*ours, *theirs})
        if ours.get(step) != theirs.get(step)
    ]
    if found.digest != expected.digest:
        texts.append(f"state at the end: found {found.digest}, expected {expected.digest}")
    return texts


def _records(folder: Path) -> list[dict]:
    path = folder / metrics.FILE
    return metrics.read(path) if path.exists() else []
