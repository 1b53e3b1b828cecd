"""Whether every layout of a recipe computes what one rank computes, on the machine that asks.

    check       holds where                                                          within
    start       every parameter of every rank starts with the bits of one rank's     exact
    data        every rank is fed its share of one rank's batches                    exact
    loss64      in float64: loss, balance losses, gradient norm of every step        1e-8
    grads64     in float64: gradients of step 1 as the optimizer met them            1e-10
    loss32      in float32, one rank's experts replayed: the sums of loss64          float32_bound
    grads32     in float32, likewise: the gradients                                  float32_bound
    replicas    ranks that hold one parameter end with the same bits of it           exact
    overlap     the overlapped order gives the bits of the serial one                exact
    bytes       each rank receives what its programs predict, label by label         exact
    volume      at even routing the forward's payload is the paper's formula         exact
    routing     in float64: one step under each hard routing                         1e-10

Up to four ranks are processes over gloo, more are stacked in one process; all are children of this
process.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from weft.comm.transport import Transport
from weft.compose.recipe import layout as layout_of
from weft.config.parallel import ParallelConfig
from weft.config.run import RunConfig, idle_of
from weft.errors import ConfigError, LayoutError, WeftError
from weft.parallel.layout import Attention, Dispatch, FeedForward, Layout
from weft.runtime.backends import prepare as prepare_torch
from weft.testing.crew import Course, gloo_crew, settings, stacked_crew
from weft.testing.findings import Findings, Length, Reference, find, one_rank
from weft.testing.ranks import run_ranks
from weft.testing.sabotage import HONEST, Sabotage
from weft.testing.shrink import shrink
from weft.testing.weigh import Check, weigh
from weft.trainer.feed import open_feed

_GATHER = Dispatch.ALL_GATHER
LAYOUTS = (
    Layout(sp=2, ep=2),
    Layout(sp=2, ep=2, dispatch=_GATHER),
    Layout(dp=2),
    Layout(dp=2, ep=2),
    Layout(sp=2, dp=2, ep=2),
    Layout(sp=2, dp=2, ep=4),
    Layout(sp=4, dp=2, ep=8),
    Layout(sp=4, dp=2, ep=8, dispatch=_GATHER),
    Layout(sp=2, dp=4, ep=4),
    Layout(dp=8, ep=8),
    Layout(sp=8, ep=8),
    Layout(sp=2, ep=2, dispatch=Dispatch.DEDUPLICATED),
    Layout(sp=2, attention=Attention.TP, ffn=FeedForward.TP),
    Layout(sp=2, ffn=FeedForward.TP),
    Layout(sp=4, ep=4, attention=Attention.TP),
    Layout(sp=4, ep=4, attention=Attention.CP, dispatch=Dispatch.DEDUPLICATED),
    Layout(sp=2, dp=2, attention=Attention.CP, ffn=FeedForward.TP),
    Layout(dp=4, node=2),
    Layout(sp=2, dp=4, ep=2, node=4),
    Layout(sp=2, dp=4, ep=4, node=2),
    Layout(pp=2),
    Layout(pp=4, pipeline="zero_bubble"),
    Layout(pp=2, pipeline="interleaved", chunks=2),
    Layout(pp=2, sp=2, ep=2, pipeline="zero_bubble", chunks=2),
    Layout(pp=4, dp=2, ep=2),
)
QUICK_LAYOUTS = (
    Layout(sp=2, ep=2),
    Layout(sp=2, ep=2, dispatch=_GATHER),
    Layout(dp=2),
    Layout(sp=2, dp=2, ep=4),
    Layout(sp=2, dp=2, ep=2, node=2),
    Layout(pp=2, pipeline="zero_bubble"),
)
MOST_RANKS = 8
MOST_PROCESSES = 4
LENGTH = Length(float64=20, float32=3)
QUICK_LENGTH = Length(float64=4, float32=2)
TIMEOUT_SECONDS = 600.0  # a row takes seconds; a machine shared by many may take minutes


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A layout to prove, on processes or stacked; `impossible` says why it cannot exist."""

    layout: Layout
    processes: bool
    impossible: str = ""

    @property
    def wire(self) -> str:
        return f"{self.layout.world} {'gloo' if self.processes else 'stacked'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What was found for one layout."""

    case: Case
    checks: tuple[Check, ...]
    findings: tuple[Findings, ...]
    seconds: float

    @property
    def faults(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.fault)


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What rows share: the shrunk recipe, what one rank does with it, the layouts."""

    course: Course
    changes: tuple[str, ...]
    reference: Reference
    cases: tuple[Case, ...]


def prepare(config: RunConfig, *, quick: bool = False, sabotage: Sabotage = HONEST) -> Proof:
    """Shrinks the recipe and runs one rank alone, which is honest whatever the sabotage.

    Raises:
        ConfigError: the recipe cannot be run.
        DataError: the corpus cannot be used.
    """
    prepare_torch(torch.device("cpu"), threads=1, neighbours=1)  # before anything forks
    small = shrink(config, quick=quick)
    feed = open_feed(small.config)
    alone = Course(config=small.config, feed=feed)
    return Proof(
        course=Course(config=small.config, feed=feed, sabotage=sabotage),
        changes=small.changes,
        reference=one_rank(alone, QUICK_LENGTH if quick else LENGTH),
        cases=tuple(_cases(config, small.config, QUICK_LAYOUTS if quick else LAYOUTS)),
    )


def prove(proof: Proof, case: Case) -> Row:
    """Runs one layout and weighs what its ranks found; not to run is a check that does not hold."""
    began = time.monotonic()
    try:
        findings = _run(proof, case)
    except WeftError as error:
        checks: tuple[Check, ...] = (Check(name="runs", figure="no", fault=str(error)),)
        return Row(case=case, checks=checks, findings=(), seconds=time.monotonic() - began)
    checks = tuple(weigh(findings, proof.reference))
    return Row(case=case, checks=checks, findings=findings, seconds=time.monotonic() - began)


def _run(proof: Proof, case: Case) -> tuple[Findings, ...]:
    if case.processes:
        answers = run_ranks(case.layout.world, _one, proof, case, timeout=TIMEOUT_SECONDS)
    else:
        answers = run_ranks(1, _all, proof, case, timeout=TIMEOUT_SECONDS)
    return tuple(Findings(**plain) for answer in answers for plain in answer)


def _one(rank: int, proof: Proof, case: Case) -> list[dict[str, Any]]:
    crew = gloo_crew(case.layout, rank, timeout_seconds=TIMEOUT_SECONDS)
    found = _plain(find(crew, proof.course, proof.reference))
    # NOTE: not after an error. The others would notice, and complain, before this rank has spoken.
    _close(crew.transports)
    return found


def _all(_rank: int, proof: Proof, case: Case) -> list[dict[str, Any]]:
    return _plain(find(stacked_crew(case.layout), proof.course, proof.reference))


def _close(transports: Sequence[Transport]) -> None:
    for transport in transports:
        transport.close()


def _plain(findings: Sequence[Findings]) -> list[dict[str, Any]]:
    return [{f.name: getattr(x, f.name) for f in fields(Findings)} for x in findings]


# ---- which layouts -------------------------------------------------------------------------------


def _cases(config: RunConfig, small: RunConfig, layouts: Sequence[Layout]) -> Iterator[Case]:
    """The layouts of the list, and before them the recipe's own where it is another."""
    own = replace(layout_of(config), layers=())  # of the recipe's layers, of which there are less
    if own not in layouts and own.world > 1:
        layouts = (own, *layouts)
    for layout in layouts:
        yield Case(
            layout=layout,
            processes=layout.world <= MOST_PROCESSES,
            impossible=_obstacle(small, layout),
        )


def _obstacle(small: RunConfig, layout: Layout) -> str:
    """The rule of the recipe that a layout breaks, if there is one."""
    if layout.world > MOST_RANKS:
        return f"{layout.world} ranks are more than the {MOST_RANKS} that are proved here"
    try:
        RunConfig.model_validate(_recipe(small, layout))
    except (ConfigError, LayoutError) as error:
        return str(error).partition(";")[0]
    return ""


def _recipe(small: RunConfig, layout: Layout) -> dict[str, Any]:
    """The recipe in a layout, without what that layout has no use for."""
    tree = {**small.model_dump(), "parallel": settings(layout)}
    wanted = small.model_copy(update={"parallel": ParallelConfig(**settings(layout))})
    for idle in idle_of(wanted):
        section, name = idle.key.split(".")
        tree[section] = {**tree[section], name: idle.legal}
    return tree
