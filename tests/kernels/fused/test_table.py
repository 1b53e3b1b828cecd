"""Every fused body is the sequence that defines it, for every kind of routing."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from weft.errors import VerificationError
from weft.graph.fused import FUSED, Fused
from weft.ops.fused import in_sequence
from weft.ops.registry import reference_bodies
from weft.testing.case import Maker, routings, rows_of
from weft.testing.tolerance import gradient_bound, require_close

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.kernels.fused import wgrad
from weft.kernels.fused.table import fused_bodies

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NARROW = torch.bfloat16 if DEVICE == "cuda" else torch.float32
EXPERTS, D, F = 5, 72, 40  # neither a tile of columns nor a step of depth divides them
BODIES = {name: offer.body for name, offer in fused_bodies().items()}
FIRSTS = [name for name in FUSED if name.endswith("wgrad_first")]
ROUTINGS = ("random", "skewed", "empty_expert", "all_to_one", "no_tokens")


@pytest.fixture(autouse=True)
def _what_an_interpreter_lacks(monkeypatch):
    """It has no addition by the copy engine."""
    if DEVICE == "cpu":
        monkeypatch.setattr(wgrad, "DEFAULT", wgrad.Tile(copy_engine=False))


def operands(fused: Fused, routing: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    """What an operator reads by name, with maps of a routing, and its attributes."""
    maker = Maker(generator=torch.Generator().manual_seed(0), dtype=NARROW, device=DEVICE)
    chosen = routings(maker)[routing]
    tokens, top_k = chosen.shape
    order = maker.ints(rows_of(chosen, 0, EXPERTS))
    rows = order.shape[0]
    counts = torch.bincount(chosen.flatten().cpu(), minlength=EXPERTS)
    sizes = {"T": tokens, "R": rows, "D": D, "F": F, "2F": 2 * F, "L": EXPERTS, "k": top_k}
    known = {
        "order": order,
        "inverse": order.argsort(),
        "slot_row": order.argsort().view(chosen.shape),
        "ends": counts.cumsum(0).to(torch.int32).to(DEVICE),
    }
    drawn = {
        port.name: (maker.acc if port.kind == "acc" else maker.act)(
            *(sizes[term] for term in port.dims.split())
        )
        for port in fused.op.inputs
        if port.name not in known
    }
    gathers = any("top_k" in part.attributes for part in fused.parts)
    values = {name: {**known, **drawn}[name] for name in fused.reads}
    return values, {"top_k": top_k} if gathers else {}


def run(body, values: Mapping[str, Tensor], attributes: Mapping[str, int]) -> tuple[Tensor, ...]:
    made = body(*(x.clone() for x in values.values()), **attributes)
    return made if isinstance(made, tuple) else (made,)


def expected(fused: Fused, values: Mapping[str, Tensor], attributes) -> tuple[Tensor, ...]:
    """The sequence in float64."""
    wide = {n: x.double() if x.is_floating_point() else x for n, x in values.items()}
    return run(in_sequence(fused, reference_bodies()), wide, attributes)


def require_agreement(fused: Fused, values, attributes, wanted) -> None:
    bound = gradient_bound(fused.op.tolerance, NARROW, max(D, F, values["ends"][-1].item()))
    for actual, exact, port in zip(
        run(BODIES[fused.body], values, attributes), wanted, fused.op.outputs, strict=True
    ):
        assert actual.dtype == (torch.float32 if port.kind == "acc" else NARROW)
        require_close(actual, exact, bound, f"{fused.body} {port.name}")


def test_every_fused_operator_has_a_body():
    assert set(BODIES) == set(FUSED)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("name", FUSED)
def test_a_body_is_its_sequence(name, routing):
    fused = FUSED[name]
    values, attributes = operands(fused, routing)
    require_agreement(fused, values, attributes, expected(fused, values, attributes))


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("name", FIRSTS)
def test_a_first_gradient_has_the_bits_of_one_added_to_zeros(name, routing):
    values, attributes = operands(FUSED[name], routing)
    zeros = {**values, "acc": torch.zeros_like(values["acc"])}
    nothing = {**values, "acc": torch.full_like(values["acc"], torch.nan)}
    (written,) = run(BODIES[name], nothing, attributes)
    (added,) = run(BODIES[name.removesuffix("_first")], zeros, attributes)
    assert torch.equal(written, added)


@pytest.mark.parametrize("name", FUSED)
def test_another_routing_is_told_apart(name):
    """Sabotage: rows that end elsewhere belong to other experts."""
    fused = FUSED[name]
    values, attributes = operands(fused, "random")
    wanted = expected(fused, values, attributes)
    moved = values["ends"].clone()
    moved[1] += 2
    with pytest.raises(VerificationError):
        require_agreement(fused, {**values, "ends": moved}, attributes, wanted)


@pytest.mark.parametrize("name", [name for name in FUSED if "reorder" in name])
def test_the_way_back_is_told_apart(name):
    """Sabotage: the map of one direction in place of the other."""
    fused = FUSED[name]
    values, attributes = operands(fused, "random")
    wanted = expected(fused, values, attributes)
    crossed = {**values, "order": values["inverse"], "inverse": values["order"]}
    with pytest.raises(VerificationError):
        require_agreement(fused, crossed, attributes, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FUSED)
def test_two_runs_give_the_same_bits(name):
    values, attributes = operands(FUSED[name], "skewed")
    first, second = (run(BODIES[name], values, attributes) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
