"""Every row of every expert is in one tile, and no tile has rows of two experts."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.kernels.fused.tiles import most_tiles, row_tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COUNTS = {
    "even": [64, 64, 64],
    "ragged": [1, 63, 65, 0, 200, 128],
    "one expert has all": [0, 0, 515, 0],
    "nothing": [0, 0, 0],
    "many experts": [3] * 130,
    "one row each but the first": [0, 1, 1, 1],
}


def table_of(counts: list[int], size: int) -> list[list[int]]:
    ends = torch.tensor(counts).cumsum(0).to(torch.int32).to(DEVICE)
    return row_tiles(ends, sum(counts), size).tolist()


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("label", COUNTS)
def test_tiles_are_the_rows_of_experts_in_order(label, size):
    counts = COUNTS[label]
    wanted, start = [], 0
    for expert, count in enumerate(counts):
        stop = start + count
        wanted += [[expert, at, min(at + size, stop)] for at in range(start, stop, size)]
        start = stop
    found = table_of(counts, size)
    assert len(found) == most_tiles(sum(counts), len(counts), size)
    assert [tile for tile in found if tile[2] > tile[1]] == wanted
    assert found[: len(wanted)] == wanted, "tiles without rows are the last ones"


def test_a_bound_that_counts_no_part_of_a_tile_is_too_small():
    """Sabotage: whole tiles alone would leave the rest of every expert out."""
    counts = COUNTS["ragged"]
    whole = sum(counts) // 64
    assert sum(1 for _, start, stop in table_of(counts, 64) if stop > start) > whole
