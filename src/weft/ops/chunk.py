"""Chunks of a tensor and the whole of chunks, where an operator and its collective are cut in parts
(`schedule.decompose`).

    rows, columns     equal stretches of a dim
    blocks            dim 0 is a block for each rank of a group, and a chunk is a stretch of each
    experts' rows     lie by expert, source rank and token, so a chunk's rows are spread over all:
                      `places` says which row of the whole each row of the chunks, end to end, is
"""

import torch
from torch import Tensor

from weft.ops.rows import Splits


def slice_chunk(x: Tensor, *, dim: int, chunk: int, chunks: int) -> Tensor:
    """Returns one of equal stretches of a dim, as a view."""
    size = x.shape[dim] // chunks
    return x.narrow(dim, chunk * size, size)


def join_chunks(*parts: Tensor, dim: int) -> Tensor:
    """Returns all stretches of a dim, end to end."""
    return torch.cat(parts, dim=dim)


def take_blocks(x: Tensor, *, blocks: int, chunk: int, chunks: int) -> Tensor:
    """Returns the same stretch of every block of dim 0.

    Shapes:
        x [blocks chunks n, ...] -> [blocks n, ...]
    """
    return x.unflatten(0, (blocks, chunks, -1))[:, chunk].flatten(0, 1)


def join_blocks(*parts: Tensor, blocks: int) -> Tensor:
    """Returns blocks of dim 0 put together from a stretch of each."""
    return torch.stack([part.unflatten(0, (blocks, -1)) for part in parts], dim=1).flatten(0, 2)


def merge_rows(places: Tensor, *parts: Tensor) -> Tensor:
    """Returns the rows of all chunks where the whole has them.

    Shapes:
        places [R], parts [R_i, ...] with R rows in all -> [R, ...]
    """
    out = parts[0].new_empty(places.shape[0], *parts[0].shape[1:])
    for part, there in zip(parts, places.split([len(part) for part in parts]), strict=True):
        out.index_copy_(0, there, part)
    return out


def place_gathered(order: Tensor, *, tokens: int, chunks: int, top_k: int) -> Tensor:
    """Returns where the rows of the chunks are in the whole; each rank gathered `tokens` tokens.

    Shapes:
        order [R], the choice behind each row -> places [R]
    """
    chunk = (order // top_k) % tokens // (tokens // chunks)
    return chunk.sort(stable=True).indices


def place_received(splits: Splits, *received: Tensor) -> Tensor:
    """Returns where the rows of the chunks are in the whole, from the counts of what each brought.

    A run is the rows of one chunk, expert and source rank, and stays together: chunks have theirs
    by (expert, source), the whole by (expert, source, chunk).

    Shapes:
        received, a chunk, [Y, L] rows from each rank for each expert -> places [R]
    """
    runs = torch.stack(received).transpose(1, 2)  # [chunks, L, Y]
    ahead = (1, 2, 0)
    whole = _starts(runs.permute(ahead)).permute(2, 0, 1)
    moved = (whole - _starts(runs)).flatten()
    total = sum(splits.receive)
    shift = moved.repeat_interleave(runs.flatten(), output_size=total)
    return torch.arange(total, device=runs.device) + shift


def all_rows_to_host(*counts: Tensor) -> tuple[int, ...]:
    """Returns the number of rows of each of several maps, by one copy from device to host."""
    return tuple(torch.stack(counts).sum(1).tolist())


def all_splits_to_host(*pairs: Tensor) -> tuple[Splits, ...]:
    """Returns the splits of several exchanges, by one copy from device to host.

    Shapes:
        of each sent [E], received [Y, L]
    """
    sent, received = torch.stack(pairs[::2]), torch.stack(pairs[1::2])
    ranks = received.shape[1]
    both = torch.stack((sent.unflatten(1, (ranks, -1)).sum(2), received.sum(2)), dim=1)
    return tuple(Splits(send=tuple(send), receive=tuple(came)) for send, came in both.tolist())


def _starts(runs: Tensor) -> Tensor:
    """Where each run begins if they lie in the order of their dims."""
    flat = runs.flatten()
    return (flat.cumsum(0) - flat).view(runs.shape)
