"""From what the ranks of a layout found to checks that hold or name their culprit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, sqrt

import torch
from torch import Tensor

from weft.compose.plan import AUX, LOADS, LOSS, NORM2, Z
from weft.graph.opset import Tolerance
from weft.testing.agreement import LOSS_FLOAT64
from weft.testing.findings import EVEN, FLOAT64, REPLAYED, Findings, Reference
from weft.testing.rounded import SUMS
from weft.testing.tolerance import GRADIENT_FLOAT64, gradient_bound

_SUMS = ((LOSS, "loss"), (AUX, "balance loss"), (Z, "z loss"), (NORM2, "squared gradient norm"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One claim about a layout: its figure, and what refutes it, if anything does."""

    name: str
    figure: str
    fault: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Worst:
    """The value that is off the most, relative to one rank's."""

    error: float
    name: str


def weigh(findings: Sequence[Findings], reference: Reference) -> Iterator[Check]:
    """Every check of a layout, from the findings of all of its ranks."""
    yield _listed(
        "start", "same", {f.rank: f.started for f in findings}, "does not start as on one rank"
    )
    yield _listed(
        "data", "same", {f.rank: f.fed for f in findings}, "is not its share of one rank's"
    )
    for trial, bits, loss, gradient in _bounds(reference):
        yield _bounded(f"loss{bits}", worst_sum(findings[0], reference, trial, loss), loss)
        yield _bounded(
            f"grads{bits}", worst_gradient(findings, reference, trial, gradient), gradient
        )
    yield _replicas(findings)
    yield _listed(
        "overlap",
        "bitwise",
        {f.rank: f.reordered for f in findings},
        "differs from the serial order's",
    )
    yield _bytes(findings)
    yield _volume(findings)
    yield _routing(findings, reference)
    if findings[0].rounded:
        yield _bounded("fp8", worst_rounded(findings), GRADIENT_FLOAT64)


def _bounds(reference: Reference) -> Iterator[tuple[str, str, float, float]]:
    """Trials that are compared up to rounding, with the bounds of their sums and gradients."""
    yield FLOAT64, "64", LOSS_FLOAT64, GRADIENT_FLOAT64
    if REPLAYED in reference.runs:
        float32 = float32_bound(reference)
        yield REPLAYED, "32", float32, float32


def worst_rounded(findings: Sequence[Findings]) -> Worst:
    """The sum or gradient that is off the most from one rank that rounds as the layout does."""
    errors: dict[str, float] = {}
    whole = sqrt(sum(size for _, size in findings[0].rounded.values()))
    rounding = torch.finfo(torch.float64).eps * whole / GRADIENT_FLOAT64
    for name in {name: None for f in findings for name in f.rounded}:
        parts = {f.rank: f.rounded[name] for f in findings if name in f.rounded}
        owner = max(parts, key=lambda rank: parts[rank][0])
        off = parts[owner][0] if name in SUMS else sum(off for off, _ in parts.values())
        size = sqrt(parts[owner][1])
        errors[f"{name} in eight bits (on rank {owner})"] = _quotient(
            sqrt(off), max(size, rounding) if size else size
        )
    return _largest(errors)


def float32_bound(reference: Reference) -> float:
    """The derived tolerance of a gradient summed over all tokens of a step and all layers."""
    plan = reference.runs[REPLAYED].step.plan
    terms = plan.micro_batches * plan.tokens * plan.shape.layers
    return gradient_bound(Tolerance.ATTENTION, torch.float32, terms)


def flips(findings: Sequence[Findings]) -> tuple[int, int]:
    """Tokens that chose other experts than on one rank in float32, of how many."""
    return sum(f.flips[0] for f in findings), sum(f.flips[1] for f in findings)


# ---- sums and gradients --------------------------------------------------------------------------


def worst_sum(finding: Findings, reference: Reference, trial: str, bound: float) -> Worst:
    """The sum that is off the most: of the first step that is off, or of all if none is."""
    ours, theirs = finding.sums[trial], reference.runs[trial].sums
    steps = [_worst_of_step(ours[step], theirs[step], step) for step in range(len(theirs))]
    off = (worst for worst in steps if worst.error > bound)
    return next(off, max(steps, key=lambda worst: worst.error))


def _worst_of_step(ours: Tensor, theirs: Tensor, step: int) -> Worst:
    """Loads are counts: a token off is infinitely far."""
    errors = {f"{name} of step {step + 1}": _relative(ours[at], theirs[at]) for at, name in _SUMS}
    same = torch.equal(ours[LOADS:], theirs[LOADS:])
    errors[f"an expert load of step {step + 1}"] = 0.0 if same else inf
    return _largest(errors)


