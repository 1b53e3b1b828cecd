"""What a rank finds is what is there: nothing where layouts agree, else the difference."""

from dataclasses import replace

import pytest
import torch

from weft.compose.plan import Plan
from weft.parallel.layout import Layout
from weft.testing.crew import Course, plan_of, stacked_crew
from weft.testing.findings import (
    EVEN,
    FLOAT64,
    RAGGED,
    REPLAYED,
    Findings,
    Length,
    Reference,
    divides_evenly,
    find,
    one_rank,
    routing_trials,
)

TWO = Layout(sp=2, ep=2)


@pytest.fixture(scope="module")
def reference(course: Course) -> Reference:
    return one_rank(course, Length(float64=2, float32=1))


@pytest.fixture(scope="module")
def findings(course: Course, reference: Reference) -> tuple[Findings, ...]:
    return find(stacked_crew(TWO), course, reference)


def test_honest_ranks_find_nothing(findings: tuple[Findings, ...]) -> None:
    for found in findings:
        assert (found.started, found.fed, found.reordered) == ((), (), ())


def test_bytes_are_predicted_for_every_forced_trial(
    course: Course, reference: Reference, findings: tuple[Findings, ...]
) -> None:
    for found in findings:
        assert found.received.keys() == {EVEN, RAGGED, *routing_trials(course, reference.length)}
        for table in found.received.values():
            assert table
            assert all(predicted == counted for predicted, counted in table.values())


def test_ragged_routing_brings_other_bytes_than_even_routing(
    findings: tuple[Findings, ...],
) -> None:
    key = ("ep", "all_to_all_rows", "rows")
    for found in findings:
        assert found.received[RAGGED][key] != found.received[EVEN][key]


def test_every_token_is_asked_whether_it_flipped(
    course: Course, findings: tuple[Findings, ...]
) -> None:
    train, model = course.config.train, course.config.model
    tokens = train.global_batch * course.config.data.sequence * model.layers
    assert sum(found.flips[1] for found in findings) == tokens


def test_a_flip_is_counted_whatever_its_order(course: Course, reference: Reference) -> None:
    alone = reference.runs[REPLAYED]
    place = next(iter(alone.choices))
    for change, flips in ((lambda x: x.flip(-1), 0), (lambda x: (x + 1) % 8, 64)):
        other = replace(alone, choices={**alone.choices, place: change(alone.choices[place])})
        runs = {**reference.runs, REPLAYED: other}
        found = find(stacked_crew(Layout()), course, replace(reference, runs=runs))
        # one rank replays what it is given, so only the count of flips may change
        assert found[0].flips[0] == pytest.approx(flips, abs=6)


def test_a_batch_of_another_step_is_named(course: Course, reference: Reference) -> None:
    alone = reference.runs[FLOAT64]
    batches = {**alone.batches, (1, 2): alone.batches[0, 2]}
    runs = {**reference.runs, FLOAT64: replace(alone, batches=batches)}
    (found, *_) = find(stacked_crew(TWO), course, replace(reference, runs=runs))
    assert found.fed[0] == "step 2 micro-batch 2 tokens"


def test_distances_add_up_to_the_elements_of_the_model(
    reference: Reference, findings: tuple[Findings, ...]
) -> None:
    for name, whole in reference.gradients(FLOAT64).items():
        parts = [f.distances[FLOAT64][name] for f in findings if name in f.distances[FLOAT64]]
        assert sum(elements for _, elements in parts) == whole.numel()
        assert torch.isfinite(torch.tensor([square for square, _ in parts])).all()


def test_tokens_that_do_not_divide_make_no_claim(course: Course, reference: Reference) -> None:
    plan: Plan = plan_of(course, routing_trials(course, reference.length)["balanced"], TWO, 0)
    assert divides_evenly(plan)
    assert not divides_evenly(replace(plan, micro_batch=1, sequence=2, layout=Layout(sp=2, ep=8)))
