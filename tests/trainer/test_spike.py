"""Bounds come from the steps that were taken, and from none that a resumed run could not know."""

import random
import statistics

from weft.compose.plan import LOSS_BOUND, NORM2_BOUND
from weft.trainer.spike import WINDOW, Window


def line(step: int, loss: float | None, norm: float = 1.0, *, skipped: bool = False) -> dict:
    return {"step": step, "loss": loss, "grad_norm": norm, "skipped": skipped}


def lines(count: int) -> list[dict]:
    draw = random.Random(0)
    return [line(n, draw.gauss(3, 0.1), draw.gauss(2, 0.2)) for n in range(1, count + 1)]


def filled(records: list[dict], sigmas: float | None = 6.0) -> Window:
    window = Window(sigmas)
    for record in records:
        window.add(record)
    return window


def test_nothing_is_refused_by_default_or_before_the_window_is_full() -> None:
    assert filled(lines(500), None).bounds(501) == {}
    assert filled(lines(WINDOW)).bounds(WINDOW + 1) == {}
    assert filled(lines(WINDOW)).bounds(WINDOW + 2) != {}


def test_bounds_are_means_and_deviations_of_the_window() -> None:
    records = lines(400)
    bounds = filled(records).bounds(401)
    window = records[-WINDOW - 1 : -1]
    for place, key, power in ((LOSS_BOUND, "loss", 1), (NORM2_BOUND, "grad_norm", 2)):
        values = [record[key] for record in window]
        largest = statistics.fmean(values) + 6 * statistics.stdev(values)
        assert bounds[place] == 1 / largest**power


def test_a_resumed_run_has_the_same_bounds() -> None:
    records = lines(400)
    assert filled(records[:300]).bounds(301) == filled(records[:299]).bounds(301)


def test_refused_steps_are_not_counted() -> None:
    odd = [*lines(300), line(301, 50.0, skipped=True), line(302, None)]
    assert filled(odd).bounds(304) == filled(lines(300)).bounds(304)
