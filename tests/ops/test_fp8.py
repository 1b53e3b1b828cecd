"""The codec of eight bits: its numbers against a table made by hand, its packets, its edges."""

import math

import pytest
import torch

from weft.ops import fp8
from weft.ops.rows import Splits

FLOATS = [torch.bfloat16, torch.float32, torch.float64]
FLOAT = pytest.mark.parametrize("dtype", FLOATS, ids=str)
INF, NAN = float("inf"), float("nan")


def e4m3() -> list[float]:
    """The 127 non-negative values: 4 bits of exponent over 7, 3 of mantissa."""
    small = [m * 2.0**-9 for m in range(8)]
    large = [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)]
    return [*small, *large][:-1]  # the last pattern is not a number


def nearest(value: float, table: list[float]) -> float:
    """The value of the table that is nearest, of two the one whose last bit is 0."""
    best = min(range(len(table)), key=lambda i: (abs(table[i] - abs(value)), i % 2))
    return math.copysign(table[best], value)


def test_a_payload_is_the_nearest_of_the_values_of_e4m3():
    values = torch.linspace(-448, 448, 4001, dtype=torch.float32)
    values = torch.cat((values, values / 1000, values / 1e5, torch.tensor([448.0])))
    payload, scale = fp8.quantise(values, 0)
    assert scale.item() == 1.0
    table = e4m3()
    assert payload.float().tolist() == [nearest(v, table) for v in values.tolist()]


