"""How long a step takes, and what it is made of.

step      after warm-up, bodies untouched; on CUDA between events, steps back to back as in training
issue     on CUDA: host time of a step, what it waits for the device left out (`bench.issue`); as a
          share of the step it says how far the host runs ahead
idle      on CUDA: the share of steps in which the device runs nothing (`bench.busy`)
bodies    a second pass over the same state, each body timed (`bench.profile`)
waits     on CUDA: whether the host waits for the device outside named host tasks
          (`bench.synchronisation`)
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from weft.bench import profile as profiling
from weft.bench.busy import idle
from weft.bench.ceilings import Ceilings
from weft.bench.issue import issue_times
from weft.bench.profile import Profile
from weft.bench.rig import Rig, rigged
from weft.bench.spread import Spread, spread
from weft.bench.synchronisation import Synchronisations, synchronisations
from weft.config.run import RunConfig
from weft.model.count import token_flops
from weft.runtime.backends import peak_flops
from weft.trainer.record import Stopwatch, peak_bytes
from weft.trainer.session import Place

WARM_UP = 3  # allocator, libraries and clocks settle; compare the spread if in doubt


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What one rank measured."""

    title: str
    tokens: int
    ranks: int
    flops_a_token: int
    step_ms: Spread
    issue_ms: Spread | None
    exposed_ms: float
    idle: float | None  # share of a step: no kernel runs, on a CPU no body
    peak_bytes: int
    peak_flops: float | None
    synchronisations: Synchronisations | None
    profile: Profile
    ceilings: Ceilings

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.step_ms.median * 1e3

    @property
    def tflops(self) -> float:
        """Model TFLOP/s of one rank."""
        return self.tokens_per_s * self.flops_a_token / self.ranks / 1e12


def measure(
    config: RunConfig, place: Place, *, steps: int, ceilings: Ceilings, documents: int = 1
) -> Report:
    """Measures one rank of a recipe on random tokens; every rank calls it."""
    with rigged(config, place, documents=documents) as rig:
        cuda = place.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(place.device)
        times = _step_times(rig, steps)
        peak = peak_bytes(place.device)
        issue = issue_times(rig, steps) if cuda else None
        waited = _exposed_ms(rig) if not cuda else None
        found = profiling.profile(rig, steps=max(steps // 2, 1), ceilings=ceilings)
        outside = max(1 - found.compute_ms / times.median, 0.0)
        return Report(
            title=_title(rig, documents),
            tokens=rig.tokens,
            ranks=place.world,
            flops_a_token=token_flops(rig.plan.shape, sequence=rig.plan.sequence),
            step_ms=times,
            issue_ms=issue,
            exposed_ms=found.exposed_ms if waited is None else waited,
            idle=idle(rig) if cuda else outside,
            peak_bytes=peak,
            peak_flops=peak_flops(place.device) if rig.plan.precision == "bfloat16" else None,
            synchronisations=synchronisations(rig) if cuda else None,
            profile=found,
            ceilings=ceilings,
        )


def _title(rig: Rig, documents: int) -> str:
    plan = rig.plan
    return (
        f"{rig.config.name}: layout {plan.layout.name()}, {plan.precision}, {plan.order} order, "
        f"{rig.tokens} tokens a step in {plan.micro_batches} micro-batches of {plan.micro_batch} x "
        f"{plan.sequence}, {documents} document(s) a sequence, random tokens"
    )


def _run(rig: Rig) -> None:
    rig.stage.bound.run(rig.environment())


def _step_times(rig: Rig, steps: int) -> Spread:
    """Milliseconds of a step; the marks are read after the last, so that nothing waits between."""
    for _ in range(WARM_UP):
        _run(rig)
    rig.transport.barrier()
    watches = []
    for _ in range(steps):
        watch = Stopwatch(rig.place.device)
        _run(rig)
        watch.stop()
        watches.append(watch)
    return spread([watch.milliseconds() for watch in watches])


def _exposed_ms(rig: Rig) -> float:
    """Milliseconds that one step's host was blocked in a wait."""
    rig.transport.barrier()
    rig.transport.reset_exposed()
    _run(rig)
    return rig.transport.exposed_seconds() * 1e3


def render(report: Report) -> str:
    """The whole report as text: the bodies first, the step's own figures last."""
    return "\n".join((report.title, "", profiling.render(report.profile), "", summary(report)))


def summary(report: Report) -> str:
    """The step's own figures, one a line."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    times, issue, waits = report.step_ms, report.issue_ms, report.synchronisations
    yield f"step          {times.text()} ms, median (min to p90) of {times.repeats}"
    yield f"tokens        {report.tokens_per_s:,.0f} a second"
    yield f"model FLOPs   {report.tflops:,.3f} TFLOP/s a rank{_utilisation(report)}"
    yield f"memory        {report.peak_bytes / 2**20:,.0f} MiB at the peak"
    yield f"exposed       {report.exposed_ms:.2f} ms of communication"
    floor = report.profile.floor_ms
    ratio = times.median / floor
    yield f"floor         {floor:.2f} ms at the ceilings; the step takes {ratio:.2f} times that"
    if report.idle is None:
        yield "idle          not measured: torch's profiler saw nothing of the device"
    else:
        yield f"idle          {report.idle:.1%} of the step, in which the device runs nothing"
    if issue is not None:
        share = issue.median / times.median
        yield f"issue         {issue.text()} ms of host time, {share:.0%} of the step"
    if waits is not None:
        yield f"host waits    {waits.text()}"


def _utilisation(report: Report) -> str:
    if report.peak_flops is None:
        return ""
    return f", {report.tflops * 1e12 / report.peak_flops:.1%} of peak"


def record(report: Report) -> dict[str, object]:
    """The report as JSON."""
    waits = report.synchronisations
    return {
        "title": report.title,
        "tokens": report.tokens,
        "ranks": report.ranks,
        "flops_a_token": report.flops_a_token,
        "step_ms": report.step_ms.record(),
        "issue_ms": report.issue_ms.record() if report.issue_ms else None,
        "exposed_ms": report.exposed_ms,
        "tokens_per_s": report.tokens_per_s,
        "tflops": report.tflops,
        "peak_bytes": report.peak_bytes,
        "host_waits": {"named": waits.named, "unnamed": waits.unnamed} if waits else None,
        "tapped_ms": report.profile.tapped_ms,
        "floor_ms": report.profile.floor_ms,
        "idle": report.idle,
        "ceilings": asdict(report.ceilings),
        "bodies": [
            {
                "body": row.name,
                "lane": row.lane,
                "calls": row.calls,
                "ms": row.ms,
                "floor_ms": row.floor_ms,
                "flops": row.flops,
                "moved_bytes": row.moved_bytes,
            }
            for row in report.profile.rows
        ],
    }
