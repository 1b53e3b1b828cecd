"""Values in eight bits (E4M3) and their scales, packed into the rows that travel.

A scale is shared by some elements of a row, or by some rows of a column:

    by row       scale_rb = amax over columns b of row r / 448      packet [R, D + 4 s]
    by channel   scale_gc = amax over rows g of column c / 448      packet [R + 4 groups, D]

    payload = e4m3(x / scale)       x' = payload scale

so a packet is one tensor of bytes, its FP32 scales at the end of each row, or, seen as four rows of
bytes each, behind the rows of each block. A block is what travels between two ranks: no group of
rows crosses it, and each rank can decode what it gets alone.

Numerics:
    E4M3 has 448 as its largest value and 2^-9 as its smallest; its relative error is at most 2^-4
    down to 2^-6, below that the absolute one is at most 2^-10. A scale is never below the smallest
    normal float32, so rows of zeros are rows of zeros, and what is far below its neighbours (by
    2^-18) is rounded to zero. Where a value is not finite, nothing that shares its scale is.
    Sums of decoded values are in the accumulation dtype, in rank order, rounded once.

Paper: 4.2 (rows forward, channels in groups of 128 tokens backward); scales of 1 x 128 as in
DeepSeek-V3 (arXiv 2412.19437), 3.3.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.ops.precision import accumulation_dtype
from weft.ops.rows import Splits

PAYLOAD = torch.float8_e4m3fn
LARGEST = 448.0  # of E4M3: 1.75 2^8
SCALE = torch.float32  # the wire's, whatever is computed in
SCALE_BYTES = 4


# ---- one scale ----


def quantise(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Returns the payload and the scales of values that share one along `dim`.

    Shapes:
        x [..., n, ...] -> payload the same, scale with 1 for n; n may be 0
    """
    amax = x.abs().amax(dim, keepdim=True) if x.shape[dim] else x.abs().sum(dim, keepdim=True)
    scale = (amax.to(accumulation_dtype(x.dtype)) / LARGEST).to(SCALE)
    scale = scale.clamp_min(torch.finfo(SCALE).tiny)  # not a number stays what it is
    return (x.to(accumulation_dtype(x.dtype)) / scale).to(PAYLOAD), scale


