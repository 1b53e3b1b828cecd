"""A collective as a value."""

import pytest
import torch

from weft.comm.call import Call, Collective, output_shape, received_bytes, sum_in_rank_order


def make_call(collective, shape, *, dtype=torch.float32, send=(), receive=()):
    return Call(
        collective=collective, axis="ep", lane="comm", label="x", shape=shape, dtype=dtype,
        send=send, receive=receive,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("collective", "bytes_of_n"),
    [
        (Collective.ALL_TO_ALL, lambda n, b: b * (n - 1) // n),
        (Collective.REDUCE_SCATTER, lambda n, b: b * (n - 1) // n),
        (Collective.ALL_GATHER, lambda n, b: b * (n - 1)),
        (Collective.ALL_REDUCE, lambda n, b: 2 * b * (n - 1) // n),
        (Collective.SEND, lambda _n, _b: 0),
        (Collective.RECEIVE, lambda _n, b: b),
    ],
)
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_received_bytes_follow_the_formula(collective, bytes_of_n, n):
    call = make_call(collective, (8, 3), dtype=torch.bfloat16)
    assert received_bytes(call, size=n, position=0) == bytes_of_n(n, 8 * 3 * 2)


def test_rows_a_rank_keeps_are_not_on_the_wire():
    call = make_call(Collective.ALL_TO_ALL_ROWS, (5, 3), send=(2, 3), receive=(2, 7))
    assert received_bytes(call, size=2, position=0) == 7 * 3 * 4
    assert received_bytes(call, size=2, position=1) == 2 * 3 * 4


def test_output_shapes_follow_the_collective():
    rows = make_call(Collective.ALL_TO_ALL_ROWS, (5, 3), send=(2, 3), receive=(0, 7))
    assert output_shape(rows, 2) == (7, 3)
    shapes = {
        collective: output_shape(make_call(collective, (4, 3)), 2)
        for collective in Collective
        if collective is not Collective.ALL_TO_ALL_ROWS
    }
    assert shapes == {
        Collective.ALL_TO_ALL: (4, 3),
        Collective.ALL_GATHER: (8, 3),
        Collective.REDUCE_SCATTER: (2, 3),
        Collective.ALL_TO_ALL_SUM: (2, 3),
        Collective.ALL_REDUCE: (4, 3),
        Collective.SEND: (4, 3),
        Collective.RECEIVE: (4, 3),
    }


def test_sum_of_halves_goes_in_rank_order_and_is_rounded_once():
    big, small = torch.tensor([256.0]).bfloat16(), torch.tensor([1.0]).bfloat16()
    sums = [
        sum_in_rank_order(parts, torch.empty_like(big)).item()
        for parts in ([big, small], [big, small, small], [small, small, big])
    ]
    assert sums == [256.0, 258.0, 258.0]


def test_sum_of_float32_rounds_each_time_in_rank_order():
    big, small = torch.tensor([2.0**24]), torch.tensor([1.0])
    upwards = sum_in_rank_order([small, small, big], torch.empty_like(big))
    downwards = sum_in_rank_order([big, small, small], torch.empty_like(big))
    assert (upwards.item(), downwards.item()) == (2.0**24 + 2, 2.0**24)


def test_terms_narrower_than_the_sum_are_not_rounded_on_the_way():
    one, other = torch.tensor([256.0]).bfloat16(), torch.tensor([1.0]).bfloat16()
    assert sum_in_rank_order([one, other], torch.empty(1)).item() == 257.0
