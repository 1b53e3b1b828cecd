"""Chunks and wholes undo each other; merged rows are where a map of the whole has them."""

import pytest
import torch

from weft.ops.chunk import (
    join_blocks,
    join_chunks,
    merge_rows,
    place_gathered,
    place_received,
    slice_chunk,
    take_blocks,
)
from weft.ops.rows import Splits, plan_local, plan_received, plan_rows
from weft.testing import routing

RANKS, TOKENS, EXPERTS, TOP_K = 3, 12, 6, 2
SHARE = EXPERTS // RANKS
CHUNKS = pytest.mark.parametrize("chunks", [2, 3, 4])
GENERATOR = pytest.mark.parametrize("generator", routing.GENERATORS)


def choices(generator: str) -> torch.Tensor:
    made = routing.GENERATORS[generator](RANKS * TOKENS, EXPERTS, TOP_K, 1)
    return torch.from_numpy(made)


@CHUNKS
@pytest.mark.parametrize("dim", [0, 1])
def test_stretches_of_a_dim_join_to_the_whole(dim, chunks):
    x = torch.randn(12, 24, 2)
    parts = [slice_chunk(x, dim=dim, chunk=i, chunks=chunks) for i in range(chunks)]
    assert torch.equal(join_chunks(*parts, dim=dim), x)


def test_a_stretch_is_a_view():
    x = torch.randn(4, 4)
    assert slice_chunk(x, dim=1, chunk=1, chunks=2).data_ptr() == x[:, 2:].data_ptr()


@CHUNKS
def test_stretches_of_blocks_join_to_the_whole(chunks):
    x = torch.randn(RANKS * 12, 5)
    parts = [take_blocks(x, blocks=RANKS, chunk=i, chunks=chunks) for i in range(chunks)]
    assert torch.equal(join_blocks(*parts, blocks=RANKS), x)


@CHUNKS
def test_a_chunk_of_blocks_has_a_stretch_of_every_rank(chunks):
    x = torch.arange(RANKS * 12)
    part = take_blocks(x, blocks=RANKS, chunk=1, chunks=chunks)
    size = 12 // chunks
    assert part.tolist() == [12 * r + size + t for r in range(RANKS) for t in range(size)]


@CHUNKS
@GENERATOR
@pytest.mark.parametrize("rank", range(RANKS))
def test_gathered_rows_merge_to_those_of_the_whole(rank, generator, chunks):
    chosen = choices(generator)
    mine = {"first": rank * SHARE, "local": SHARE}

    def rows_of(chosen, tokens):
        count = int(((chosen >= mine["first"]) & (chosen < mine["first"] + SHARE)).sum())
        order, _, _ = plan_local(chosen, count, **mine)
        return order, tokens[order // TOP_K]

    tokens = torch.arange(len(chosen))
    order, whole = rows_of(chosen, tokens)
    parts = []
    for i in range(chunks):
        cut = {"blocks": RANKS, "chunk": i, "chunks": chunks}
        parts.append(rows_of(take_blocks(chosen, **cut), take_blocks(tokens, **cut))[1])
    places = place_gathered(order, tokens=TOKENS, chunks=chunks, top_k=TOP_K)
    assert torch.equal(merge_rows(places, *parts), whole)


@CHUNKS
@GENERATOR
@pytest.mark.parametrize("rank", range(RANKS))
def test_exchanged_rows_merge_to_those_of_the_whole(rank, generator, chunks):
    chosen = choices(generator).view(RANKS, TOKENS, TOP_K)
    numbers = torch.arange(chosen.numel()).view(chosen.shape)

    def arrive(chosen, numbers):
        """What this rank gets from all, by expert and source, each row a choice's number."""
        sent = []
        for own, named in zip(chosen, numbers, strict=True):
            order, _, counts, _ = plan_rows(own, experts=EXPERTS)
            first, last = (counts[: (rank + i) * SHARE].sum() for i in (0, 1))
            sent.append((named.flatten()[order][first:last], counts.view(RANKS, -1)[rank]))
        received = torch.stack([counts for _, counts in sent])
        splits = Splits(send=(), receive=tuple(received.sum(1).tolist()))
        order, _, _ = plan_received(received, splits)
        return torch.cat([rows for rows, _ in sent])[order], received, splits

    whole, _, splits = arrive(chosen, numbers)
    parts = [
        arrive(*(slice_chunk(x, dim=1, chunk=i, chunks=chunks) for x in (chosen, numbers)))
        for i in range(chunks)
    ]
    places = place_received(splits, *(received for _, received, _ in parts))
    assert torch.equal(merge_rows(places, *(rows for rows, _, _ in parts)), whole)


def test_chunks_merged_in_another_order_are_told_apart():
    """The sabotage control."""
    order, _, _ = plan_local(choices("balanced"), 24, first=0, local=SHARE)
    places = place_gathered(order, tokens=TOKENS, chunks=2, top_k=TOP_K)
    one, two = torch.arange(24.0)[:, None].split(12)
    assert not torch.equal(merge_rows(places, one, two), merge_rows(places, two, one))
