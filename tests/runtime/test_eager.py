import pytest
import torch
from torch.nn import functional as F

from weft.ops.registry import reference_bodies
from weft.parallel.layout import Layout
from weft.runtime.eager import Immediate, Oracle
from weft.testing import agreement, models

FAMILY = pytest.mark.parametrize("family", models.FAMILIES)


def oracle(family: str) -> Oracle:
    model = models.FAMILIES[family]
    (stage,) = agreement.stack(
        lambda layout, rank: models.plan(model, layout, rank), Layout(), bodies=reference_bodies()
    ).stages
    statics = stage.state.statics
    weights = {p.name: statics[f"param:{p.name}"] for p in stage.step.parameters}
    for i in range(model.shape.layers):
        for name in ("router_bias", "past_load"):
            weights[f"layers.{i}.{name}"] = statics[f"state:layers.{i}.{name}"]
    return Oracle(plan=stage.plan, bodies=reference_bodies(), weights=weights)


def batch(family: str, seed: int = 0):
    made = oracle(family)
    return made, agreement.share(made.plan, models.micro_batch(61, seed=(seed,)))


@FAMILY
def test_the_loss_is_the_cross_entropy_of_the_logits(family):
    o, b = batch(family)
    expected = F.cross_entropy(o.logits(b), b.targets, reduction="sum") / 7
    torch.testing.assert_close(o.losses(b, 7.0)[0], expected, rtol=1e-12, atol=0)


@FAMILY
def test_logits_are_those_of_every_token(family):
    o, b = batch(family)
    assert o.logits(b).shape == (32, 61)


@FAMILY
def test_later_tokens_and_other_documents_change_nothing(family):
    o, b = batch(family)
    before = o.logits(b)
    first_end = b.segments.ends[0]
    tokens = b.tokens.clone()
    tokens[first_end:] = (tokens[first_end:] + 1) % 61
    changed = type(b)(tokens=tokens, targets=b.targets, positions=b.positions, segments=b.segments)
    after = o.logits(changed)
    torch.testing.assert_close(after[:first_end], before[:first_end], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after[first_end:], before[first_end:])


def test_a_dense_layer_has_no_balance_loss_and_the_routed_ones_have():
    o, b = batch("deepseek")
    assert bool((o.losses(b, 1.0)[1:] > 0).all())


def test_one_output_is_a_tuple_too():
    (z,) = Immediate(reference_bodies()).call("add", torch.ones(2), torch.ones(2))
    assert z.tolist() == [2, 2]
