"""A proof names its layouts, proves those that can exist, and reports what breaks."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.testing.conftest import RECIPE

from weft.comm.transport import Transport
from weft.config.load import build
from weft.config.run import RunConfig
from weft.errors import CommunicationError
from weft.parallel.layout import Dispatch, Layout
from weft.testing import shrink, verify
from weft.testing.findings import Length
from weft.testing.sabotage import SABOTAGES, Sabotage
from weft.testing.verify import LAYOUTS, QUICK_LAYOUTS, Case, Proof, prepare, prove

WHOLE = Length(float64=1, float32=1)  # enough to be asked for what is not of the reference
SHORT = Length(float64=2, float32=1)  # the second step is of a state that was updated


@pytest.fixture(autouse=True, scope="module")
def short() -> Iterator[None]:
    """Few steps: how many a user gets is seen by tests/system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "LENGTH", WHOLE)
        patch.setattr(verify, "QUICK_LENGTH", SHORT)
        yield


@pytest.fixture(scope="module")
def proof(config: RunConfig, short: None) -> Proof:
    return prepare(config, quick=True)


def laid_out(config: RunConfig, *overrides: str) -> RunConfig:
    return build(RECIPE, (f"data.path={config.data.path}", *overrides))


@pytest.mark.parametrize(
    ("layout", "processes"),
    [
        (Layout(dp=2, ep=2), True),
        (Layout(sp=4, ep=4, dispatch=Dispatch.ALL_GATHER), False),  # key/value heads are replicated
    ],
    ids=["gloo", "stacked"],
)
def test_a_layout_is_proved_over_gloo_and_stacked(
    proof: Proof, layout: Layout, processes: bool
) -> None:
    row = prove(proof, Case(layout=layout, processes=processes))
    assert row.faults == ()
    assert len(row.checks) == 11
    assert [found.rank for found in row.findings] == list(range(layout.world))


def test_layouts_that_cannot_exist_say_why(config: RunConfig) -> None:
    whole = prepare(laid_out(config, "model.heads=4", "model.layers=4"), quick=False)
    assert whole.reference.length == WHOLE
    cases = whole.cases
    assert [case.layout for case in cases] == list(LAYOUTS)
    impossible = {case.layout.name(): case.impossible for case in cases if case.impossible}
    assert impossible == {
        "sp8 ep8 all_to_all": "parallel.sp = 8: must divide model.heads (4)",
    }


def test_the_layout_of_the_recipe_comes_first_where_it_is_another(config: RunConfig) -> None:
    wide = laid_out(config, "parallel.sp=4", "parallel.ep=2")
    cases = prepare(wide, quick=True).cases
    assert [case.layout for case in cases] == [Layout(sp=4, ep=2), *QUICK_LAYOUTS]
    assert cases[0].wire == "4 gloo"


def test_a_layout_of_many_ranks_is_refused_and_not_tried(config: RunConfig) -> None:
    huge = laid_out(config, "parallel.dp=16", "train.micro_batch=1", "train.global_batch=16")
    first = prepare(huge, quick=True).cases[0]
    assert first.impossible == "16 ranks are more than the 8 that are proved here"


# the others show where a sequence is cut
ACROSS = {"balance": Layout(dp=2), "nodes": Layout(dp=4, node=2)}
CULPRITS = {
    "sync": ("grads64", r"layers\.1\.\w+ \(on rank 1\) is off by"),
    "nodes": ("grads64", r"layers\.1\.\w+ \(on rank 1\) is off by"),
    "experts": ("start", r"rank 1: layers\.0\.experts\.4\.gate does not start"),
    "order": ("data", r"rank 1: step 1 micro-batch 0 tokens is not its share"),
    "balance": ("loss64", r"balance loss of step 1 is off by 1,"),
    "doubled": ("grads64", r"layers\.\d\.experts\.\d\.down \(on rank \d\) is off by"),
    "drop": ("grads64", r"experts\.\d\.\w+ \(on rank \d\) is off by"),
}


EIGHT_BITS = tuple(
    f"compression.{crossing}=fp8"
    for crossing in ("dispatch", "combine", "dispatch_grad", "combine_grad")
)


