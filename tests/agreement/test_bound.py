"""Room for a fixed number of rows: what one rank trains, whether they fit or a step is run again.

Rows behind the last end are never read: here they are not numbers.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch

from weft.compose.plan import Plan
from weft.errors import VerificationError
from weft.ops.registry import cpu_bodies, reference_bodies
from weft.parallel.layout import Attention, Dispatch, Layout
from weft.testing import models, routing
from weft.testing.agreement import (
    Bodies,
    Trace,
    Work,
    require_agreement,
    run_layout,
)

HONEST = {**reference_bodies(), **cpu_bodies()}
GATHER = Dispatch.ALL_GATHER
LAYOUTS = [
    Layout(sp=2, ep=2, dispatch=GATHER),
    Layout(dp=2, ep=2, dispatch=GATHER),
    Layout(sp=4, dp=2, ep=8, dispatch=GATHER),
    Layout(sp=2, ep=2, dispatch=GATHER, attention=Attention.TP),
]
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.name)
ENDS = {  # the bodies whose results are rows of experts, and which of their inputs holds the ends
    "expert_up": 2, "expert_up.dgrad": 2, "expert_down": 2, "expert_down.dgrad": 2,
    "add_expert_bias": 2, "swiglu": 2, "swiglu.dgrad": 3,
}  # fmt: skip
MODELS = {**models.FAMILIES, **models.VARIANTS}
STEPS = 2  # the second is of the state that the first left, run again or not


def poisoned(bodies: Bodies) -> Bodies:
    """The bodies, whose rows behind the last end are no numbers."""

    def poison(body: Callable[..., Any], at: int) -> Callable[..., Any]:
        def call(*inputs: Any, **attributes: Any) -> Any:
            made = body(*inputs, **attributes)
            for rows in made if isinstance(made, tuple) else (made,):
                rows[int(inputs[at][-1]) :] = float("nan")
            return made

        return call

    return {**bodies, **{name: poison(bodies[name], at) for name, at in ENDS.items()}}


BODIES = poisoned(HONEST)


def plan_of(family: str, bound: float, **fields: Any) -> Callable[[Layout, int], Plan]:
    model = MODELS[family]

    def plan(layout: Layout, rank: int) -> Plan:
        return replace(
            models.plan(model, layout, rank, order="overlapped", **fields), row_bound=bound
        )

    return plan


def work(family: str, forced: str | None = None) -> Work:
    model = MODELS[family]
    tokens = models.SEQUENCE * models.MICRO_BATCH

    def choices(step: int, micro_batch: int, layer: int) -> routing.Choices:
        seed = 100 * step + 10 * micro_batch + layer
        shape = model.shape
        return routing.GENERATORS[forced or ""](tokens, shape.experts, shape.top_k, seed)

    batches = partial(models.batches, model)
    return Work(batches=batches, steps=STEPS, routing=choices if forced else None)


@cache
def one_rank(family: str, forced: str | None = None) -> Trace:
    plans = plan_of(family, 0.0, replay=forced is not None)
    return run_layout(plans, Layout(), work(family, forced), bodies=HONEST)


@LAYOUT
@pytest.mark.parametrize(
    ("family", "bound"),
    [("mixtral", 1.0), ("mixtral", 1.2), ("mixtral", 64.0), ("deepseek", 1.2), ("gpt_oss", 1.0)],
)
def test_a_bounded_layout_trains_what_one_rank_trains(family, bound, layout):
    found = run_layout(plan_of(family, bound), layout, work(family), bodies=BODIES)
    require_agreement(found, one_rank(family))


@pytest.mark.parametrize("layout", LAYOUTS[::2], ids=Layout.name)
@pytest.mark.parametrize("generator", routing.GENERATORS)
def test_a_bounded_layout_agrees_under_any_routing(generator, layout):
    plans = plan_of("mixtral", 1.0, replay=True)
    found = run_layout(plans, layout, work("mixtral", generator), bodies=BODIES)
    require_agreement(found, one_rank("mixtral", generator))


def counted(bodies: Bodies, found: list[int]) -> Bodies:
    """The bodies, and what each layer of each rank had no room for, written down."""

    def count(overflow: torch.Tensor, tally: torch.Tensor) -> torch.Tensor:
        found.append(int(overflow))
        return tally.add_(overflow)

    return {**bodies, "add_dropped": count}


@pytest.mark.parametrize(
    ("bound", "some", "all_of_them"), [(1.0, True, False), (64.0, False, False)]
)
def test_rows_that_find_no_room_are_counted(bound, some, all_of_them):
    found: list[int] = []
    run_layout(
        plan_of("mixtral", bound), LAYOUTS[0], work("mixtral"), bodies=counted(BODIES, found)
    )
    assert any(found) is some
    assert all(found) is all_of_them


def test_a_rank_with_every_row_and_one_with_none():
    found: list[int] = []
    plans = plan_of("mixtral", 1.0, replay=True)
    bodies = counted(BODIES, found)
    run_layout(plans, LAYOUTS[0], work("mixtral", "idle_half"), bodies=bodies)
    rows = models.SEQUENCE * models.MICRO_BATCH * 2
    assert {rows - rows // 2, 0} == set(found)


def test_rows_that_are_not_counted_are_missed():
    careless = {**BODIES, "add_dropped": lambda _, tally: tally}
    found = run_layout(plan_of("mixtral", 1.0), LAYOUTS[0], work("mixtral"), bodies=careless)
    with pytest.raises(VerificationError):
        require_agreement(found, one_rank("mixtral"))


def test_a_bound_leaves_no_host_synchronisation():
    layout = LAYOUTS[0]
    bodies = {**BODIES, "rows_to_host": forbidden}
    plans = plan_of("mixtral", 64.0)
    require_agreement(
        run_layout(plans, layout, work("mixtral"), bodies=bodies), one_rank("mixtral")
    )
    with pytest.raises(AssertionError, match="the host waits"):
        run_layout(plan_of("mixtral", 0.0), layout, work("mixtral"), bodies=bodies)


def forbidden(*_: Any) -> int:
    raise AssertionError("the host waits")
