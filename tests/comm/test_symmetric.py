"""Where flags and slots lie in an arena: every pair's in one place on both ends, and nowhere twice.

What needs two GPUs is in `tests/comm/transports/test_symmetric.py`.
"""

import pytest
import torch

from weft.comm.exchange import SLOTS, Flag
from weft.comm.symmetric import _flag_at, _flags_bytes, _slots, arena_bytes_of, slot_bytes_of


@pytest.mark.parametrize("size", [2, 3, 8])
def test_slots_of_all_writers_fill_an_arena_without_overlap(size):
    slot_bytes = 4096
    arena = torch.zeros(arena_bytes_of(slot_bytes, size), dtype=torch.uint8)
    for owner in range(size):
        arena.zero_()
        for writer in range(size):
            if writer != owner:
                for slot in _slots(arena, writer, owner, size, slot_bytes):
                    slot.add_(1)
        assert arena[: _flags_bytes(size)].sum() == 0
        assert torch.equal(arena[_flags_bytes(size) :].unique(), torch.tensor([1]).byte())


def test_every_flag_has_a_line_of_its_own_before_the_slots():
    places = [_flag_at(member, flag) for member in range(8) for flag in Flag]
    assert len(set(places)) == 16
    assert all(place % 128 == 0 for place in places)
    assert max(places) < _flags_bytes(8)


@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_slots_take_no_more_than_the_arena_and_keep_to_pages(size):
    slot_bytes = slot_bytes_of(1 << 26, size)
    assert slot_bytes % 4096 == 0
    assert slot_bytes * SLOTS * (size - 1) <= 1 << 26
    assert slot_bytes_of(1, size) == 4096
