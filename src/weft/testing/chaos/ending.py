"""R6, R7, R8: how a run ends, whoever asks for it or causes it.

R6  asked to stop at a random time, one rank or all: saved, and bit for bit the same later
R7  a rank that stands still: found in time, named with step, collective and stack, all gone
R8  a rank that raises, in any phase: its own words come first
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from weft.compose.plan import Plan
from weft.config.run import RunConfig
from weft.testing.chaos.recipe import LAYOUTS, tiny
from weft.testing.chaos.result import Result, Size
from weft.testing.kill import Outcome, Run, differences, finish, last_step
from weft.trainer import supervisor
from weft.trainer.feed import Feed, Read
from weft.trainer.stop import STOPPED

TIMEOUT = 2.0  # seconds that a rank may stand still in these runs
FOUND_SECONDS = 2.0  # more, and it is found too late
GONE_SECONDS = 5.0  # after that, and something is left
MAY_FAIL = 0.05  # of a hundred, the right rank is named at least 95 times
LONG = "train.steps=100000"


# ---- R6 ----


def check_stop(size: Size) -> Result:
    """So many runs asked to stop once, somewhere."""
    trials, faults, to_one = size.trials(10, 100), [], 0
    expected: dict[str, Outcome] = {}
    seconds = [0.0]
    for number in trials:
        draw = random.Random(size.seed + number)
        name = draw.choice(sorted(LAYOUTS))
        if name not in expected:
            expected[name] = finish(tiny(size.folder, f"stop whole {name}", *LAYOUTS[name]))
        config = tiny(size.folder, f"stop-{number}", *LAYOUTS[name])
        whom, target = draw.choice(["all", "0", "1"]), draw.randrange(1, 20)
        to_one += whom != "all"
        run = Run(config)
        asked = run.reaches(target)
        begun = time.monotonic()
        if asked:
            pid = run.pid if whom == "all" else run.pids()[int(whom)]
            os.kill(pid, draw.choice([signal.SIGTERM, signal.SIGINT]))
        code = run.wait()
        seconds.append(time.monotonic() - begun)
        stopped = last_step(run.folder)
        if seconds[-1] > GONE_SECONDS:
            faults.append(f"seed {size.seed + number}: gone after {seconds[-1]:.1f} s")
        if code not in (0, STOPPED) or (code == 0 and stopped < config.train.steps):
            faults.append(f"seed {size.seed + number}: exit code {code} after step {stopped}")
        texts = differences(finish(config), expected[name])
        faults += [f"seed {size.seed + number}, {name}, {whom}: {text}" for text in texts]
    return Result(
        promise="R6 asked to stop, it saves",
        counts={"stops": len(trials), "of one rank alone": to_one},
        peaks={"ms to the end at most": round(1000 * max(seconds))},
        faults=faults,
        control=_control_stop(size),
    )


def _control_stop(size: Size) -> str:
    """A run that is ended at once has not saved the step it was in."""
    config = tiny(size.folder, "stop-control", "train.checkpoint_every=20", *LAYOUTS["dp2"])
    run = Run(config)
    run.reaches(6)
    run.kill([0, 1])
    code = run.wait()
    return "" if code == STOPPED or any(run.folder.glob("step-*")) else "a killed run saved nothing"


# ---- R7 ----


def check_hang(size: Size) -> Result:
    """So many ranks that stand still, in so many ways."""
    trials, faults, right = size.trials(4, 40), [], 0
    ways = (_stop_signal, _sleep_in_collective, _sleep_between_steps, _sleep_while_reading)
    seconds: list[float] = []
    for number in trials:
        draw = random.Random(size.seed + number)
        name = sorted(LAYOUTS)[number % len(LAYOUTS)]
        victim = draw.randrange(2)
        settings = (*LAYOUTS[name], LONG, f"train.timeout_seconds={TIMEOUT}")
        config = tiny(size.folder, f"hang-{number}", *settings)
        run, begun = ways[number % len(ways)](config, victim, draw.randrange(3, 12))
        pids = dict(run.pids())
        run.wait()
        seconds.append(time.monotonic() - begun)
        said = run.output.read_text(encoding="utf-8", errors="replace")
        named = f"rank {victim} of 2 got no further" in said
        right += named
        report = run.folder / "logs" / "hang.txt"
        text = report.read_text(encoding="utf-8") if report.exists() else ""
        whole = (
            all(f"rank {rank}: " in text for rank in pids) and "File " in text and "call" in text
        )
        late = seconds[-1] > TIMEOUT + FOUND_SECONDS + GONE_SECONDS
        left = [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]
        if not named or not whole or late or left:
            faults.append(
                f"seed {size.seed + number}, {ways[number % len(ways)].__name__} of {victim}: "
                f"{named=} {whole=} {late=} {left=}"
            )
    return Result(
        promise="R7 a rank that stands still is named in time",
        counts={
            "hangs": len(trials),
            "named right": right,
        },
        peaks={"ms at most": round(1000 * max(seconds))},
        faults=faults,
        allowed=MAY_FAIL * len(trials),
        control=_control_hang(size),
    )


def _stop_signal(config: RunConfig, victim: int, step: int) -> tuple[Run, float]:
    run = Run(config)
    run.reaches(step)
    begun = time.monotonic()
    os.kill(run.pids()[victim], signal.SIGSTOP)
    return run, begun


def _sleep_in_collective(config: RunConfig, victim: int, step: int) -> tuple[Run, float]:
    return _asleep(config, victim, "in_statistics", step)


def _sleep_between_steps(config: RunConfig, victim: int, step: int) -> tuple[Run, float]:
    return _asleep(config, victim, "after_step", step)


def _asleep(config: RunConfig, victim: int, point: str, step: int) -> tuple[Run, float]:
    mark, seen = _mark(config), count(1)

    def sleep(rank: int, here: str) -> None:
        if (rank, here) == (victim, point) and next(seen) == step:
            mark.touch()
            time.sleep(100)

    return _until(mark, Run(config, fail_point=sleep))


def _sleep_while_reading(config: RunConfig, victim: int, step: int) -> tuple[Run, float]:
    mark, honest = _mark(config), Feed.read

    def read(feed: Feed, plan: Plan, index: int) -> Read:
        if (plan.rank, index) == (victim, step):
            mark.touch()
            time.sleep(100)
        return honest(feed, plan, index)

    def tamper() -> None:
        Feed.read = read  # type: ignore[method-assign]

    return _until(mark, Run(config, tamper=tamper))


def _mark(config: RunConfig) -> Path:
    """The file that a rank makes when it falls asleep."""
    return Path(f"{config.train.run_dir}.asleep")


def _until(mark: Path, run: Run) -> tuple[Run, float]:
    while not mark.exists() and run.poll() is None:
        time.sleep(0.01)
    return run, time.monotonic()


def _control_hang(size: Size) -> str:
    """A supervisor that looks at nothing finds nothing in that time."""
    config = tiny(size.folder, "hang-control", *LAYOUTS["dp2"], LONG, "train.timeout_seconds=1.0")

    def blind() -> None:
        supervisor.hang.find = lambda *_given, **_settings: None

    run = Run(config, tamper=blind)
    run.reaches(2)
    os.kill(run.pids()[1], signal.SIGSTOP)
    time.sleep(1.0 + FOUND_SECONDS)
    found = run.poll() is not None
    for pid in [*run.pids().values(), run.pid]:
        os.kill(pid, signal.SIGKILL)
    run.wait()
    return "" if found else "a supervisor that does not look was still waiting"


# ---- R8 ----

PHASES = ("in_qkv", "in_gradients", "in_statistics", "after_step", "after_shard_write")


def check_throw(size: Size) -> Result:
    """So many ranks that raise, each somewhere else."""
    trials, faults = size.trials(8, 60), []
    for number in trials:
        draw = random.Random(size.seed + number)
        layout = ("parallel.sp=2", "parallel.ep=2")
        config = tiny(size.folder, f"throw-{number}", *layout, LONG)
        victim, point = draw.randrange(2), PHASES[number % len(PHASES)]
        run = Run(config, fail_point=_raise_at(victim, point, draw.randrange(1, 9)))
        code = run.wait()
        said = run.output.read_text(encoding="utf-8", errors="replace")
        head = f"rank {victim} of 2 ended with exit code 1; the end of"
        shown = said[said.find(head) :] if head in said else ""
        if code != 1 or "ZeroDivisionError: planted" not in shown or "CommunicationE" in shown:
            faults.append(f"seed {size.seed + number}: {point} on rank {victim}: {said[-300:]!r}")
    return Result(
        promise="R8 the rank that raised speaks first",
        counts={"errors": len(trials)},
        peaks={"places": min(len(trials), len(PHASES))},
        faults=faults,
        allowed=MAY_FAIL * len(trials),
        control=_control_throw(size),
    )


def _raise_at(victim: int, point: str, passes: int) -> Callable[[int, str], None]:
    seen: Iterator[int] = count(1)

    def throw(rank: int, here: str) -> None:
        if (rank, here) == (victim, point) and next(seen) == passes:
            raise ZeroDivisionError("planted")

    return throw


def _control_throw(size: Size) -> str:
    """Blaming the rank that did not fail is found by the same look."""
    config = tiny(size.folder, "throw-control", "parallel.sp=2", "parallel.ep=2", LONG)
    run = Run(config, fail_point=_raise_at(1, "in_qkv", 3))
    run.wait()
    said = run.output.read_text(encoding="utf-8", errors="replace")
    return "" if "rank 0 of 2 ended" in said else "the other rank is not named"
