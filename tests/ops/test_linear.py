"""Sums of gradients by token: one order, whatever the machine does beside it."""

import pytest
import torch

from weft.ops.linear import embed_wgrad, embed_wgrad_cpu

BODIES = {"reference": embed_wgrad, "cpu": embed_wgrad_cpu}


@pytest.fixture(params=BODIES)
def body(request):
    return BODIES[request.param]


def gradients():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, (3000,), generator=generator)
    return tokens, torch.randn(3000, 16, generator=generator)


def test_embedding_gradient_is_the_sequential_sum_bitwise(body):
    tokens, dx = gradients()
    expected = torch.zeros(5, 16)
    for token, row in zip(tokens.tolist(), dx, strict=True):
        expected[token] += row
    assert torch.equal(body(torch.zeros(5, 16), dx, tokens), expected)


def test_embedding_gradient_does_not_depend_on_the_number_of_threads(body):
    tokens, dx = gradients()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(body(torch.zeros(5, 16), dx, tokens))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_tokens_that_do_not_occur_keep_their_accumulator_bitwise(body):
    tokens, dx = gradients()
    acc = torch.randn(5, 16)
    before = acc.clone()
    body(acc, dx, tokens)
    assert torch.equal(acc[3:], before[3:])
    assert not torch.equal(acc[:3], before[:3])
