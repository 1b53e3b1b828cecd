"""Which collectives of a layer are encoded, and what the wire then weighs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from weft.compose import wire
from weft.compose.first import usual_of
from weft.compose.plan import Crossings, sizes
from weft.compose.step import training_step
from weft.errors import ProgramError
from weft.graph.record import Recorder
from weft.parallel.layout import Dispatch, Layout
from weft.schedule.action import is_collective
from weft.testing import models, routing
from weft.testing.wire import WIDTHS, predict

NAMES = ("dispatch", "combine", "dispatch_grad", "combine_grad")
GATHER = Dispatch.ALL_GATHER
EXCHANGED = {
    "dispatch": ("moe.forward", "rows"),
    "combine": ("moe.forward", "outputs"),
    "combine_grad": ("moe.backward", "outputs"),
    "dispatch_grad": ("moe.backward", "rows"),
}
GATHERED = {**EXCHANGED, "dispatch": ("moe.forward", "tokens")}
GATHERED["dispatch_grad"] = ("moe.backward", "tokens")
LAYOUTS = {Layout(sp=2, ep=2): EXCHANGED, Layout(sp=2, ep=2, dispatch=GATHER): GATHERED}
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.name)


def step(layout: Layout, **fields: str):
    plan = models.plan(models.mixtral_like(), layout, replay=True, precision="bfloat16")
    return training_step(replace(plan, crossings=Crossings(**fields)))


def encoded(made) -> list[tuple[str, str]]:
    return [
        (name, str(task.attributes["label"]))
        for name, template in made.templates.items()
        if name == usual_of(name)
        for task in filter(is_collective, template.program.tasks)
        if template.program.values[task.inputs[0]].kind == "u8"
    ]


@LAYOUT
@pytest.mark.parametrize("name", NAMES)
def test_each_crossing_is_encoded_by_itself(name, layout):
    assert encoded(step(layout, **{name: "fp8"})) == [LAYOUTS[layout][name]]


@LAYOUT
def test_nothing_is_encoded_unless_it_is_said(layout):
    made = step(layout)
    assert encoded(made) == []
    assert not any("weighted_down" in t.body for t in made.templates["moe.forward"].program.tasks)


@LAYOUT
def test_gate_weights_stand_behind_the_experts_where_anything_is_encoded(layout):
    bodies = [t.body for t in step(layout, combine="fp8").templates["moe.forward"].program.tasks]
    assert "weighted_down" in bodies
    assert not {"swiglu", "expert_down"} & set(bodies)


def test_a_layer_without_the_collective_of_a_crossing_is_refused():
    plan = replace(
        models.plan(models.mixtral_like(), Layout(sp=2, ep=2)), crossings=Crossings(combine="fp8")
    )
    o = Recorder("moe.forward")
    with pytest.raises(ProgramError, match="expected one of all_to_all_rows 'outputs'"):
        wire.forward(plan, o.finish(o.input("x", "T D")))


def test_tokens_that_cross_once_are_refused():
    layout = Layout(sp=2, ep=2, dispatch=Dispatch.DEDUPLICATED)
    with pytest.raises(ProgramError, match="rows counted by 'o', which have no encoded form"):
        step(layout, dispatch="fp8")


def test_a_rank_that_holds_every_expert_encodes_nothing():
    assert encoded(step(Layout(dp=2), **dict.fromkeys(NAMES, "fp8"))) == []


def bytes_of(layout: Layout, **fields: str) -> Mapping[str, int]:
    shape = models.mixtral_like().shape
    chosen = routing.balanced(models.SEQUENCE * models.MICRO_BATCH, shape.experts, shape.top_k, 0)
    predicted = predict(step(layout, **fields), lambda _micro_batch, _layer: chosen)
    total: Counter[str] = Counter()
    for (_, _, label), count in predicted.items():
        total[label] += count
    return total


@LAYOUT
def test_a_packet_is_a_byte_an_element_and_four_a_scale(layout):
    plain, less = (bytes_of(layout, **dict.fromkeys(("dispatch", "combine"), word))
                   for word in ("none", "fp8"))  # fmt: skip
    label = LAYOUTS[layout]["dispatch"][1]
    hidden = models.mixtral_like().shape.hidden
    forward = plain[label] / 2  # the other half is the gradient, which stays as wide as it is
    assert less[label] == forward + forward * (hidden + 4) / (2 * hidden)


def test_letters_of_packets_count_their_scales():
    plan = models.plan(models.mixtral_like(), Layout(sp=2, ep=2))
    n = sizes(replace(plan, crossings=Crossings(scales="token")))
    assert (n.p, n.t, n.u) == (28 + 4, 16 + 4, 2 * (16 + 4))
    wide = replace(plan, shape=replace(plan.shape, hidden=140))
    assert sizes(replace(wide, crossings=Crossings(scales="block"))).p == 140 + 8
    assert all("u8" in widths for widths in WIDTHS.values())
