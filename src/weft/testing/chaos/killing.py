"""R1: killed with -9 anywhere and started again, a run is bit for bit the run that was not.

At random ranks and steps, and at every named fail-point, over layouts and both orders; where the
kills landed is counted, because kills before the first checkpoint would prove nothing.
"""

import os
import random
import signal
from collections.abc import Iterator
from itertools import count, product
from pathlib import Path

from weft.checkpoint.format import step_name
from weft.checkpoint.prune import list_checkpoints
from weft.config.run import RunConfig
from weft.testing.chaos.recipe import EVERY, LAYOUTS, ORDERS, STEPS, tiny
from weft.testing.chaos.result import Result, Size
from weft.testing.kill import Landing, Outcome, Run, differences, finish, survive
from weft.trainer import rank
from weft.trainer.session import Session

IN_SAVE = (
    "after_shard_write",
    "before_manifest",
    "after_manifest",
    "before_rename",
    "in_prune",
)
IN_STEP = ("after_step", "in_statistics", "in_gradients", "in_rows", "in_qkv", "in_parameters")
ROUND = 6  # kills of one run: more would leave no step between them


def check(size: Size) -> Result:
    """Kills so many runs, and compares what they come to."""
    kills = size.of(40, 500)
    cases = [(layout, order) for layout, order in product(LAYOUTS, ORDERS)]
    points = [*IN_SAVE, *IN_STEP]
    faults: list[str] = []
    landed: list[Landing] = []
    at_points: list[str] = []
    rest = kills - len(points) * (1 + kills // 100)
    share = max(1, -(-rest // len(cases)))
    for number, (layout, order) in enumerate(cases):
        settings = (*LAYOUTS[layout], f"overlap.order={order}")
        expected = finish(tiny(size.folder, f"whole-{number}", *settings))
        for turn, some in enumerate(_rounds(share)):
            config = tiny(size.folder, f"killed-{number}-{turn}", *settings)
            seed = size.seed + 1000 * number + turn
            found, landings = survive(config, kills=some, seed=seed)
            landed += landings
            faults += _compare(f"{layout} {order} seed {seed}", found, expected, config)
        mine = [p for n, p in enumerate(points * (1 + kills // 100)) if n % len(cases) == number]
        config = tiny(size.folder, f"points-{number}", *settings)
        died = _die_at(config, mine, random.Random(size.seed + number))
        at_points += died
        found = finish(config)
        faults += _compare(f"{layout} {order} at {died}", found, expected, config)
    between = sum(landing.is_between(STEPS) for landing in landed)
    inside = sum(landing.saving for landing in landed) + sum(p in IN_SAVE for p in at_points)
    total = len(landed) + len(at_points)
    if 2 * between < len(landed) or 10 * inside < total:
        faults.append(f"of {total} kills {between} landed in mid-training, {inside} inside a save")
    return Result(
        promise="R1 kill -9 anywhere",
        counts={
            "kills": total,
            "in mid-training": between + sum(p in IN_STEP for p in at_points),
            "inside a save": inside,
            "fail-points": len(set(at_points)),
        },
        faults=faults,
        control=_control(size),
    )


def _rounds(kills: int) -> Iterator[int]:
    while kills > 0:
        yield min(ROUND, kills)
        kills -= ROUND


def _compare(where: str, found: Outcome, expected: Outcome, config: RunConfig) -> list[str]:
    texts = [f"{where}: {text}" for text in differences(found, expected)]
    run_dir = Path(config.train.run_dir)
    debris = [p.name for p in run_dir.glob("step-*.*")]
    kept = [folder.name for folder in list_checkpoints(run_dir)]
    if debris or kept != [step_name(STEPS), step_name(STEPS - EVERY)]:
        texts.append(f"{where}: left {debris} and {kept}")
    return texts


def _die_at(config: RunConfig, points: list[str], draw: random.Random) -> list[str]:
    """Starts a run again and again; each start dies at one point, if it comes by."""
    died = []
    for point in points:
        of_the_first = point in IN_SAVE and point != "after_shard_write"
        victim = 0 if of_the_first else draw.randrange(config.parallel.ranks)
        passes, seen = draw.randrange(1, 3 if point in IN_SAVE else 12), count(1)

        def die(
            number: int, here: str, *, point: str = point, victim: int = victim,
            passes: int = passes, seen: Iterator[int] = seen,
        ) -> None:  # fmt: skip
            if (number, here) == (victim, point) and next(seen) == passes:
                os.kill(os.getpid(), signal.SIGKILL)

        if Run(config, fail_point=die).wait():
            died.append(point)
    return died


def forget_moments() -> None:
    """Breaks restoring: the optimizer starts from zero."""
    honest = rank.restore_session

    def restore(session: Session, folder: Path) -> int:
        start = honest(session, folder)
        for kind, _, tensor in session.stage.state.shards():
            if kind != "master":
                tensor.zero_()
        return start

    rank.restore_session = restore


def _control(size: Size) -> str:
    settings = LAYOUTS["dp2"]
    expected = finish(tiny(size.folder, "control-whole", *settings))
    config = tiny(size.folder, "control", *settings)
    found, _ = survive(config, kills=1, seed=size.seed, tamper=forget_moments)
    return "forgotten moments were found" if differences(found, expected) else ""
