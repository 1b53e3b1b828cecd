"""The next step is read ahead, and a step gets what is its own, errors included."""

import threading

import pytest

from weft.trainer.prefetch import Prefetch


def test_steps_get_their_own_in_whatever_order_they_ask() -> None:
    read: list[int] = []

    def of(index: int) -> str:
        read.append(index)
        return f"step {index}"

    prefetch = Prefetch(of)
    for index in (0, 1, 2, 7, 3, 4):
        assert prefetch.take(index) == f"step {index}"
    prefetch.close()
    assert read[:3] == [0, 1, 2]
    assert {index for index in read if read.count(index) > 1} <= {3, 4}


def test_the_next_step_is_read_before_it_is_asked_for() -> None:
    begun = threading.Event()

    def of(index: int) -> int:
        if index == 1:
            begun.set()
        return index

    prefetch = Prefetch(of)
    prefetch.take(0)
    assert begun.wait(10)
    prefetch.close()


def test_an_error_is_of_the_step_that_it_belongs_to() -> None:
    def of(index: int) -> int:
        if index == 2:
            raise ZeroDivisionError("a bad shard")
        return index

    prefetch = Prefetch(of)
    assert [prefetch.take(index) for index in (0, 1)] == [0, 1]
    with pytest.raises(ZeroDivisionError, match="a bad shard"):
        prefetch.take(2)
    assert prefetch.take(5) == 5
    prefetch.close()
