"""Runs of a token that are shorter, as long, and longer than what is added at a time."""

import pytest
import torch

from weft.ops.linear import embed_wgrad as reference
from weft.testing.tolerance import require_close

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.kernels.triton.embedding import _ROWS, embed_wgrad

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("width", [24, 300])
@pytest.mark.parametrize(
    "lengths",
    [(1, 1, 1), (_ROWS,), (_ROWS - 1, _ROWS, _ROWS + 1), (5 * _ROWS + 3, 1), (3 * _ROWS, 0, 2)],
)
def test_every_position_of_a_token_is_added_once(lengths, width):
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.cat([torch.full((n,), token) for token, n in enumerate(lengths)])
    tokens = tokens[torch.randperm(len(tokens), generator=generator)]
    dx = torch.randn(len(tokens), width, generator=generator)
    acc = torch.randn(len(lengths) + 1, width, generator=generator)
    expected = reference(acc.double(), dx.double(), tokens)
    found = embed_wgrad(acc.to(DEVICE), dx.to(DEVICE), tokens.to(DEVICE))
    require_close(found.cpu(), expected, 1e-6, "acc")
    assert torch.equal(found[-1].cpu(), acc[-1])
