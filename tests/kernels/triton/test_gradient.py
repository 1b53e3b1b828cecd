"""The own term is rounded as if it had travelled, and the sum is not."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.comm.transports.symmetric import add_rounded as add_in_turn
from weft.kernels.triton import gradient

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


@pytest.mark.parametrize("ranks", [3, 5])
def test_more_terms_are_added_in_turn(ranks):
    terms = make_terms(ranks, 100, 1)
    expected, found = torch.empty(100, device=DEVICE), torch.empty(100, device=DEVICE)
    add_in_turn(terms, 1, expected)
    gradient.add_rounded(terms, 1, found)
    assert torch.equal(found, expected)
