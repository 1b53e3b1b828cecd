import pytest

from weft.errors import DeadlockError
from weft.schedule.pipeline import Pass, Pipeline, Work, order_of
from weft.schedule.stages import bubble, most_alive, render, simulate, units

PIPELINE = Pipeline(order="1f1b", stages=2, micro_batches=2)
ORDERS = [order_of(PIPELINE, rank) for rank in range(2)]


def test_a_piece_starts_when_its_rank_is_free_and_its_message_there():
    slots = {
        (s.rank, str(s.work)): (s.start, s.stop)
        for s in simulate(PIPELINE, ORDERS, units(PIPELINE))
    }
    assert slots[1, "F0"] == (1, 2)
    assert slots[1, "B0"] == (2, 4)
    assert slots[0, "B0"] == (4, 6)


def test_a_hop_delays_what_comes_over_the_wire():
    slots = simulate(PIPELINE, ORDERS, units(PIPELINE), hop=0.5)
    assert next(s.start for s in slots if (s.rank, str(s.work)) == (1, "F0")) == 1.5


def test_an_order_that_cannot_run_is_named():
    backwards = [tuple(reversed(order)) for order in ORDERS]
    with pytest.raises(DeadlockError, match="rank 0 at B1, rank 1 at B1"):
        simulate(PIPELINE, backwards, units(PIPELINE))


def test_one_stage_has_no_bubble():
    alone = Pipeline(micro_batches=3)
    assert bubble(simulate(alone, [order_of(alone, 0)], units(alone))) == 0


def test_activations_live_until_the_weight_gradient_where_there_is_one():
    f, b, w = (Work(kind, 0, 0) for kind in Pass)
    g = Work(Pass.FORWARD, 0, 1)
    assert most_alive((f, b, g)) == 1
    assert most_alive((f, b, g, w)) == 2


def test_a_long_drawing_goes_on_in_blocks():
    pipeline = Pipeline(order="1f1b", stages=2, micro_batches=24)
    orders = [order_of(pipeline, rank) for rank in range(2)]
    lines = render(pipeline, simulate(pipeline, orders, units(pipeline))).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("rank 1") for line in lines) == 4


def test_times_of_any_length_are_drawn_to_scale():
    slots = simulate(
        PIPELINE, ORDERS, lambda _, work: 0.001 if work.kind is Pass.FORWARD else 0.002
    )
    assert (
        render(PIPELINE, slots, columns=9).splitlines()[2] == "rank 0   F0 F1 .  .  B0 =  .  B1 ="
    )
