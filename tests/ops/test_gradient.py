"""Gradients in bfloat16: the arithmetic of a step of the wire, and not a byte more memory."""

import pytest
import torch

from weft.ops.gradient import add_block, decode_grad, encode_grad
from weft.testing.tolerance import relative_error

RANKS = 4


def gradient(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [8, 4096, 4104, 8192, 100_000])
def test_every_element_is_rounded_once_in_the_first_half_of_its_memory(size):
    grad = gradient(size)
    expected = grad.to(torch.bfloat16)
    sent = encode_grad(grad)
    assert sent.data_ptr() == grad.data_ptr()
    assert torch.equal(sent, expected)


def in_place(terms: list[torch.Tensor], owner: int) -> torch.Tensor:
    """What a rank makes of the terms of all ranks, in the memory of its own."""
    size = terms[0].numel()
    shard = size // len(terms)
    own = terms[owner]
    blocks = [term.to(torch.bfloat16)[owner * shard :][:shard] for term in terms]
    sent = encode_grad(own)
    received = own.view(torch.bfloat16)[size:]
    received.copy_(torch.cat(blocks))
    return decode_grad(received, own, ranks=len(terms)), sent


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_the_sum_is_made_in_fp32_in_rank_order_over_what_was_sent(ranks):
    terms = [gradient(ranks * 1024, seed) for seed in range(ranks)]
    expected = torch.zeros(1024)
    for term in terms:
        expected += term[1024:2048].to(torch.bfloat16)
    found, sent = in_place([term.clone() for term in terms], 1)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert found.data_ptr() == sent.data_ptr()


def test_a_sum_over_many_stretches_is_that_of_each_element():
    size = (1 << 20) + 40
    blocks = gradient(2 * size).to(torch.bfloat16)
    expected = blocks[:size].float() + blocks[size:].float()
    assert torch.equal(decode_grad(blocks, torch.empty(2 * size), ranks=2), expected)


def peak_growth(work) -> int:
    """Bytes that a CPU holds above its start while it works, by torch's own counter."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    now = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            highest = max(highest, now)
    return highest


def test_a_compressed_gradient_needs_no_memory_but_its_own():
    size = 1 << 22  # 16 MiB, of which what is copied at once may be a part
    grad = gradient(size)
    received = grad.view(torch.bfloat16)[size:]
    small = (1 << 20) * 4 + 2**16  # one widened stretch of a sum, and the first of the cast
    assert peak_growth(lambda: encode_grad(grad)) < 2**16
    assert peak_growth(lambda: decode_grad(received, grad, ranks=RANKS)) < small
    fresh = peak_growth(lambda: gradient(size).to(torch.bfloat16))
    assert fresh >= 2 * size, "the counter sees a copy where one is made"


def test_a_ring_rounds_at_every_hop_and_an_exchange_does_not():
    """Sabotage of the claim that they differ: at many ranks one is far worse than the other."""
    ranks = 64
    terms = [gradient(ranks * 512, seed) for seed in range(ranks)]
    exact = torch.stack([term[:512].double() for term in terms]).sum(0)
    partial = terms[0][:512].to(torch.bfloat16)
    for term in terms[1:]:
        partial = add_block(partial, term.to(torch.bfloat16), block=0)
    exchanged, _ = in_place([term.clone() for term in terms], 0)
    assert relative_error(partial, exact) > 4 * relative_error(exchanged, exact)