def worst_gradient(
    findings: Sequence[Findings], reference: Reference, trial: str, bound: float
) -> Worst:
    """The logical parameter whose gradient is off the most, and the rank that owns most of that.

    Numerics:
        Exact where one rank has zero. Elsewhere what is below one rounding of the norm of the
        whole gradient is within any bound: a router whose one choice has weight 1 has a gradient
        of rounding errors alone.
    """
    expected = reference.gradients(trial)
    precision = torch.float32 if trial == REPLAYED else torch.float64
    rounding = torch.finfo(precision).eps * sqrt(sum(_square(whole) for whole in expected.values()))
    errors: dict[str, float] = {}
    for name, whole in expected.items():
        parts = {f.rank: f.distances[trial][name] for f in findings if name in f.distances[trial]}
        elements = sum(part[1] for part in parts.values())
        if elements != whole.numel():
            return Worst(
                error=inf,
                name=f"{name}, of which {elements} of {whole.numel()} elements are owned,",
            )
        owner = max(parts, key=lambda rank: parts[rank][0])
        difference, size = sqrt(sum(part[0] for part in parts.values())), sqrt(_square(whole))
        scale = max(size, rounding / bound) if size else size
        errors[f"{name} (on rank {owner})"] = _quotient(difference, scale)
    return _largest(errors)


def _square(values: Tensor) -> float:
    return float(values.square().sum())


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """How far apart two numbers are; exact where one rank has zero."""
    difference, size = abs(float(ours) - float(theirs)), abs(float(theirs))
    return _quotient(difference, size)


def _quotient(difference: float, size: float) -> float:
    if difference == 0:
        return 0.0
    return difference / size if size else inf


def _largest(errors: Mapping[str, float]) -> Worst:
    sizes = {name: inf if isnan(error) else error for name, error in errors.items()}
    name = max(sizes, key=sizes.__getitem__)
    return Worst(error=sizes[name], name=name)


def _bounded(check: str, worst: Worst, bound: float) -> Check:
    if worst.error <= bound:
        return Check(name=check, figure=f"{worst.error:.1e}")
    off = "differs" if worst.error == inf else f"is off by {worst.error:.2g}, at most {bound:.1g}"
    return Check(name=check, figure=f"{worst.error:.1e}", fault=f"{worst.name} {off}")


# ---- what must be the same -----------------------------------------------------------------------


def _listed(check: str, figure: str, found: Mapping[int, Sequence[str]], claim: str) -> Check:
    """A check that holds where no rank lists anything; the first thing listed is the culprit."""
    culprits = [(rank, names) for rank, names in found.items() if names]
    if not culprits:
        return Check(name=check, figure=figure)
    rank, names = culprits[0]
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return Check(name=check, figure="differs", fault=f"rank {rank}: {names[0]} {claim}{more}")


def _replicas(findings: Sequence[Findings]) -> Check:
    first = findings[0]
    holders: dict[str, tuple[int, str]] = {}
    wrong: dict[int, list[str]] = {}
    for f in findings:
        wrong[f.rank] = [
            f"the sums of trial {trial}"
            for trial, sums in f.sums.items()
            if not torch.equal(sums, first.sums[trial])
        ]
        for name, bits in f.held.items():
            other, expected = holders.setdefault(name, (f.rank, bits))
            if bits != expected:
                wrong[f.rank].append(f"{name}, also on rank {other},")
    return _listed("replicas", "same", wrong, "has other bits than its replica")


# ---- bytes ---------------------------------------------------------------------------------------


def _bytes(findings: Sequence[Findings]) -> Check:
    wrong: dict[int, list[str]] = {}
    for f in findings:
        wrong[f.rank] = [
            f"{axis} {collective} {label!r}, {trial}: {counted} bytes, {predicted} predicted:"
            for trial, table in f.received.items()
            for (axis, collective, label), (predicted, counted) in table.items()
            if predicted != counted
        ]
    total = sum(counted for f in findings for _, counted in f.received[EVEN].values())
    return _listed("bytes", _amount(total), wrong, "the count")


def _amount(number: int) -> str:
    """A number of bytes in five characters and a unit.

    Example:
        >>> _amount(2365856)
        '2.366 MB'
    """
    return f"{number / 1e6:.3f} MB" if number < 10**7 else f"{number / 1e6:.1f} MB"


def _volume(findings: Sequence[Findings]) -> Check:
    wrong = {
        f.rank: [
            f"{labels}: {ours:,.0f} elements in the forward, by the formula {theirs:,.0f}:"
            for labels, (ours, theirs) in f.payload.items()
            if ours != theirs
        ]
        for f in findings
    }
    named = any(f.payload for f in findings)
    return _listed("volume", "= paper" if named else "none", wrong, "the payload")


# ---- routing -------------------------------------------------------------------------------------


def _routing(findings: Sequence[Findings], reference: Reference) -> Check:
    worst = Worst(error=0.0, name="nothing")
    trials = [name for name in reference.runs if name not in (FLOAT64, REPLAYED)]
    for trial in trials:
        for found in (
            worst_sum(findings[0], reference, trial, GRADIENT_FLOAT64),
            worst_gradient(findings, reference, trial, GRADIENT_FLOAT64),
        ):
            if found.error > worst.error:
                worst = Worst(error=found.error, name=f"{trial}: {found.name}")
    return _bounded("routing", worst, GRADIENT_FLOAT64)
