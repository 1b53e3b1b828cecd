"""One rank that rounds where a layout's wire does: what a recipe with eight bits is compared with.

    trial      runs in              against
    rounded    float64, one step    the losses and gradients of `testing.quantised` on one rank

Every rank of the layout works the reference out for itself: it needs no wire.
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from torch import Tensor

from weft.compose.plan import AUX, LOSS, Z
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Layout
from weft.testing.agreement import Trace, Work, run_oracle
from weft.testing.crew import Course, Run, Trial, plan_of
from weft.testing.quantised import Quantising

ROUNDED = "rounded"
TRIAL = Trial(steps=1, precision="float64", encoded=True)
SUMS: Mapping[str, int] = MappingProxyType(
    {"loss": LOSS, "balance loss": AUX, "z loss": Z}
)  # their places in the statistics

Off = tuple[float, float]  # squared difference, square of what is expected


def encodes(course: Course) -> bool:
    """Whether anything of the recipe travels in eight bits."""
    return plan_of(course, TRIAL, Layout(), 0).crossings.encodes


def reference(course: Course, layout: Layout) -> Trace:
    """What one rank finds that rounds as this layout does."""
    alone, plan = (plan_of(course, TRIAL, where, 0) for where in (Layout(), layout))
    feed = course.feed.training
    return run_oracle(
        lambda _layout, _rank: alone,
        Work(batches=lambda _: [feed.load(0, m) for m in range(alone.micro_batches)], steps=1),
        bodies=reference_bodies(),
        seed=course.config.train.seed,
        algebra=partial(Quantising, plan=plan),
    )


def distances(ours: Run, expected: Trace) -> Mapping[str, Off]:
    """How far a rank's sums and its own elements of each gradient are off."""
    found = {
        name: _apart(ours.sums[0, place], expected.sums[f"step 1 {name}"])
        for name, place in SUMS.items()
    }
    for piece in ours.gradients:
        whole = expected.gradients[piece.name].reshape(-1)
        off, size = _apart(piece.values, whole[piece.start : piece.stop])[0], _square(whole)
        found[piece.name] = found.get(piece.name, (0.0, size))[0] + off, size
    return found


def _apart(ours: Tensor, expected: Tensor) -> Off:
    return _square(ours - expected), _square(expected)


def _square(values: Tensor) -> float:
    return float(values.square().sum())
