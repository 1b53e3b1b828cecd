"""Host time of a step, the device's left out."""

from types import SimpleNamespace

import pytest
import torch

from weft.bench import issue
from weft.bench.issue import Pauses, issue_times


def test_a_pause_comes_behind_every_so_many_bodies_and_is_timed() -> None:
    made: list[str] = []
    pauses = Pauses(lambda: made.append("caught up"), bodies=2)
    bodies = pauses.bodies({"a": made.append, "b": lambda x: 2 * x})
    bodies["a"]("one")
    assert bodies["b"](3) == 6
    bodies["a"]("two")
    assert made == ["one", "caught up", "two"]
    assert pauses.seconds > 0


def test_a_body_that_waits_for_the_device_is_called_once_that_is_there() -> None:
    """Else what it waits would be the host's; others are not kept from running ahead."""
    made: list[str] = []
    pauses = Pauses(lambda: made.append("caught up"), bodies=100)
    bodies = pauses.bodies({"rows_to_host": made.append, "add": made.append})
    bodies["add"]("sum")
    bodies["rows_to_host"]("count")
    assert made == ["sum", "caught up", "count"]


class Bound:
    """A step of three bodies."""

    def __init__(self, bodies) -> None:
        self.bodies = bodies

    def run(self, _environment) -> None:
        for _ in range(3):
            self.bodies["body"]()


def rig_of(pp: int, body):
    plain = {"body": body}
    return SimpleNamespace(
        place=SimpleNamespace(device=torch.device("cpu")),
        plan=SimpleNamespace(layout=SimpleNamespace(pp=pp)),
        transport=SimpleNamespace(barrier=lambda: None),
        stage=SimpleNamespace(bound=Bound(plain)),
        bound=lambda wrap, _lanes: Bound(wrap(plain)),
        environment=dict,
    )


@pytest.mark.parametrize(("pp", "caught_up"), [(1, 2 * (1 + 3) + 1), (2, 2 + 1)])
def test_what_the_host_waits_for_the_device_is_not_its_own(monkeypatch, pp, caught_up) -> None:
    calls: list[float] = []
    clock = SimpleNamespace(now=0.0)  # seconds; only bodies and the device take any

    def synchronize(_device) -> None:
        calls.append(clock.now)
        clock.now += 1.0

    def body() -> None:
        clock.now += 0.001

    monkeypatch.setattr(issue.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(issue.torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(Pauses.__init__, "__defaults__", (1,))
    found = issue_times(rig_of(pp, body), steps=2)
    assert len(calls) == caught_up
    assert found.median == pytest.approx(3.0)  # three bodies of a millisecond
