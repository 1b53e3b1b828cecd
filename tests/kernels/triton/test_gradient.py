"""The own term is rounded as if it had travelled, and the sum is not."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.comm.transports.symmetric import add_rounded as add_in_turn
from weft.kernels.triton import gradient
from weft.ops import gradient as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter cuts where it should round, and has no bfloat16 of its own
NARROW = torch.bfloat16 if DEVICE == "cuda" else torch.float16


def make_terms(ranks, size, position):
    generator = torch.Generator().manual_seed(size + position)
    terms = [torch.randn(size, generator=generator).to(DEVICE) for _ in range(ranks)]
    return [term if i == position else term.to(NARROW) for i, term in enumerate(terms)]


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("size", [1, 4095, 4096, 10_001])
def test_two_terms_have_the_bits_of_the_reference_also_in_place(size, position):
    terms = make_terms(2, size, position)
    expected = torch.empty(size, device=DEVICE)
    add_in_turn(terms, position, expected)
    assert not torch.equal(expected, terms[position] + terms[1 - position].float())
    gradient.add_rounded(terms, position, terms[position])
    assert torch.equal(terms[position], expected)


@pytest.mark.parametrize("size", [8, 4096, 10_008])
@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_blocks_have_the_bits_of_the_reference_in_the_memory_of_the_gradient(ranks, size):
    generator = torch.Generator().manual_seed(size + ranks)
    apart = torch.randn(ranks * size, generator=generator).mul(8).exp()  # sums are rounded
    blocks = torch.randn(ranks * size, generator=generator).mul(apart).to(DEVICE, torch.bfloat16)

    def summed(decode, terms):
        grad = torch.full((ranks * size,), torch.nan, device=DEVICE)
        received = grad.view(torch.bfloat16)[ranks * size :]
        received.copy_(terms)
        shard = decode(received, grad, ranks=ranks)
        assert shard.data_ptr() == grad.data_ptr()
        assert torch.equal(received, terms), "what has arrived is read, not written"
        return shard

    expected = summed(reference.decode_grad, blocks)
    assert torch.equal(summed(gradient.decode_grad, blocks), expected)
    if ranks > 2 and size > 8:
        backwards = blocks.view(ranks, size).flip(0).flatten()
        assert not torch.equal(summed(gradient.decode_grad, backwards), expected)


@pytest.mark.parametrize("ranks", [3, 5])
def test_more_terms_are_added_in_turn(ranks):
    terms = make_terms(ranks, 100, 1)
    expected, found = torch.empty(100, device=DEVICE), torch.empty(100, device=DEVICE)
    add_in_turn(terms, 1, expected)
    gradient.add_rounded(terms, 1, found)
    assert torch.equal(found, expected)
