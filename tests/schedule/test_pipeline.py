"""Orders of a pipeline: complete, in the order that sums need, their bubbles as in the formulas."""

from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest

from weft.errors import LayoutError
from weft.schedule.pipeline import Pass, Pipeline, Work, forwards, order_of, validate
from weft.schedule.stages import bubble, most_alive, render, simulate, units

GOLDEN = Path(__file__).parent / "golden"
DRAWN = (
    Pipeline(order="1f1b", stages=4, micro_batches=8),
    Pipeline(order="interleaved", stages=4, chunks=2, micro_batches=8),
    Pipeline(order="zero_bubble", stages=4, micro_batches=8),
    Pipeline(order="zero_bubble", stages=2, chunks=2, micro_batches=4),
)


def every_pipeline() -> list[Pipeline]:
    found = []
    for name, p, v, m in product(
        ("1f1b", "interleaved", "zero_bubble"), (1, 2, 3, 4, 8), (1, 2, 3), (1, 2, 6, 8, 24)
    ):
        pipeline = Pipeline(order=name, stages=p, chunks=v, micro_batches=m)
        if v == 1 or (name != "1f1b" and p > 1 and m % p == 0):
            found.append(pipeline)
    return found


EVERY = pytest.mark.parametrize(
    "pipeline",
    every_pipeline(),
    ids=lambda p: f"{p.order} p{p.stages} v{p.chunks} m{p.micro_batches}",
)


def orders(pipeline: Pipeline) -> list[tuple[Work, ...]]:
    return [order_of(pipeline, rank) for rank in range(pipeline.stages)]


@EVERY
def test_every_pass_over_every_chunk_happens_once(pipeline):
    kinds = [Pass.FORWARD, Pass.BACKWARD, *([Pass.WEIGHT] if pipeline.defers_weights else [])]
    wanted = {
        Work(*x) for x in product(kinds, range(pipeline.chunks), range(pipeline.micro_batches))
    }
    for order in orders(pipeline):
        assert len(order) == len(wanted)
        assert set(order) == wanted


@EVERY
def test_sums_run_in_ascending_micro_batches(pipeline):
    for order, kind, chunk in product(orders(pipeline), Pass, range(pipeline.chunks)):
        seen = [w.micro_batch for w in order if (w.kind, w.chunk) == (kind, chunk)]
        assert seen == sorted(seen)


@EVERY
def test_the_bubble_is_that_of_the_formula(pipeline):
    p, v, m = pipeline.stages, pipeline.chunks, pipeline.micro_batches
    found = bubble(simulate(pipeline, orders(pipeline), units(pipeline)))
    match pipeline.order:
        case "zero_bubble" if m >= p:
            assert found == pytest.approx(float(Fraction(p - 1, 3 * v * m + p - 1)))
        case "zero_bubble":  # too few micro-batches to fill with
            assert found <= float(Fraction(p - 1, v * m + p - 1)) + 1e-12
        case _:
            assert found == pytest.approx(float(Fraction(p - 1, v * m + p - 1)))


def test_weights_put_off_take_two_thirds_of_the_bubble_away():
    whole, split = (Pipeline(order=o, stages=8, micro_batches=32) for o in ("1f1b", "zero_bubble"))
    bubbles = [bubble(simulate(p, orders(p), units(p))) for p in (whole, split)]
    idle, less = (share / (1 - share) for share in bubbles)  # over the same work
    assert less == pytest.approx(idle / 3)


def test_1f1b_holds_no_more_micro_batches_than_stages_lie_ahead():
    pipeline = Pipeline(order="1f1b", stages=8, micro_batches=32)
    assert [most_alive(order) for order in orders(pipeline)] == list(range(8, 0, -1))


def test_weights_put_off_hold_no_more_than_the_first_stage_does():
    pipeline = Pipeline(order="zero_bubble", stages=8, micro_batches=32)
    assert max(most_alive(order) for order in orders(pipeline)) == 8


def test_evaluation_runs_the_chunks_of_a_micro_batch_in_turn():
    order = forwards(Pipeline(stages=2, chunks=2, micro_batches=1))
    assert [str(work) for work in order] == ["F0", "F0.1"]


@pytest.mark.parametrize("pipeline", DRAWN, ids=lambda p: f"{p.order}.{p.stages}.{p.chunks}")
def test_the_drawing_is_the_golden_one(pipeline):
    name = f"pipeline.{pipeline.order}.{pipeline.stages}.{pipeline.chunks}.txt"
    drawn = render(pipeline, simulate(pipeline, orders(pipeline), units(pipeline)))
    assert f"{drawn}\n" == (GOLDEN / name).read_text()


@pytest.mark.parametrize(
    ("pipeline", "rule"),
    [
        (Pipeline(order="1f1b", stages=2, chunks=2), "try parallel.pipeline = 'interleaved'"),
        (Pipeline(order="interleaved", chunks=2), "try parallel.chunks = 1"),
        (
            Pipeline(order="interleaved", stages=4, chunks=2, micro_batches=6),
            "parallel.pp = 4 does not divide the 6 micro-batches of a rank",
        ),
    ],
)
def test_an_order_that_does_not_exist_is_refused_with_a_way_out(pipeline, rule):
    with pytest.raises(LayoutError, match="parallel") as error:
        validate(pipeline)
    assert rule in str(error.value)
