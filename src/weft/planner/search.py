"""The best layouts of a model on a cluster, and why the others lost.

    candidates   every (sp, ep, pp, dp, chunks, micro-batch, dispatch, remat) that divides evenly
    memory       state alone refuses most before anything is composed; what is kept, the rest
    time         a layer is composed and played once for each (sp, ep, dispatch, remat, batch);
                 pipelines by their bubble, (pp - 1) / (chunks m), and the head on the last stage
    finalists    simulated whole, every stage and micro-batch (`simulate`)

A layer stays inside a node (paper 1.1): sp and ep are at most the ranks of one.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from weft.compose.plan import Arithmetic, Plan, Update, sizes
from weft.errors import LayoutError
from weft.model.count import total
from weft.model.families import Shape
from weft.parallel.layout import Dispatch, Layout
from weft.parallel.sync import Sync, Wire
from weft.planner.cluster import Cluster
from weft.planner.cost import Rates, imbalanced
from weft.planner.memory import STATES, Memory, kept_bytes, memory
from weft.planner.pipeline import in_flight
from weft.planner.simulate import Job, Regime, Simulated, Studio, segment

GIB = 2**30
RESERVE = 0.06  # of a rank's memory for what nobody counts: contexts, libraries, fragments
BUCKET = 10**9  # elements: a bucket a layer and residence
FINALISTS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What to plan for."""

    name: str
    shape: Shape
    arithmetic: Arithmetic
    cluster: Cluster
    batch: int
    sequence: int
    imbalance: float = 1.5

    @property
    def room(self) -> float:
        """Bytes of a rank that a plan may fill."""
        return self.cluster.machine.device.memory_bytes * (1 - RESERVE)