@FLOAT
@pytest.mark.parametrize("dim", [0, 1])
def test_the_largest_of_a_group_comes_back_and_the_rest_within_a_sixteenth(dtype, dim):
    x = (torch.randn(40, 24, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    back = fp8.dequantise(*fp8.quantise(x, dim), dtype)
    largest = x.abs().argmax(dim, keepdim=True)
    rounding = 4 * torch.finfo(dtype).eps
    wide = [t.gather(dim, largest).double() for t in (back, x)]
    torch.testing.assert_close(*wide, rtol=max(rounding, 2**-22), atol=0)  # the scale is float32
    group = x.abs().amax(dim, keepdim=True).double()
    bound = x.abs().double() * (2**-4 + rounding) + group / 448 * 2**-10
    assert bool(((back.double() - x.double()).abs() <= bound).all())


@FLOAT
def test_zeros_are_zeros(dtype):
    x = torch.zeros(3, 5, dtype=dtype)
    x[1] = 2.0
    back = fp8.dequantise(*fp8.quantise(x, 1), dtype)
    assert torch.equal(back[[0, 2]], x[[0, 2]])
    torch.testing.assert_close(back, x, rtol=2**-22, atol=0)


@FLOAT
def test_nothing_that_shares_a_scale_with_a_value_that_is_not_finite_is_finite(dtype):
    for bad in (INF, -INF, NAN):
        x = torch.ones(3, 5, dtype=dtype)
        x[1, 2] = bad
        back = fp8.dequantise(*fp8.quantise(x, 1), dtype)
        assert not back[1].isfinite().any()
        torch.testing.assert_close(back[[0, 2]], x[[0, 2]], rtol=2**-22, atol=0)


def test_a_double_beyond_the_range_of_a_scale_is_not_hidden():
    x = torch.tensor([[1.0, 1e300]], dtype=torch.float64)
    assert not fp8.dequantise(*fp8.quantise(x, 1), torch.float64).isfinite().any()


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
def test_the_largest_number_of_a_dtype_stays_finite(dtype):
    x = torch.full((1, 2), torch.finfo(dtype).max, dtype=dtype)
    back = fp8.dequantise(*fp8.quantise(x, 1), dtype)
    torch.testing.assert_close(back, x)


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_subnormal_numbers_are_rounded_to_a_fixed_grid(dtype):
    tiny = torch.finfo(torch.float32).tiny
    x = torch.tensor([[448 * tiny, tiny / 512, tiny / 2048, -tiny]], dtype=dtype)
    back = fp8.dequantise(*fp8.quantise(x, 1), dtype)
    assert back.tolist() == [[448 * tiny, tiny / 512, 0.0, -tiny]]
    alone = fp8.dequantise(*fp8.quantise(x[:, 1:], 1), dtype)
    assert alone.tolist() == [[tiny / 512, 0.0, -tiny]], "a scale is never below the smallest"


@FLOAT
@pytest.mark.parametrize("columns", [24, 8, 7])
@pytest.mark.parametrize("rows", [5, 1, 0])
def test_rows_come_out_of_packets_as_rounded_by_block(dtype, columns, rows):
    x = torch.randn(rows, 24).to(dtype)
    packet = fp8.encode_rows(x, columns=columns)
    assert (packet.dtype, tuple(packet.shape)) == (torch.uint8, (rows, 24 + 4 * -(-24 // columns)))
    word = str(dtype).removeprefix("torch.")
    back = fp8.decode_rows(packet, columns=columns, width=24, dtype=word)
    assert back.dtype == dtype
    for part, wanted in zip(back.split(columns, 1), x.split(columns, 1), strict=True):
        assert torch.equal(part, fp8.dequantise(*fp8.quantise(wanted, 1), dtype))


@pytest.mark.parametrize("send", [(3, 5, 4), (0, 12, 0), (0, 0, 0), (8, 1, 0), (1, 0, 11)])
@pytest.mark.parametrize("reverse", [False, True])
def test_ragged_blocks_come_out_of_packets_as_rounded_by_channel(send, reverse):
    x = torch.randn(sum(send), 6, dtype=torch.float64)
    there = Splits(send=() if reverse else send, receive=send if reverse else ())
    here = Splits(send=send if reverse else (), receive=() if reverse else send)
    packet = fp8.encode_channels(x, there, reverse=reverse, group=4)
    assert len(packet) == sum(fp8.packet_rows(n, 4) for n in send)
    back = fp8.decode_channels(packet, here, reverse=reverse, group=4, dtype="float64")
    wanted = [
        fp8.dequantise(*fp8.quantise(group, 0), torch.float64)
        for block in x.split(list(send))
        for group in block.split(4)
        if len(group)
    ]
    assert torch.equal(back, torch.cat([x[:0], *wanted]))


@pytest.mark.parametrize("ranks", [1, 3])
def test_equal_blocks_are_ragged_ones_of_one_size(ranks):
    x = torch.randn(ranks * 5, 6)
    packet = fp8.encode_blocks(x, ranks=ranks, group=4)
    same = Splits(send=(5,) * ranks, receive=(5,) * ranks)
    assert torch.equal(packet, fp8.encode_channels(x, same, reverse=False, group=4))
    back = fp8.decode_blocks(packet, ranks=ranks, rows=5, group=4, dtype="float32")
    attrs = {"reverse": False, "group": 4, "dtype": "float32"}
    assert torch.equal(back, fp8.decode_channels(packet, same, **attrs))


def test_sums_over_ranks_are_in_rank_order_and_rounded_once():
    x = torch.randn(3 * 4, 6).to(torch.bfloat16)
    rows = {"columns": 6, "width": 6, "dtype": "bfloat16"}
    found = fp8.decode_row_sums(fp8.encode_rows(x, columns=6), ranks=3, **rows)
    parts = [fp8.dequantise(*fp8.quantise(part, 1), torch.float32) for part in x.split(4)]
    assert torch.equal(found, ((parts[0] + parts[1]) + parts[2]).to(torch.bfloat16))
    blocks = {"ranks": 3, "group": 4}
    packet = fp8.encode_blocks(x, **blocks)
    found = fp8.decode_block_sums(packet, rows=4, dtype="bfloat16", **blocks)
    parts = [fp8.dequantise(*fp8.quantise(part, 0), torch.float32) for part in x.split(4)]
    assert torch.equal(found, ((parts[0] + parts[1]) + parts[2]).to(torch.bfloat16))


def test_one_row_that_is_not_finite_spoils_its_own_packet_only():
    x = torch.ones(6, 4)
    x[4, 1] = NAN
    back = fp8.decode_rows(fp8.encode_rows(x, columns=4), columns=4, width=4, dtype="float32")
    assert back.isfinite().all(1).tolist() == [True] * 4 + [False, True]
    back = fp8.decode_blocks(
        fp8.encode_blocks(x, ranks=2, group=2), ranks=2, rows=3, group=2, dtype="float32"
    )
    assert back.isfinite().tolist()[:3] == [[True] * 4] * 3
    assert not back[3:5, 1].isfinite().any(), "one channel of one group"
    assert back[5].isfinite().all()


DATA = {
    "gaussian": lambda g: torch.randn(512, 1024, generator=g),
    "one large channel": lambda g: (
        torch.randn(512, 1024, generator=g) * (1 + 59 * (torch.arange(1024) % 128 == 5))
    ),
}


def error(x, dim=None, columns=None):
    y = torch.cat([
        fp8.dequantise(*fp8.quantise(part, dim), x.dtype)
        for part in (x.split(columns, 1) if columns else x.split(128))
    ], 1 if columns else 0)  # fmt: skip
    return float((y - x).norm() / x.norm())


@pytest.mark.parametrize("data", DATA)
def test_the_error_is_that_of_three_bits_of_mantissa(data):
    x = DATA[data](torch.Generator().manual_seed(0))
    for found in (error(x, 1, 1024), error(x, 1, 128), error(x, 0)):
        assert found < 0.03  # 2^-4 / sqrt(3) at most, 2.6 % measured on any bell
