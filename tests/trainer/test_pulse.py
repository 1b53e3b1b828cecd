"""What a rank shows is what is read from outside, at once, whatever it is doing."""

import time
from pathlib import Path

import pytest
import torch

from weft.comm.call import Call, Collective
from weft.trainer import pulse
from weft.trainer.pulse import Pulse

CALL = Call(
    collective=Collective.ALL_REDUCE,
    axis="world",
    lane="comm",
    label="statistics",
    shape=(3,),
    dtype=torch.float32,
)


def test_a_rank_shows_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "pulse"
    assert pulse.read(path) is None
    shown = Pulse(path)
    shown.enter("step", 12)
    shown.posting(CALL, 3)
    shown.waiting(CALL, 3)
    sign = pulse.read(path)
    assert sign is not None
    assert (sign.phase, sign.step, sign.posted, sign.waits) == ("step", 12, 1, True)
    assert sign.call == "all_reduce 'statistics', call 3 of axis world"
    shown.arrived()
    after = pulse.read(path)
    assert after is not None
    assert not after.waits
    assert after.moved_ns > sign.moved_ns


def test_a_rank_that_computes_is_alive(tmp_path: Path) -> None:
    Pulse(tmp_path / "pulse").enter("step", 1)
    time.sleep(2 * pulse.ALIVE_SECONDS)
    sign = pulse.read(tmp_path / "pulse")
    assert sign is not None
    assert sign.alive_ns > sign.moved_ns


class Torn:
    """A writer that is stopped in the middle, where all is cleared and little is written."""

    size, unpack_from = pulse._REST.size, pulse._REST.unpack_from

    def pack_into(self, page, at: int, moved: int, *_rest: object) -> None:
        page[at : at + self.size] = moved.to_bytes(8, "little") + bytes(self.size - 8)
        raise InterruptedError


def test_a_rank_stopped_while_it_writes_shows_what_it_did_before(tmp_path, monkeypatch) -> None:
    shown = Pulse(tmp_path / "pulse")
    for step in (7, 8):  # whichever of the two is written next
        shown.enter("step", step)
        before = pulse.read(tmp_path / "pulse")
        with monkeypatch.context() as patched:
            patched.setattr(pulse, "_REST", Torn())
            with pytest.raises(InterruptedError):
                shown.posting(CALL, 3)
        after = pulse.read(tmp_path / "pulse")
        assert before is not None
        assert after is not None
        assert (after.phase, after.step, after.moved_ns) == ("step", step, before.moved_ns)


def test_a_file_cut_short_shows_nothing(tmp_path: Path) -> None:
    (tmp_path / "pulse").write_bytes(b"x")
    assert pulse.read(tmp_path / "pulse") is None
    Pulse(tmp_path / "pulse")
    size = (tmp_path / "pulse").stat().st_size
    (tmp_path / "pulse").write_bytes(bytes(size))  # made, and nothing shown yet
    assert pulse.read(tmp_path / "pulse") is None


def test_fail_points_are_told_by_name() -> None:
    told: list[str] = []
    shown = Pulse(None, told.append)
    shown.posting(CALL, 0)
    shown.pass_by("before_manifest")
    assert told == ["in_statistics", "before_manifest"]


def test_a_sign_costs_microseconds(tmp_path: Path) -> None:
    shown = Pulse(tmp_path / "pulse")
    begun = time.perf_counter()
    for number in range(1000):
        shown.waiting(CALL, number)
    assert time.perf_counter() - begun < 0.2  # a step has a few hundred; measured 5 ms
