"""A call that does not come to an end is told once, with the flag that it awaits."""

import threading
import time

from weft.comm.exchange import Flag, Mark
from weft.comm.watch import Flight, Watch, overdue


class Event:
    def __init__(self):
        self.done = False

    def query(self):
        return self.done


class Lane:
    """A channel whose calls end when a test says so."""

    def __init__(self):
        self.flights = []
        self.ended = None

    def post(self, name):
        awaited = [
            Mark(1, Flag.LANDED, 7),
            Mark(1, Flag.FULL_ODD, 9),
        ]
        flight = Flight(name=name, sequence=len(self.flights), awaited=awaited, done=Event())
        self.flights.append(flight)
        return flight.done

    def oldest(self):
        return next((flight for flight in self.flights if not flight.done.query()), None)

    def gave_up(self):
        return self.ended

    def standing(self):
        return {(1, Flag.LANDED): 7, (1, Flag.FULL_ODD): 8}


def watched(lane, seconds):
    told, heard = [], threading.Event()

    def tell(error):
        told.append(str(error))
        heard.set()

    return Watch((lane,), rank=3, seconds=seconds, tell=tell), told, heard


def test_a_call_that_is_not_done_in_time_is_told_once():
    lane = Lane()
    lane.post("all_gather 'tokens'")
    watch, told, heard = watched(lane, 0.1)
    assert heard.wait(10)
    time.sleep(0.2)
    watch.close()
    (message,) = told
    assert message.startswith("rank 3: all_gather 'tokens', call 0 of its channel, is not done")
    assert "it awaits FULL_ODD of position 1 to reach epoch 9, found 8; look for" in message


def test_many_calls_that_are_each_done_in_time_are_none_that_is_late():
    lane = Lane()
    watch, told, _ = watched(lane, 0.3)
    ends = [lane.post(f"call {i}") for i in range(10)]
    for end in ends:
        time.sleep(0.05)
        end.done = True
    watch.close()
    assert told == []


def test_a_call_that_gave_up_is_told_though_it_is_done():
    lane = Lane()
    done = lane.post("all_reduce 'loads'")
    done.done = True
    lane.ended = (lane.flights[0], Mark(1, Flag.KERNEL, 12))
    watch, told, heard = watched(lane, 0.1)
    assert heard.wait(10)
    watch.close()
    assert told[0].startswith(
        "rank 3: all_reduce 'loads', call 0 of its channel, gave up: KERNEL of"
    )
    assert "KERNEL of position 1 did not reach epoch 12; look for" in told[0]


def test_a_call_with_all_its_flags_blames_the_device():
    flight = Flight(name="x", sequence=0, awaited=[Mark(1, Flag.FULL_ODD, 8)])
    error = overdue(flight, Lane().standing(), rank=0, seconds=1.0)
    assert "every flag that it awaits is there" in str(error)


def test_an_epoch_past_the_wrap_is_awaited_all_the_same():
    flight = Flight(name="x", sequence=0, awaited=[Mark(1, Flag.FULL_ODD, 2**32)])
    error = overdue(flight, {(1, Flag.FULL_ODD): 2**32 - 1}, rank=0, seconds=1.0)
    assert f"to reach epoch {2**32}, found {2**32 - 1}" in str(error)
