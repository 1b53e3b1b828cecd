"""One rank that rounds as a layout does is that layout, and another one without the rounding."""

from dataclasses import replace

import pytest

from weft.config.compression import CompressionConfig
from weft.parallel.layout import Layout
from weft.testing.crew import Course, run, stacked_crew
from weft.testing.rounded import SUMS, TRIAL, distances, encodes, reference
from weft.testing.tolerance import GRADIENT_FLOAT64

TWO = Layout(sp=2, ep=2)


@pytest.fixture(scope="module")
def eight(course: Course) -> Course:
    said = CompressionConfig(dispatch="fp8", combine_grad="fp8", gradients="bf16")
    return replace(course, config=course.config.model_copy(update={"compression": said}))


def worst(course: Course, layout: Layout, *, of: Layout = TWO) -> float:
    ours, _ = run(stacked_crew(layout), course, TRIAL)
    found = distances(ours, reference(course, of))
    assert SUMS.keys() < found.keys()
    return max((off / size) ** 0.5 for off, size in found.values() if size)


def test_only_crossings_are_eight_bits_and_gradients_are_as_they_are(
    course: Course, eight: Course
) -> None:
    assert encodes(eight)
    assert not encodes(course)


def test_a_layout_is_the_one_rank_that_rounds_as_it_does(eight: Course) -> None:
    assert worst(eight, TWO) < GRADIENT_FLOAT64


def test_a_layout_without_crossings_rounds_nothing(eight: Course) -> None:
    pair = Layout(dp=2)
    assert worst(eight, pair, of=pair) < GRADIENT_FLOAT64


def test_one_rank_that_rounds_nothing_is_another(eight: Course) -> None:
    assert worst(eight, TWO, of=Layout()) > GRADIENT_FLOAT64
