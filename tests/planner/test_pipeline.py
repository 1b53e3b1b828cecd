import pytest

from weft.planner.pipeline import in_flight, run
from weft.schedule.pipeline import Pass, Pipeline, Work, order_of
from weft.schedule.stages import simulate


def cost(rank: int, work: Work) -> float:
    slow = 1.07 if rank == 14 else 1.0
    return slow * (1.0 if work.kind is Pass.FORWARD else 2.1)


@pytest.mark.parametrize(("order", "chunks"), [("1f1b", 1), ("interleaved", 4)])
@pytest.mark.parametrize("micro_batches", [15, 60, 180])
def test_a_long_run_takes_what_all_of_its_pieces_take(order: str, chunks: int, micro_batches: int):
    pipeline = Pipeline(order=order, stages=15, chunks=chunks, micro_batches=micro_batches)
    orders = [order_of(pipeline, rank) for rank in range(15)]
    whole = simulate(pipeline, orders, cost, hop=0.01)
    found = run(pipeline, cost, hop=0.01)
    assert found.seconds == pytest.approx(max(slot.stop for slot in whole))
    for rank in (0, 7, 14):
        ends = [s.stop for s in whole if s.rank == rank and s.work.kind is Pass.BACKWARD]
        last = max(found.last(rank, chunk) for chunk in range(chunks))
        assert last == pytest.approx(max(ends))


def test_an_odd_number_of_micro_batches_is_run_too():
    pipeline = Pipeline(stages=4, micro_batches=37)
    assert run(pipeline, lambda _, __: 1.0).seconds == pytest.approx(2 * 37 + 2 * 3)


def test_one_stage_has_no_bubble():
    assert run(Pipeline(micro_batches=100), lambda _, __: 1.0).seconds == pytest.approx(200)


def test_the_first_stage_holds_as_many_micro_batches_as_there_are_stages():
    pipeline = Pipeline(stages=8, micro_batches=32)
    assert [in_flight(pipeline, rank) for rank in (0, 3, 7)] == [8, 5, 1]


def test_chunks_shorten_the_bubble_and_hold_more():
    plain = Pipeline(stages=8, micro_batches=32)
    chunked = Pipeline(order="interleaved", stages=8, chunks=4, micro_batches=32)
    assert in_flight(chunked, 0) / 4 > in_flight(plain, 0)
    whole = run(plain, lambda _, __: 1.0).seconds
    assert run(chunked, lambda _, __: 0.25).seconds < whole
