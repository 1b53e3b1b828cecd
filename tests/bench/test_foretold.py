"""Operations are counted as a channel orders them, and what is hidden takes no time."""

import pytest

from weft.bench.foretold import foretell, render

SLOT = 1 << 24
MIB = 1 << 20
WIRE_US = 16 * MIB / 0.4e6


@pytest.mark.parametrize("name", ["all_gather", "all_to_all", "reduce_scatter", "gradients"])
def test_a_longer_call_takes_longer_and_none_beats_the_wire(name):
    times = [foretell(name, size << 20, slot_bytes=SLOT).us for size in (1, 4, 16, 64, 256)]
    assert times == sorted(times)
    assert all(us > size * MIB / 0.4e6 for us, size in zip(times, (1, 4, 16, 64, 256), strict=True))


def test_another_piece_costs_its_wire_and_its_start_alone():
    long, longer = (foretell("all_to_all", size * MIB, slot_bytes=SLOT).us for size in (512, 1024))
    pieces = 512 / 16
    assert (longer - long) / pieces == pytest.approx(WIRE_US + 4, rel=0.02)  # on one queue: + 14


def test_a_short_sum_calls_the_driver_for_a_copy_three_flags_and_its_end():
    found = foretell("reduce_scatter", 4 * MIB, slot_bytes=SLOT)
    assert (found.driver_calls, found.hops) == (6, 1)  # the sixth is the kernel that adds


def test_larger_slots_mean_fewer_calls():
    small, large = (foretell("all_gather", 256 * MIB, slot_bytes=SLOT << i) for i in range(2))
    assert large.driver_calls < small.driver_calls
    assert large.us < small.us


def test_a_table_has_a_line_for_each_call():
    table = render([("all_gather", MIB), ("gradients", 16 * MIB)], slot_bytes=SLOT)
    assert [line.split()[0] for line in table.splitlines()] == [
        "foretold,",
        "all_gather",
        "gradients",
    ]
