"""Rotations take any number of heads and channels, and sums over tokens any number of parts."""

import pytest
import torch

from weft.errors import VerificationError
from weft.graph.opset import OPS
from weft.ops import rope as reference
from weft.testing.tolerance import gradient_bound, require_close

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.kernels.triton import rope

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# heads of queries and keys, channels, those that turn, tokens: no powers of two, more than parts
SIZES = [
    (7, 1, 16, 16, 9),
    (5, 5, 24, 16, 3),
    (1, 1, 10, 6, 1),
    (3, 2, 8, 8, 11),
    (6, 2, 12, 12, 0),
]


@pytest.fixture(autouse=True)
def _few_parts(monkeypatch):
    monkeypatch.setattr(rope, "_PARTS", 4)


def operands(heads, kv_heads, channels, turning, tokens):
    maker = torch.Generator().manual_seed(heads * channels + tokens)

    def draw(*size):
        return torch.randn(*size, generator=maker).to(DEVICE)

    grads = [draw(tokens, n, channels) for n in (heads, kv_heads, kv_heads)]
    angles = draw(tokens, turning // 2).repeat(1, 2)
    qkv, rstd = draw(tokens, (heads + 2 * kv_heads) * channels), draw(tokens, heads + kv_heads)
    return grads, qkv, rstd, (angles.cos(), angles.sin()), [draw(channels), draw(channels)]


def weights(size, body, accs, grads, qkv, rstd, table):
    made = [x.clone() for x in accs]
    return body(*made, *grads, qkv, rstd, *table, heads=size[0], kv_heads=size[1], eps=0.0)


def widened(xs):
    return [x.double() for x in xs]


def bound(size):
    return gradient_bound(OPS["norm_rotate"].tolerance, torch.float32, size[0] * size[-1])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_of_any_shape_agree_with_float64(size):
    grads, qkv, rstd, table, norms = operands(*size)
    heads = {"heads": size[0], "kv_heads": size[1], "eps": 0.0}
    found = rope.norm_rotate_dgrad(*grads, qkv, *norms, rstd, *table, **heads)
    wide = widened([*grads, qkv, *norms, rstd, *table])
    require_close(found, reference.norm_rotate_dgrad(*wide, **heads), bound(size), "dqkv")
    found = weights(size, rope.norm_rotate_wgrad, norms, grads, qkv, rstd, table)
    wide = widened(norms), widened(grads), qkv.double(), rstd.double(), widened(table)
    expected = weights(size, reference.norm_rotate_wgrad, *wide)
    for name, actual, wanted in zip(("q_norm", "k_norm"), found, expected, strict=True):
        require_close(actual, wanted, bound(size), name)


def test_keys_that_add_to_the_norm_of_queries_are_caught():
    """Sabotage: the two sums swapped."""
    size = SIZES[0]
    grads, qkv, rstd, table, norms = operands(*size)
    honest = weights(size, rope.norm_rotate_wgrad, norms, grads, qkv, rstd, table)
    swapped = weights(size, rope.norm_rotate_wgrad, norms[::-1], grads, qkv, rstd, table)
    with pytest.raises(VerificationError):
        require_close(swapped[1], honest[0], bound(size), "q_norm")


def test_two_runs_give_the_same_bits():
    size = SIZES[3]
    grads, qkv, rstd, table, norms = operands(*size)
    first, second = (
        weights(size, rope.norm_rotate_wgrad, norms, grads, qkv, rstd, table) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))
