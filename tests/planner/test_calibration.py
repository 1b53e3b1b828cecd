from dataclasses import replace

import pytest

from weft.planner.calibration import Sample, machine_text, measured
from weft.planner.cost import rates, seconds
from weft.planner.machine import Beside, Machine, Measured, Message, machine, parse, sources
from weft.planner.work import Attend, Passing, Products, Way, Work

H200 = machine("H200")
COPY = H200.device.memory_bandwidth * H200.device.copy
UP = Products(rows=8192, n=4096, k=2048, groups=8, phase="", flops=2 * 8192 * 4096 * 2048, moved=0)
BACK = Attend(length=4096, heads=64, phase="dgrad", flops=10**12)  # 192 blocks: two waves of 132
AHEAD = Attend(length=4096, heads=64, phase="", flops=10**12)


def passing(moved: int) -> Passing:
    return Passing(body="swiglu", moved=moved, way=Way.STREAM)


def found(*samples: tuple[Work, float]) -> Measured:
    made = [Sample(body="any", asked=asked, seconds=took) for asked, took in samples]
    return measured(made, device=H200.device, issue={}, messages=(), beside=None)


def price(asked: Work, of: Measured) -> float:
    return seconds(asked, rates(replace(H200, measured=of)))


@pytest.mark.parametrize("asked", [UP, AHEAD, BACK, passing(10**9)])
def test_what_was_timed_is_priced_at_its_time(asked: Work):
    of = found((asked, 3e-3))
    assert price(asked, of) == pytest.approx(3e-3, rel=1e-3)
    assert price(asked, found((asked, 6e-3))) > 1.9 * price(asked, of)  # another time is another


def test_a_backward_that_fills_its_waves_better_is_faster_for_its_work():
    of, fuller = found((BACK, 3e-3)), replace(BACK, heads=128)
    assert price(fuller, of) == pytest.approx(3e-3 * (192 / 264) / (256 / 264), rel=1e-3)


def test_each_attention_that_a_recipe_may_ask_for_has_rates_of_its_own():
    usual, other = 3e-3, 1e-3
    made = [
        Sample(body="attention.dgrad", asked=BACK, seconds=usual),
        Sample(body="attention.dgrad", asked=BACK, seconds=other, kernel="cudnn"),
    ]
    of = measured(made, device=H200.device, issue={}, messages=(), beside=None)
    text = machine_text(replace(H200, measured=of), source=sources("H200"), run="a run")
    for known in (replace(H200, measured=of), parse(text)):
        assert seconds(BACK, rates(known)) == pytest.approx(usual, rel=1e-3)
        assert seconds(BACK, rates(known, attention="cudnn")) == pytest.approx(other, rel=1e-3)


def test_a_body_has_a_line_through_its_sizes():
    line = [(passing(size), 2e-5 + size / 2e12) for size in (10**6, 10**8, 10**9)]
    one = found(*line).passes["swiglu"]
    assert one.bandwidth == pytest.approx(2e12, rel=1e-6)
    assert one.seconds == pytest.approx(2e-5, rel=1e-6)


def test_bytes_that_explain_nothing_cost_nothing():
    of = found((passing(10**6), 5e-5), (passing(10**8), 4e-5))
    assert price(passing(10**7), of) == pytest.approx(4.3e-5, rel=0.1)


def test_no_body_takes_less_than_nothing():
    of = found((passing(10**8), 1e-5), (passing(10**9), 1e-3))
    assert of.passes["swiglu"].seconds == 0.0
    assert 1e-5 < price(passing(10**9), of) < 1e-3


def test_several_times_of_one_shape_are_their_median():
    of = found((UP, 1e-3), (UP, 2e-3), (UP, 9e-3))
    assert price(UP, of) == pytest.approx(2e-3, rel=1e-3)


def test_a_machine_comes_back_from_its_file():
    known = found((UP, 1e-3), (AHEAD, 1e-3), (passing(10**9), 1e-3))
    message = Message(algorithm="all_gather", transport="nccl", size=2.0**20, bus=1e11)
    known = replace(
        known, messages=(message,), issue={"swiglu": 2e-5}, beside=Beside(compute=1.1, wire=1.25)
    )
    written = replace(H200, measured=known)
    text = machine_text(written, source=sources("H200"), run="a run")
    again = parse(text)
    assert again.measured.beside == known.beside
    assert again.measured.issue == known.issue
    assert again.device == H200.device
    assert price(UP, again.measured) == pytest.approx(price(UP, known), rel=1e-3)
    assert same_rates(again, written)
    assert not same_rates(replace(again, measured=Measured()), written)


def same_rates(a: Machine, b: Machine) -> bool:
    works = (UP, AHEAD, passing(10**8))
    prices = [[seconds(w, rates(one)) for w in works] for one in (a, b)]
    return prices[0] == pytest.approx(prices[1], rel=1e-3)


def test_rows_without_a_source_need_a_run():
    text = machine_text(replace(H200, measured=found((UP, 1e-3))), source=sources("H200"), run="")
    with pytest.raises(Exception, match="has no source"):
        parse(text)
