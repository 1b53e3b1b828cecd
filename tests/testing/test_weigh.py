"""Each check holds on honest findings; on doctored ones it alone fails, and says of what."""

from collections.abc import Callable
from dataclasses import replace
from math import inf, nan

import pytest

from weft.parallel.layout import Layout
from weft.testing.crew import Course, stacked_crew
from weft.testing.findings import (
    EVEN,
    FLOAT64,
    REPLAYED,
    Findings,
    Length,
    Reference,
    find,
    one_rank,
)
from weft.testing.weigh import flips, float32_bound, weigh, worst_gradient

Doctor = Callable[[Findings], Findings]


@pytest.fixture(scope="module")
def reference(course: Course) -> Reference:
    return one_rank(course, Length(float64=2, float32=1))


@pytest.fixture(scope="module")
def findings(course: Course, reference: Reference) -> tuple[Findings, ...]:
    return find(stacked_crew(Layout(dp=2, sp=2, ep=2)), course, reference)


def test_every_check_of_honest_findings_holds(
    findings: tuple[Findings, ...], reference: Reference
) -> None:
    checks = list(weigh(findings, reference))
    assert len(checks) == 11
    assert [check for check in checks if check.fault] == []


def sums(trial: str, step: int, place: int, value: float) -> Doctor:
    def doctor(found: Findings) -> Findings:
        changed = found.sums[trial].clone()
        changed[step, place] = changed[step, place] * value
        return replace(found, sums={**found.sums, trial: changed})

    return doctor


def distance(trial: str, name: str, square: float) -> Doctor:
    def doctor(found: Findings) -> Findings:
        table = found.distances[trial]
        moved = {**table, name: (square, table[name][1])} if name in table else table
        return replace(found, distances={**found.distances, trial: moved})

    return doctor


def received(trial: str, key: tuple[str, str, str], extra: int) -> Doctor:
    def doctor(found: Findings) -> Findings:
        table = found.received[trial]
        predicted, counted = table[key]
        changed = {**table, key: (predicted, counted + extra)}
        return replace(found, received={**found.received, trial: changed})

    return doctor


ROWS = ("ep", "all_to_all_rows", "rows")
DOCTORED: dict[str, tuple[Doctor, str]] = {
    "start": (lambda f: replace(f, started=("layers.1.q",)), "layers.1.q does not start"),
    "data": (lambda f: replace(f, fed=("step 3 micro-batch 1 tokens",)), "step 3 micro-batch 1"),
    "loss64": (sums(FLOAT64, 1, 0, 1 + 1e-7), "loss of step 2"),
    "grads64": (distance(FLOAT64, "head", 1e-12), "head"),
    "loss32": (sums(REPLAYED, 0, 1, 1 + 1e-3), "balance loss of step 1"),
    "grads32": (distance(REPLAYED, "layers.1.out", 1.0), "layers.1.out"),
    "replicas": (
        lambda f: replace(f, held={**f.held, "norm": str(f.rank)}),
        "norm, also on rank 0",
    ),
    "overlap": (lambda f: replace(f, reordered=("mean of head",)), "mean of head"),
    "bytes": (received("skewed", ROWS, 8), "ep all_to_all_rows 'rows', skewed"),
    "volume": (lambda f: replace(f, payload={"rows + outputs": (4.0, 5.0)}), "rows + outputs: 4"),
    "routing": (distance("tied", "layers.0.router", 1e-12), "tied: layers.0.router"),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_a_doctored_finding_fails_its_check_alone(
    findings: tuple[Findings, ...], reference: Reference, name: str
) -> None:
    doctor, culprit = DOCTORED[name]
    checks = list(weigh([doctor(found) for found in findings], reference))
    assert [check.name for check in checks if check.fault] == [name]
    assert culprit in next(check.fault for check in checks if check.fault)


def test_ranks_that_disagree_on_a_sum_are_no_replicas(
    findings: tuple[Findings, ...], reference: Reference
) -> None:
    first, second, *rest = findings
    other = sums(FLOAT64, 0, 0, 1 + 1e-15)(second)
    (check,) = (c for c in weigh([first, other, *rest], reference) if c.fault)
    assert check.fault.startswith("rank 1: the sums of trial float64")


def test_an_element_that_nobody_owns_is_found(
    findings: tuple[Findings, ...], reference: Reference
) -> None:
    cut = [replace(f, distances={FLOAT64: {**f.distances[FLOAT64]}}) for f in findings]
    for found in cut:
        found.distances[FLOAT64].pop("norm", None)  # type: ignore[attr-defined]
    worst = worst_gradient(cut, reference, FLOAT64, 1e-10)
    assert worst.error == inf
    assert worst.name == "norm, of which 0 of 64 elements are owned,"


def test_not_a_number_never_agrees(findings: tuple[Findings, ...], reference: Reference) -> None:
    for doctor in (sums(FLOAT64, 0, 0, nan), distance(FLOAT64, "head", nan)):
        checks = weigh([doctor(found) for found in findings], reference)
        assert any(check.fault for check in checks if check.name.endswith("64"))


def test_a_gradient_that_is_zero_on_one_rank_must_be_zero(
    findings: tuple[Findings, ...], reference: Reference
) -> None:
    name = "layers.0.experts.7.up"  # tied routing never chooses it
    assert not reference.gradients("tied")[name].any()
    checks = weigh([distance("tied", name, 1e-60)(found) for found in findings], reference)
    assert [c.name for c in checks if c.fault] == ["routing"]


def test_rounding_of_the_whole_gradient_is_no_error_of_a_tiny_one(
    findings: tuple[Findings, ...], reference: Reference
) -> None:
    whole = reference.gradients(FLOAT64)
    tiny = {**whole, "norm": whole["norm"] * 1e-20}
    pieces = tuple(replace(p, values=tiny[p.name]) for p in reference.runs[FLOAT64].gradients)
    runs = {**reference.runs, FLOAT64: replace(reference.runs[FLOAT64], gradients=pieces)}
    noisy = [distance(FLOAT64, "norm", 1e-34)(found) for found in findings]
    assert worst_gradient(noisy, replace(reference, runs=runs), FLOAT64, 1e-10).error <= 1e-10
    assert worst_gradient(noisy, reference, FLOAT64, 1e-10).error <= 1e-10


def test_the_float32_bound_is_far_above_rounding_and_far_below_a_missing_term(
    reference: Reference,
) -> None:
    assert 1e-6 < float32_bound(reference) < 1e-3


def test_flips_are_those_of_all_ranks(findings: tuple[Findings, ...]) -> None:
    doctored = [replace(found, flips=(found.rank, 10)) for found in findings]
    assert flips(doctored) == (0 + 1 + 2 + 3, 40)


def test_the_figure_of_the_bytes_is_the_sum_over_ranks(
    findings: tuple[Findings, ...], reference: Reference
) -> None:
    total = sum(counted for f in findings for _, counted in f.received[EVEN].values())
    figure = next(c.figure for c in weigh(findings, reference) if c.name == "bytes")
    assert figure == f"{total / 1e6:.3f} MB"
