"""AdamW on a shard, and the refusal of a step."""

import pytest
import torch

from weft.graph.opset import Tolerance
from weft.ops.optimizer import adamw, adamw_fused, decide, square_sum
from weft.testing.case import cases
from weft.testing.tolerance import GRADIENT_FLOAT64, relative_bound, require_close

BODIES = {"reference": adamw, "fused": adamw_fused}
BETAS = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}


@pytest.fixture(params=BODIES)
def body(request):
    return BODIES[request.param]


@pytest.mark.parametrize("decay", [0, 5, 12])
def test_ten_steps_are_those_of_torch(body, decay):
    generator = torch.Generator().manual_seed(3)
    master = torch.randn(12, dtype=torch.float64, generator=generator)
    mean, square = torch.zeros_like(master), torch.zeros_like(master)
    own = torch.zeros_like(master, dtype=torch.float32)
    decayed = master[:decay].clone().requires_grad_()
    plain = master[decay:].clone().requires_grad_()
    groups = [{"params": [decayed], "weight_decay": 0.1}, {"params": [plain], "weight_decay": 0.0}]
    peer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for step in range(1, 11):
        gradient = torch.randn(12, dtype=torch.float64, generator=generator)
        decayed.grad, plain.grad = 0.5 * gradient[:decay], 0.5 * gradient[decay:]
        peer.step()
        verdict = torch.tensor([0.5, 0.0], dtype=torch.float64)
        rates = (1e-2, 0.1, step)
        state = master, mean, square, own
        assert body(gradient, verdict, rates, *state, decay, **BETAS) is own
        assert torch.equal(own, master.to(own.dtype))
    require_close(master, torch.cat((decayed, plain)).detach(), GRADIENT_FLOAT64, "master")


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1.0])
def test_a_refused_step_leaves_every_bit(body, poison):
    """Negative zeros included, which adding nothing would change."""
    state = [torch.tensor([-0.0, 0.0, 1.5, -2.5]) for _ in range(3)]
    before = [x.view(torch.int32).clone() for x in state]
    shard, verdict = torch.full((4,), poison), torch.tensor([float("nan"), 1.0])
    body(shard, verdict, (1e-2, 0.1, 3), *state, torch.empty(4), 2, **BETAS)
    assert all(torch.equal(x.view(torch.int32), y) for x, y in zip(state, before, strict=True))


def test_the_gradient_is_left_as_it_was(body):
    shard, *rest = cases("adamw", torch.float32)["clipped"].inputs
    before = shard.clone()
    body(shard, *rest, **BETAS)
    assert torch.equal(shard, before)


def test_square_sums_of_shards_add_up():
    shard = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    norm2 = torch.zeros(1)
    for part in shard.split(700):
        assert square_sum(part, norm2) is norm2
    bound = relative_bound(Tolerance.REDUCTION, torch.float32, 700)
    require_close(norm2[0], shard.double().square().sum(), bound, "norm2")


@pytest.mark.parametrize(("norm", "factor"), [(4.0, 0.25), (1.0, 1.0), (0.5, 1.0), (0.0, 1.0)])
def test_only_long_gradients_are_clipped(norm, factor):
    stats = torch.tensor([1.0, 0.0, 0.0, norm * norm, 0.0, 0.0, 0.0, 7.0, 0.0])
    verdict = decide(stats, clip_norm=1.0)
    torch.testing.assert_close(verdict, torch.tensor([factor, 0.0]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_or_norm_that_is_not_finite_refuses_the_step(place, poison):
    stats = torch.ones(9)
    stats[4:7] = stats[-1] = 0
    assert decide(stats, clip_norm=1.0)[1] == 0
    stats[place] = poison
    assert decide(stats, clip_norm=1.0)[1] == 1


def test_a_row_without_room_refuses_the_step():
    stats = torch.zeros(9)
    assert decide(stats, clip_norm=1.0)[1] == 0
    stats[-1] = 1
    assert decide(stats, clip_norm=1.0)[1] == 1


@pytest.mark.parametrize(("loss", "norm2", "refused"), [(2, 9, 0), (2.1, 9, 1), (2, 9.1, 1)])
def test_a_loss_or_norm_above_its_bound_refuses_the_step(loss, norm2, refused):
    stats = torch.tensor([loss, 0.0, 0.0, norm2, 0.0, 1 / 2, 1 / 9, 7.0, 0.0])
    assert decide(stats, clip_norm=1.0)[1] == refused
