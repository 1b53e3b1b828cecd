"""R1: killed with -9 anywhere and started again, a run is bit for bit the run that was not.

A trial is one run that is killed again and again: at random ranks and steps, and at two named
fail-points, one inside a save and one inside a step. The run that was not killed is of the serial
order, so that a killed one of the other order shows a difference between the two as well. Where the
kills landed is counted, because kills before the first checkpoint would prove nothing.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from weft.checkpoint.format import step_name
from weft.checkpoint.prune import list_checkpoints
from weft.config.run import RunConfig
from weft.testing.chaos.recipe import EVERY, LAYOUTS, ORDERS, STEPS, tiny
from weft.testing.chaos.result import Result, Size
from weft.testing.kill import (
    Landing,
    Outcome,
    differences,
    finish,
    spread,
    strike,
    strike_at,
    survive,
)
from weft.trainer import rank
from weft.trainer.session import Session

IN_SAVE = (
    "after_shard_write",
    "before_manifest",
    "after_manifest",
    "before_rename",
    "in_prune",
)
# What each layout comes by, the calls of its collectives among them; three, so that each of them
# is met under both orders.
IN_STEP: Mapping[str, tuple[str, str, str]] = {
    "dp2": ("in_gradients", "in_parameters", "in_statistics"),
    "sp2 ep2": ("in_rows", "in_qkv", "in_attention"),
    "dp2 ep2": ("after_step", "in_outputs", "in_gradients"),
    "pp2": ("in_activations", "in_activation gradients", "after_step"),
}
ANYWHERE = ""  # no fail-point: where the run happens to be
PASSES = 4  # of a fail-point inside a step, at most
SERIES = 5  # kills of one run: more would leave no step between them
TURNS = 3  # runs that make up for kills that came too late


def check(size: Size) -> Result:
    """Kills so many runs, and compares what they come to."""
    faults: list[str] = []
    landed: list[tuple[str, Landing]] = []
    cases = list(product(LAYOUTS, ORDERS))
    expected: dict[str, Outcome] = {}
    for number in size.trials(8, 100):
        layout, order = cases[number % len(cases)]
        if layout not in expected:
            whole = tiny(size.folder, f"whole {layout}", *LAYOUTS[layout], "overlap.order=serial")
            expected[layout] = finish(whole)
        wanted = [
            IN_SAVE[number % len(IN_SAVE)],
            IN_STEP[layout][_visit(number, len(cases)) % len(IN_STEP[layout])],
            *[ANYWHERE] * (SERIES - 2),
        ]
        draw = random.Random(size.seed + number)
        for turn in range(TURNS):
            settings = (*LAYOUTS[layout], f"overlap.order={order}")
            config = tiny(size.folder, f"killed {number} {turn}", *settings)
            hit = _kill(config, draw.sample(wanted, len(wanted)), draw)
            where = f"{layout} {order} seed {size.seed + number}"
            faults += _compare(where, finish(config), expected[layout], config)
            landed += hit
            for point, _ in hit:
                wanted.remove(point)
            if not wanted:
                break
        faults += [f"run {number}: no kill landed {point or 'anywhere'}" for point in wanted]
    between = sum(landing.is_between(STEPS) for _, landing in landed)
    inside = sum(landing.saving or point in IN_SAVE for point, landing in landed)
    if 2 * between < len(landed) or 10 * inside < len(landed):
        faults.append(f"of {len(landed)} kills {between} in mid-training, {inside} inside a save")
    return Result(
        promise="R1 kill -9 anywhere",
        counts={
            "kills": len(landed),
            "in mid-training": between,
            "inside a save": inside,
            "at a fail-point": sum(point != ANYWHERE for point, _ in landed),
        },
        peaks={"fail-points": len({point for point, _ in landed} - {ANYWHERE})},
        faults=faults,
        control=_control(size),
    )


def _visit(number: int, cases: int) -> int:
    """How many runs of the same layout have a lower number."""
    return number // cases * len(ORDERS) + number % len(ORDERS)


def _kill(
    config: RunConfig, points: Sequence[str], draw: random.Random
) -> list[tuple[str, Landing]]:
    """Starts a run again and again, and kills each start at a point; those that were hit."""
    hit = []
    for step, point in zip(spread(config, len(points), draw), points, strict=True):
        landing = _strike(config, point, step, draw)
        if landing:
            hit.append((point, landing))
    return hit


def _strike(config: RunConfig, point: str, step: int, draw: random.Random) -> Landing | None:
    if point == ANYWHERE:
        return strike(config, step, draw)
    of_the_first = point in IN_SAVE and point != "after_shard_write"
    victim = 0 if of_the_first else draw.randrange(config.parallel.ranks)
    most = 1 if point in IN_SAVE else min(PASSES, STEPS - step)
    return strike_at(config, point, step, victim, draw.randint(1, most))


def _compare(where: str, found: Outcome, expected: Outcome, config: RunConfig) -> list[str]:
    texts = [f"{where}: {text}" for text in differences(found, expected)]
    run_dir = Path(config.train.run_dir)
    debris = [p.name for p in run_dir.glob("step-*.*")]
    kept = [folder.name for folder in list_checkpoints(run_dir)]
    if debris or kept != [step_name(STEPS), step_name(STEPS - EVERY)]:
        texts.append(f"{where}: left {debris} and {kept}")
    return texts


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


def shift_data() -> None:
    """Breaks restoring: the data goes on one batch too late."""
    honest = rank.batches_skipped
    rank.batches_skipped = lambda folder: honest(folder) + 1


def _control(size: Size) -> str:
    """Both sabotages, or nothing."""
    expected = finish(tiny(size.folder, "control whole", *LAYOUTS["dp2"]))
    for number, tamper in enumerate((forget_moments, shift_data)):
        config = tiny(size.folder, f"control {number}", *LAYOUTS["dp2"])
        found, _ = survive(config, kills=1, seed=size.seed, tamper=tamper)
        if not differences(found, expected):
            return ""
    return "forgotten moments and data off by one were found"