@pytest.fixture(scope="module")
def eight(config: RunConfig, short: None) -> Proof:
    apart = ("parallel.sp=2", "parallel.ep=2")
    return prepare(laid_out(config, "model.layers=2", *apart, *EIGHT_BITS), quick=True)


@pytest.mark.parametrize("dispatch", [Dispatch.ALL_TO_ALL, Dispatch.ALL_GATHER])
def test_eight_bits_are_proved_against_one_rank_that_rounds_too(
    eight: Proof, dispatch: Dispatch
) -> None:
    layout = Layout(sp=2, ep=2, dispatch=dispatch)
    row = prove(eight, Case(layout=layout, processes=False))
    assert row.faults == ()
    assert row.checks[-1].name == "fp8"
    assert float(row.checks[-1].figure) > 0


@pytest.mark.parametrize("dispatch", [Dispatch.ALL_TO_ALL, Dispatch.ALL_GATHER])
def test_a_scale_that_one_rank_applies_twice_is_found(eight: Proof, dispatch: Dispatch) -> None:
    broken = replace(eight, course=replace(eight.course, sabotage=SABOTAGES["scale"]))
    layout = Layout(sp=2, ep=2, dispatch=dispatch)
    row = prove(broken, Case(layout=layout, processes=False))
    faults = {check.name: check.fault for check in row.faults}
    assert "in eight bits" in faults["fp8"]
    assert faults.keys() <= {"fp8", "replicas"}, "what is not in eight bits is right"


def test_layouts_that_have_no_eight_bits_are_skipped(config: RunConfig) -> None:
    wide = laid_out(config, "parallel.sp=2", "parallel.ep=2", "compression.combine=fp8")
    named = {case.layout.dispatch: case.impossible for case in prepare(wide, quick=False).cases}
    assert "needs parallel.dispatch" in named[Dispatch.DEDUPLICATED]


@pytest.mark.parametrize("fault", sorted(CULPRITS))
def test_a_sabotaged_layout_fails_and_names_the_culprit(proof: Proof, fault: str) -> None:
    broken = replace(proof, course=replace(proof.course, sabotage=SABOTAGES[fault]))
    row = prove(broken, Case(layout=ACROSS.get(fault, Layout(sp=2, ep=2)), processes=False))
    name, culprit = CULPRITS[fault]
    faults = {check.name: check.fault for check in row.faults}
    assert re.search(culprit, faults[name]), faults
    assert {"loss64", "grads64", "grads32"} <= faults.keys()  # what it computes is wrong as well


def test_every_sabotage_has_a_culprit_that_is_looked_for() -> None:
    assert SABOTAGES.keys() == CULPRITS.keys() | {
        "scale",
        "chunks",
    }  # which have tests of their own


def cut(transport: Transport, rank: int) -> Transport:
    if rank == 1:
        raise CommunicationError("the cable of rank 1 is cut")
    return transport


@pytest.mark.parametrize("processes", [True, False], ids=["gloo", "stacked"])
def test_a_layout_that_does_not_run_is_a_check_that_fails(proof: Proof, processes: bool) -> None:
    broken = replace(proof, course=replace(proof.course, sabotage=Sabotage(wire=cut)))
    row = prove(broken, Case(layout=Layout(dp=2), processes=processes))
    assert [check.name for check in row.faults] == ["runs"]
    assert "the cable of rank 1 is cut" in row.faults[0].fault


def test_one_rank_is_honest_whatever_the_sabotage(config: RunConfig, proof: Proof) -> None:
    broken = prepare(config, quick=True, sabotage=Sabotage(wire=cut))
    assert broken.reference.runs.keys() == proof.reference.runs.keys()
    assert broken.reference.length == SHORT


def test_a_pipeline_is_proved_and_its_swapped_chunk_found(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrink, "QUICK_LAYERS", 4)  # one for each part
    honest = prepare(laid_out(config, "model.layers=4"), quick=True)
    layout = Layout(pp=2, pipeline="interleaved", chunks=2)
    assert prove(honest, Case(layout=layout, processes=True)).faults == ()
    broken = replace(honest, course=replace(honest.course, sabotage=SABOTAGES["chunks"]))
    row = prove(broken, Case(layout=layout, processes=False))
    faults = {check.name: check.fault for check in row.faults}
    assert "rank 1: layers.1" in faults["start"]
    assert {"loss64", "grads64", "grads32"} <= faults.keys()
