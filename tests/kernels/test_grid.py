"""The host's arithmetic is Triton's."""

import pytest

pytest.importorskip("triton", reason="Triton is built for Linux alone")

import triton

from weft.kernels.grid import cdiv, next_power_of_2

EDGES = sorted({2**power + off for power in range(1, 41) for off in (-1, 0, 1)})


@pytest.mark.parametrize("block", [1, 3, 64, 4096])
def test_blocks_are_counted_as_triton_counts_them(block):
    for count in (0, *EDGES):
        assert cdiv(count, block) == triton.cdiv(count, block), count


def test_powers_are_those_of_triton():
    for count in [e for e in EDGES if e <= 2**31]:
        assert next_power_of_2(count) == triton.next_power_of_2(count), count