def dequantise(payload: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the values of a payload in a dtype."""
    return (payload.to(accumulation_dtype(dtype)) * scale).to(dtype)


# ---- scales by row ----


def encode_rows(x: Tensor, *, columns: int) -> Tensor:
    """Returns each row as a packet, a scale for every `columns` elements.

    Shapes:
        x [R, D] -> packet [R, D + 4 ceil(D / columns)]
    """
    payload, scale = quantise(_blocked(x, columns), -1)
    flat = payload.flatten(1)[:, : x.shape[1]].view(torch.uint8)
    return torch.cat((flat, scale.flatten(1).view(torch.uint8)), 1)


def decode_rows(packet: Tensor, *, columns: int, width: int, dtype: str) -> Tensor:
    """Returns the rows of packets.

    Shapes:
        packet [R, p] -> x [R, width]
    """
    return _open_rows(packet, columns, width, getattr(torch, dtype))


def decode_row_sums(packet: Tensor, *, columns: int, width: int, dtype: str, ranks: int) -> Tensor:
    """Returns the sum over ranks of their blocks of rows.

    Shapes:
        packet [ranks T, p] -> z [T, width]
    """
    act = getattr(torch, dtype)
    return _summed(_open_rows(packet, columns, width, accumulation_dtype(act)), ranks).to(act)


def _open_rows(packet: Tensor, columns: int, width: int, dtype: torch.dtype) -> Tensor:
    payload = _blocked(packet[:, :width].contiguous(), columns).view(PAYLOAD)
    scale = _aligned(packet[:, width:]).view(SCALE).unsqueeze(-1)
    return dequantise(payload, scale, dtype).flatten(1)[:, :width]


def _blocked(x: Tensor, columns: int) -> Tensor:
    """Rows as blocks of columns, the last one filled up with zeros. Shapes: [R, s, columns]."""
    short = -x.shape[1] % columns
    return (F.pad(x, (0, short)) if short else x).unflatten(1, (-1, columns))


# ---- scales by channel ----


def encode_channels(x: Tensor, splits: Splits, *, reverse: bool, group: int) -> Tensor:
    """Returns ragged blocks of rows as packets, a scale for every `group` rows of a column.

    Shapes:
        x [O, D] -> packet [O + 4 groups, D]
    """
    return _close_blocks(x, splits.receive if reverse else splits.send, group)


def decode_channels(
    packet: Tensor, splits: Splits, *, reverse: bool, group: int, dtype: str
) -> Tensor:
    """Returns the rows of ragged blocks that arrived.

    Shapes:
        packet [R + 4 groups, D] -> x [R, D]
    """
    blocks = splits.send if reverse else splits.receive
    return _open_blocks(packet, blocks, group, getattr(torch, dtype))


def encode_blocks(x: Tensor, *, ranks: int, group: int) -> Tensor:
    """Returns equal blocks of rows as packets, a scale for every `group` rows of a column.

    Shapes:
        x [ranks b, D] -> packet [ranks (b + 4 groups), D]
    """
    return _close_blocks(x, (x.shape[0] // ranks,) * ranks, group)


def decode_blocks(packet: Tensor, *, ranks: int, rows: int, group: int, dtype: str) -> Tensor:
    """Returns the rows of equal blocks.

    Shapes:
        packet [ranks (rows + 4 groups), D] -> x [ranks rows, D]
    """
    return _open_blocks(packet, (rows,) * ranks, group, getattr(torch, dtype))


def decode_block_sums(packet: Tensor, *, ranks: int, rows: int, group: int, dtype: str) -> Tensor:
    """Returns the sum over ranks of their equal blocks.

    Shapes:
        packet [ranks (rows + 4 groups), D] -> z [rows, D]
    """
    act = getattr(torch, dtype)
    whole = _open_blocks(packet, (rows,) * ranks, group, accumulation_dtype(act))
    return _summed(whole, ranks).to(act)


def packet_rows(rows: int, group: int) -> int:
    """The rows of a packet by channel: those of the block, and four for the scales of each group.

    Example:
        >>> packet_rows(0, 128), packet_rows(128, 128), packet_rows(129, 128)
        (0, 132, 137)
    """
    return rows + SCALE_BYTES * -(-rows // group)


def _close_blocks(x: Tensor, blocks: Sequence[int], group: int) -> Tensor:
    parts = [x.new_empty(0, x.shape[1], dtype=torch.uint8)]
    for block in x.split(list(blocks)):
        packed = [quantise(share, 0) for share in _groups(block, group)]
        parts.extend(payload.view(torch.uint8) for payload, _ in packed)
        parts.extend(scale.view(torch.uint8).view(SCALE_BYTES, -1) for _, scale in packed)
    return torch.cat(parts)


def _open_blocks(packet: Tensor, blocks: Sequence[int], group: int, dtype: torch.dtype) -> Tensor:
    parts = [packet.new_empty(0, packet.shape[1], dtype=dtype)]
    for block, rows in zip(
        packet.split([packet_rows(n, group) for n in blocks]), blocks, strict=True
    ):
        payload, scales = block.split([rows, len(block) - rows])
        whole = _aligned(scales).view(-1, SCALE_BYTES * packet.shape[1])
        each = whole.view(SCALE).unsqueeze(1)
        shares = _groups(payload.view(PAYLOAD), group)
        parts.extend(dequantise(p, s, dtype) for p, s in zip(shares, each, strict=True))
    return torch.cat(parts)


def _aligned(scales: Tensor) -> Tensor:
    """The bytes of scales where they may be read as such, which a view of a packet may not."""
    return scales.clone(memory_format=torch.contiguous_format)


def _groups(block: Tensor, group: int) -> Iterator[Tensor]:
    return (block[i : i + group] for i in range(0, len(block), group))


def _summed(rows: Tensor, ranks: int) -> Tensor:
    first, *others = rows.unflatten(0, (ranks, -1))
    total = first.clone()
    for other in others:
        total += other
    return total