@dataclass(frozen=True, slots=True)
class Choice:
    """One candidate."""

    pp: int
    dp: int
    sp: int
    ep: int
    chunks: int
    micro_batch: int
    dispatch: str
    remat: str

    def text(self) -> str:
        """The candidate in a line."""
        return (
            f"pp {self.pp} dp {self.dp} sp {self.sp} ep {self.ep} chunks {self.chunks} "
            f"mbs {self.micro_batch} {self.dispatch} remat {self.remat}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A candidate that fits or does not: seconds of a step, or the reason it is out."""

    choice: Choice
    seconds: float
    refused: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """A finalist, simulated."""

    choice: Choice
    simulated: Simulated
    memory: Memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a search found: the best first, and every estimate it is the best of."""

    wanted: Wanted
    best: tuple[Best, ...]
    estimates: tuple[Estimate, ...]


def search(wanted: Wanted, found: Rates) -> Found:
    """The best plans of a model on a cluster."""
    studio = Studio()
    played: dict[tuple[int, int, int, str, str], _Layer] = {}
    estimates = [_estimate(c, wanted, found, studio, played) for c in candidates(wanted)]
    best = list(itertools.islice(_finalists(estimates, wanted, found, studio), FINALISTS))
    return Found(
        wanted=wanted,
        best=tuple(sorted(best, key=lambda b: b.simulated.seconds)),
        estimates=tuple(estimates),
    )


def _finalists(
    estimates: list[Estimate], wanted: Wanted, found: Rates, studio: Studio
) -> Iterator[Best]:
    """The fastest first, simulated; one whose fullest rank has no room after all is refused."""
    order = sorted(range(len(estimates)), key=lambda at: estimates[at].seconds)
    for at in order:
        choice = estimates[at].choice
        if estimates[at].refused:
            return
        job = Job(plan=plan_of(choice, wanted))
        held = [
            memory(step, replace(job.plan, rank=step.plan.rank), imbalance=wanted.imbalance)
            for step in studio.ends(job.plan, found)
        ]
        fullest = max(held, key=lambda m: m.all)
        over = fullest.all - wanted.room
        if over > 0:
            estimates[at] = _refused(choice, _too_much(over, wanted))
        else:
            done = studio.simulate(job, found)
            yield Best(choice=choice, simulated=done, memory=fullest)


def candidates(wanted: Wanted) -> Iterator[Choice]:
    """Every choice that divides the ranks, the layers and the batch evenly."""
    ranks, node, shape = wanted.cluster.ranks, wanted.cluster.node, wanted.shape
    for sp in _divisors(node):
        for pp in _divisors(shape.layers):
            if ranks % (sp * pp):
                continue
            dp = ranks // (sp * pp)
            for ep in _divisors(min(node, dp * sp)):
                if shape.experts % ep or shape.heads % sp or (dp * sp) % ep:
                    continue
                yield from _variants(wanted, pp=pp, dp=dp, sp=sp, ep=ep)


def _variants(wanted: Wanted, *, pp: int, dp: int, sp: int, ep: int) -> Iterator[Choice]:
    depth = wanted.shape.layers // pp
    for micro_batch in (1, 2, 4):
        if wanted.batch % (dp * micro_batch):
            continue
        local = wanted.batch // (dp * micro_batch)
        chunked = [c for c in _divisors(depth) if c > 1 and pp > 1 and local % pp == 0]
        for chunks in (1, *chunked):
            for dispatch in ("all_to_all", "all_gather") if ep > 1 else ("all_to_all",):
                for remat in ("none", "selective", "full"):
                    yield Choice(pp, dp, sp, ep, chunks, micro_batch, dispatch, remat)


def plan_of(choice: Choice, wanted: Wanted) -> Plan:
    """The plan of the first rank of a candidate."""
    layers = wanted.shape.layers // (choice.pp * choice.chunks)
    return Plan(
        shape=wanted.shape,
        arithmetic=wanted.arithmetic,
        layout=Layout(
            pp=choice.pp,
            dp=choice.dp,
            sp=choice.sp,
            ep=choice.ep,
            dispatch=Dispatch(choice.dispatch),
            node=wanted.cluster.node if choice.dp * choice.sp % wanted.cluster.node == 0 else 0,
            pipeline="interleaved" if choice.chunks > 1 else "1f1b",
            chunks=choice.chunks,
            layers=(layers,) * (choice.pp * choice.chunks),
        ),
        rank=0,
        sequence=wanted.sequence,
        micro_batch=choice.micro_batch,
        micro_batches=wanted.batch // choice.micro_batch,
        precision="bfloat16",
        order="overlapped",
        update=Update(beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0),
        remat=choice.remat,
        sync=Sync(gradients=Wire.BF16, bucket=BUCKET),
    )


# ---- estimates -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """One layer of a candidate, played: seconds of forward, backward and head, bytes it keeps."""

    forward: float
    backward: float
    head: float
    kept: int
    peak: int


def _estimate(
    choice: Choice,
    wanted: Wanted,
    found: Rates,
    studio: Studio,
    played: dict[tuple[int, int, int, str, str], _Layer],
) -> Estimate:
    state = state_bytes(choice, wanted)
    if state > wanted.room:
        return _refused(choice, f"out of memory by {_gib(state - wanted.room)}: state alone")
    key = (choice.sp, choice.ep, choice.micro_batch, choice.dispatch, choice.remat)
    try:
        layer = played.get(key) or played.setdefault(key, _play(choice, wanted, found, studio))
    except LayoutError as error:
        return _refused(choice, str(error))
    plan = plan_of(choice, wanted)
    depth = wanted.shape.layers // (choice.pp * choice.chunks)
    kept = layer.kept * depth * in_flight(plan.schedule, 0)
    held = state + kept + layer.peak
    if held > wanted.room:
        return _refused(choice, _too_much(held - wanted.room, wanted))
    return Estimate(choice=choice, seconds=_seconds(choice, wanted, layer))


def _seconds(choice: Choice, wanted: Wanted, layer: _Layer) -> float:
    stage = (layer.forward + layer.backward) * wanted.shape.layers / choice.pp
    micro = wanted.batch // (choice.dp * choice.micro_batch)
    bubble = (choice.pp - 1) / choice.chunks * stage
    return micro * (stage + layer.head) + bubble


def _play(choice: Choice, wanted: Wanted, found: Rates, studio: Studio) -> _Layer:
    """One layer alone, on a cluster of one pipeline stage."""
    dp = max(choice.ep // choice.sp, 1)
    alone = replace(choice, pp=1, dp=dp, chunks=1)
    shape = replace(wanted.shape, layers=wanted.shape.dense_layers + 1)
    few = replace(wanted, shape=shape, batch=2 * dp * choice.micro_batch)  # the second one adds
    plan = plan_of(alone, few)
    plan = replace(plan, layout=replace(plan.layout, layers=()))
    step = studio.compose(plan, found)
    n = sizes(plan)
    regime = Regime()
    kind = shape.kind(shape.layers - 1)
    took = {
        name: segment(
            step.templates[name], n, found, regime, studio.asked(step.templates[name].program, n)
        ).seconds
        for name in (f"{kind}.forward", f"{kind}.backward", "head")
    }
    worst = imbalanced(n, wanted.imbalance)
    held = memory(step, plan, imbalance=wanted.imbalance)
    return _Layer(
        forward=took[f"{kind}.forward"],
        backward=took[f"{kind}.backward"],
        head=took["head"],
        kept=kept_bytes(step.templates[f"{kind}.forward"].program, worst),
        peak=held.dispatch + held.workspace,
    )


def state_bytes(choice: Choice, wanted: Wanted) -> float:
    """Weights, gradients and optimizer state of a rank of the first stage."""
    count = total(wanted.shape)
    routed = count.routed / choice.pp / choice.ep
    dense = (count.all - count.routed - count.head - count.embedding) / choice.pp + count.embedding
    replicas = choice.dp * choice.sp
    width = 4 * STATES
    return (routed + dense) * 6 + width * (routed * choice.ep + dense) / replicas


def _refused(choice: Choice, reason: str) -> Estimate:
    return Estimate(choice=choice, seconds=float("inf"), refused=reason)


def _too_much(over: float, wanted: Wanted) -> str:
    return f"out of memory by {_gib(over)} at imbalance {wanted.imbalance}"


def _gib(size: float) -> str:
    return f"{max(size, 0) / GIB:,.1f} GiB"


def _divisors(number: int) -> Sequence[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


# ---- why the others lost -------------------------------------------------------------------------

KNOBS = ("pp", "sp", "ep", "chunks", "micro_batch", "dispatch", "remat")


def losers(found: Found) -> Iterator[tuple[str, str]]:
    """For each knob, each other value: how far its best candidate is behind, or why it is out."""
    winner = found.best[0].choice
    own = next(e for e in found.estimates if e.choice == winner)
    for knob in KNOBS:
        values = {getattr(e.choice, knob): None for e in found.estimates}
        for value in values:
            if value != getattr(winner, knob):
                with_it = [e for e in found.estimates if getattr(e.choice, knob) == value]
                yield f"{knob} {value}", _why(with_it, own, found.wanted)


def _why(with_it: Sequence[Estimate], own: Estimate, wanted: Wanted) -> str:
    fit = [e for e in with_it if not e.refused]
    best = min(fit, key=lambda e: e.seconds) if fit else _nearest(with_it, own.choice)
    notes = [_replication(best.choice, wanted)]
    if fit:
        notes.insert(0, f"{best.seconds / own.seconds - 1:+.1%} at best ({best.choice.text()})")
        alike = _nearest(with_it, own.choice)
        notes.append(alike.refused and f"else like the winner: {alike.refused}")
    else:
        notes.insert(0, best.refused)
    return "; ".join(note for note in notes if note)


def _nearest(with_it: Iterable[Estimate], winner: Choice) -> Estimate:
    """The candidate that differs least from the winner."""

    def apart(estimate: Estimate) -> int:
        return sum(getattr(estimate.choice, k) != getattr(winner, k) for k in KNOBS)

    return min(with_it, key=apart)


def _replication(choice: Choice, wanted: Wanted) -> str:
    heads = wanted.shape.kv_heads
    if choice.sp <= heads:
        return ""
    return f"kv_heads {heads} < sp {choice.sp}: KV replicated x{choice.sp // heads}"
