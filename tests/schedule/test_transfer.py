"""Messages of a pipeline: every one sent, received and waited for once, and nobody stands still."""

from collections import Counter
from itertools import product

import pytest

from weft.errors import DeadlockError
from weft.schedule.pipeline import Pass, Pipeline, Work, order_of
from weft.schedule.transfer import Message, Move, Verb, check, makes, needs, pieces, target

PIPELINES = [
    Pipeline(order=order, stages=p, chunks=v, micro_batches=m)
    for order, p, v, m in product(
        ("1f1b", "interleaved", "zero_bubble"), (1, 2, 3, 4), (1, 2), (1, 2, 12)
    )
    if v == 1 or (order != "1f1b" and p > 1 and m % p == 0)
]
EVERY = pytest.mark.parametrize("pipeline", PIPELINES, ids=str)


def ranks(pipeline: Pipeline) -> list[tuple[Work | Move, ...]]:
    orders = [order_of(pipeline, rank) for rank in range(pipeline.stages)]
    return [pieces(pipeline, orders, rank) for rank in range(pipeline.stages)]


@EVERY
def test_nobody_stands_still_on_the_strictest_wire(pipeline):
    check(ranks(pipeline))


@EVERY
def test_every_message_is_sent_received_and_waited_for_once(pipeline):
    moves = [(p.verb, p.message) for row in ranks(pipeline) for p in row if isinstance(p, Move)]
    edges = pipeline.virtual_stages - 1
    assert set(Counter(moves).values()) <= {1}
    assert Counter(verb for verb, _ in moves) == {
        verb: 2 * edges * pipeline.micro_batches for verb in Verb if edges
    }


@EVERY
def test_both_ends_of_a_link_have_its_messages_in_one_order(pipeline):
    rows = ranks(pipeline)

    def on(rank: int, verb: Verb, peer: int, kind: Pass) -> list[Message]:
        moves = (p for p in rows[rank] if isinstance(p, Move))
        return [m.message for m in moves if (m.verb, m.peer, m.message.kind) == (verb, peer, kind)]

    for a, b, kind in product(range(pipeline.stages), range(pipeline.stages), Pass):
        assert on(a, Verb.SEND, b, kind) == on(b, Verb.RECEIVE, a, kind)


def test_a_receive_is_posted_one_piece_of_work_ahead():
    row = ranks(Pipeline(order="1f1b", stages=2, micro_batches=4))[1]
    posted = row.index(Move(Verb.RECEIVE, Message(Pass.FORWARD, 1, 2), 0))
    arrived = row.index(Move(Verb.ARRIVE, Message(Pass.FORWARD, 1, 2), 0))
    assert sum(isinstance(piece, Work) for piece in row[posted:arrived]) == 1


def test_what_a_piece_makes_is_what_the_next_stage_needs():
    pipeline = Pipeline(order="interleaved", stages=2, chunks=2, micro_batches=2)
    made = makes(pipeline, 1, Work(Pass.FORWARD, 0, 1))
    assert made is not None
    assert target(pipeline, made) == 0
    assert made == needs(pipeline, 0, Work(Pass.FORWARD, 1, 1))


def test_two_ranks_that_wait_for_each_other_are_named():
    to_1, to_0 = Message(Pass.FORWARD, 1, 0), Message(Pass.BACKWARD, 0, 0)
    rows = [
        (Move(Verb.RECEIVE, to_0, 1), Move(Verb.ARRIVE, to_0, 1), Move(Verb.SEND, to_1, 1)),
        (Move(Verb.RECEIVE, to_1, 0), Move(Verb.ARRIVE, to_1, 0), Move(Verb.SEND, to_0, 0)),
    ]
    with pytest.raises(DeadlockError) as error:
        check(rows)
    assert str(error.value) == (
        "the pipeline stands still: rank 0 waits for arrive of B0 to stage 0, "
        "rank 1 waits for arrive of F0 to stage 1"
    )


def test_messages_that_cross_on_a_link_are_found():
    first, second = (Message(Pass.FORWARD, 1, m) for m in (0, 1))
    rows = [
        (Move(Verb.SEND, second, 1), Move(Verb.SEND, first, 1)),
        (Move(Verb.RECEIVE, first, 0), Move(Verb.RECEIVE, second, 0), Move(Verb.ARRIVE, first, 0)),
    ]
    with pytest.raises(DeadlockError, match="rank 1 waits for arrive of F0"):
        check(rows)
