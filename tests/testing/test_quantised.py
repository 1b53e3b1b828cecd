"""The reference of an encoded wire rounds nothing that is not asked for, and both ways apart."""

from functools import partial

import pytest
import torch

from weft.compose.plan import Crossings
from weft.ops import fp8
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Layout
from weft.testing import models
from weft.testing.agreement import Work, first_difference, run_oracle
from weft.testing.quantised import Quantising, _cross

BODIES = reference_bodies()


def test_a_crossing_rounds_the_way_there_and_the_way_back_apart():
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def half(values):
        return fp8.dequantise(*fp8.quantise(values, 1), torch.float64)

    y = _cross(x, half, lambda grad: grad * 2)
    assert torch.equal(y, half(x.detach()))
    y.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))


@pytest.mark.parametrize("layout", [Layout(), Layout(sp=2, ep=2)], ids=Layout.name)
def test_without_encoding_it_is_one_rank_as_autograd_has_it(layout):

    model = models.mixtral_like()
    plans = partial(models.plan, model)
    work = Work(batches=partial(models.batches, model), steps=1)
    plan = plans(layout, 0)
    assert plan.crossings == Crossings()
    found = run_oracle(plans, work, bodies=BODIES, algebra=partial(Quantising, plan=plan))
    expected = run_oracle(plans, work, bodies=BODIES)
    assert first_difference(found, expected) in (None, *expected.gradients)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-10, atol=1e-14)
