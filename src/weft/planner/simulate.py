"""A whole step at the prices of a machine: every stage, every micro-batch, what waits and why.

    segments   each template of `compose.step` is played once on its lanes (`play`): ranks of a
               group are alike but for their rows, and the fullest one is played
    pipeline   the segments of each chunk, forward and backward, in the order of every stage
    ends       gradients of a layer leave as soon as its last backward is done, the optimizer
               follows, parameters come home; what of that is beside other work costs nothing

The last stage has the head and sets the pace; nothing is averaged.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from weft.compose.first import first_of
from weft.compose.plan import Plan, sizes
from weft.compose.replicas import is_end
from weft.compose.stage import chunks_of
from weft.compose.step import Step, named_order, training_step
from weft.compose.work import Parts, instances_of
from weft.graph.dims import Sizes
from weft.graph.opset import FIRST
from weft.graph.program import Program
from weft.model.count import token_flops
from weft.planner import pipeline
from weft.planner.cost import (
    Rates,
    added_seconds,
    imbalanced,
    message,
    pricing,
    product_seconds,
    seconds,
)
from weft.planner.play import Fused, Played, fused, play
from weft.planner.work import Attend, Passing, Products, Sending, Way, Work, work
from weft.schedule.action import Ordered
from weft.schedule.pipeline import Pass
from weft.schedule.pipeline import Work as Piecework
from weft.schedule.sequence import CHUNK

GRADIENTS, PARAMETERS, PIPELINE = "gradients", "parameters", "stages"

Piece = tuple[int, Pass, int]  # a stage, forward or backward, and the chunk


@dataclass(frozen=True, kw_only=True, slots=True)
class Regime:
    """How a system runs its programs: what a layout and an order do not say."""

    fused: bool = False  # pairs of the forward as one launch
    streamed: frozenset[Way] = frozenset(
        (Way.ROWS, Way.SUMS)
    )  # row movement at the rate of streams
    sums_apart: bool = False  # gradients of experts are written, and a pass reads and adds them
    beside: bool = True  # gradients and parameters travel beside backward and forward


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A model on a cluster: the plan of its first rank, and how it is run."""

    plan: Plan
    regime: Regime = field(default_factory=Regime)

    @property
    def ranks(self) -> int:
        return self.plan.layout.world


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A played template, and how its time divides."""

    played: Played
    products: float
    exposed: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return self.played.seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """One step: its time, and where it goes on the stage that has the most to do."""

    job: Job
    segments: Mapping[str, Segment]
    run: pipeline.Run
    pieces: Mapping[Piece, tuple[str, ...]]  # which segments a piece of work consists of
    seconds: float
    products: float
    exposed: Mapping[str, float]
    bubble: float
    flops: float  # of the model, a second and rank

    @property
    def others(self) -> float:
        """What is neither product, nor waiting for communication, nor bubble."""
        return self.seconds - self.products - sum(self.exposed.values()) - self.bubble

    @property
    def tokens_per_s(self) -> float:
        plan = self.job.plan
        return plan.micro_batches * plan.tokens / self.seconds


class Studio:
    """Composed steps, kept: what differs in its micro-batches or its prices alone is composed once.

    The order of a step follows the prices that it was first asked for with.
    """

    def __init__(self) -> None:
        self._steps: dict[tuple[Plan, str], Step] = {}
        self._asked: dict[tuple[int, int], Mapping[str, Work]] = {}

    def compose(self, plan: Plan, found: Rates) -> Step:
        """The step of one rank with the fewest micro-batches: its templates are those of any."""
        few = replace(plan, micro_batches=plan.layout.dp * _rounds(plan))
        key = (few, found.machine.name)
        if key not in self._steps:
            self._steps[key] = training_step(few, named_order(few, pricing(found)))
        return self._steps[key]

    def ends(self, plan: Plan, found: Rates) -> tuple[Step, ...]:
        """The steps of the first and the last stage: between them they have every template."""
        last = (plan.layout.pp - 1) * plan.layout.stage
        return tuple(
            self.compose(replace(plan, rank=rank), found) for rank in dict.fromkeys((0, last))
        )

    def simulate(self, job: Job, found: Rates) -> Simulated:
        """One step of a job on a machine."""
        return simulate(job, found, self)

    def asked(self, program: Program, n: Sizes) -> Mapping[str, Work]:
        """What each task of a program of a composed step asks of a machine."""
        key = (id(program), n.R)  # programs of the steps that are kept here live as long as they
        if key not in self._asked:
            self._asked[key] = asked_of(program, n)
        return self._asked[key]


def _rounds(plan: Plan) -> int:
    """Micro-batches of a rank until every template has run: a first one, and one that adds to its
    gradients, unless those of each micro-batch are summed apart.
    """
    if plan.layout.chunks > 1:
        return plan.layout.pp
    return 1 if plan.sync.zero > 1 else min(plan.local_micro_batches, 2)


def simulate(job: Job, found: Rates, studio: Studio) -> Simulated:
    """One step of a job on a machine."""
    plan, steps = job.plan, studio.ends(job.plan, found)
    templates = {name: ordered for step in steps for name, ordered in step.templates.items()}
    n = imbalanced(sizes(plan), found.constants.imbalance)
    segments = {
        name: segment(ordered, n, found, job.regime, studio.asked(ordered.program, n))
        for name, ordered in templates.items()
        if not is_end(name)
    }
    pieces = _pieces(plan, templates)
    first = {p: tuple(first_of(name, templates) for name in names) for p, names in pieces.items()}
    early, late = (
        {p: sum(segments[name].seconds for name in names) for p, names in parts.items()}
        for parts in (first, pieces)
    )

    def cost(rank: int, piece: Piecework) -> float:
        return (late if piece.micro_batch else early)[rank, piece.kind, piece.chunk]

    run = pipeline.run(plan.schedule, cost, hop=_hop(plan, found) if plan.layout.pp > 1 else 0.0)
    ends = _ends(job, studio, run, segments, pieces, found)
    return _summary(job, segments, run, pieces, first, ends)


# ---- segments ------------------------------------------------------------------------------------


def segment(
    ordered: Ordered, n: Sizes, found: Rates, regime: Regime, asked: Mapping[str, Work]
) -> Segment:
    """One template at the prices of a machine under a regime."""
    program = ordered.program
    alone = prices(asked, found, regime)
    paid, extra = alone, 0.0
    if regime.fused and program.name.endswith("forward"):
        paid, extra = _fused_prices(program, asked, alone, found, max(n.X, n.Y))
    share = 0.0 if found.transport == "symmetric" else found.constants.wire_share
    waits = skews(asked, found)
    played = play(
        ordered,
        lambda task: paid[task.name] and paid[task.name] + waits.get(task.name, 0.0),
        share=share,
    )
    heavy = {name: kind for name, kind in asked.items() if isinstance(kind, Products | Attend)}
    added = {k: kind if regime.sums_apart else _added_inside(kind) for k, kind in heavy.items()}
    products = sum(alone[name] - added_seconds(kind, found) for name, kind in added.items())
    exposed = dict(played.exposed)
    if extra:
        exposed["inside fused launches"] = extra
    return Segment(played=played, products=products, exposed=exposed)


def asked_of(program: Program, n: Sizes) -> Mapping[str, Work]:
    """What each task of a program asks of a machine."""
    return {task.name: work(task, program, n) for task in program.tasks}


def prices(asked: Mapping[str, Work], found: Rates, regime: Regime) -> Mapping[str, float]:
    """Seconds of each task of a program alone on its machine."""
    stream = found.constants.stream
    if Way.ROWS in regime.streamed:
        found = replace(found, constants=replace(found.constants, rows=stream))
    if Way.SUMS in regime.streamed:
        found = replace(found, constants=replace(found.constants, sums=stream))
    if not regime.sums_apart:
        asked = {name: _added_inside(kind) for name, kind in asked.items()}
    return {name: seconds(kind, found) for name, kind in asked.items()}


def _added_inside(asked: Work) -> Work:
    """A product that adds where the sum lies: it reads and writes 8 of the 12 bytes an element; one
    that writes there, 4 of 8.
    """
    if not isinstance(asked, Products):
        return asked
    inside = asked.added // 2 if asked.phase == FIRST else asked.added * 2 // 3
    return replace(asked, added=inside)


LARGE = 2**20  # bytes: smaller collectives follow a larger one, whose wait is theirs too


def skews(asked: Mapping[str, Work], found: Rates) -> Mapping[str, float]:
    """What each large collective waits for the last rank of its group; chunks share that wait."""
    large = [n for n, w in asked.items() if isinstance(w, Sending) and w.wire >= LARGE]
    chunks = Counter(name.partition(CHUNK)[0] for name in large)
    return {name: found.constants.skew / chunks[name.partition(CHUNK)[0]] for name in large}


def _fused_prices(
    program: Program,
    asked: Mapping[str, Work],
    alone: Mapping[str, float],
    found: Rates,
    degree: int,
) -> tuple[Mapping[str, float], float]:
    """Prices with every pair as one launch, and what the launches take beyond their products."""
    paid, extra = dict(alone), 0.0
    for pair in fused(program):
        product = alone[pair.product.name]
        took = fused_seconds(pair, asked, found, degree)
        extra += took - product * pair.part
        paid[pair.product.name] = took + product * (1 - pair.part)
        for task in (pair.message, *pair.passes):
            paid[task.name] = 0.0
    return paid, extra


def fused_seconds(pair: Fused, asked: Mapping[str, Work], found: Rates, degree: int) -> float:
    """One launch: the product on what the transport leaves of the multiprocessors, beside the wire
    without a library between, whose first part in `degree` comes before the first tile.
    """
    sent, product = asked[pair.message.name], asked[pair.product.name]
    assert isinstance(sent, Sending), f"{pair.message.name=}"
    assert isinstance(product, Products), f"{pair.product.name=}"
    direct = message(sent, replace(found, transport="symmetric"))
    part = replace(
        product,
        n=round(product.n * pair.part),
        flops=round(product.flops * pair.part),
        moved=round(product.moved * pair.part),
    )
    busy = product_seconds(part, found, taken=found.constants.wire_share)
    return max(busy, direct) + direct / degree


# ---- pipeline ------------------------------------------------------------------------------------


def _pieces(plan: Plan, templates: Mapping[str, Ordered]) -> Mapping[Piece, tuple[str, ...]]:
    """The templates that each piece of work of each stage runs, in order."""
    programs = {name: ordered.program for name, ordered in templates.items()}
    passes = [Pass.FORWARD, Pass.BACKWARD, *([Pass.WEIGHT] if plan.schedule.defers_weights else [])]
    found: dict[Piece, tuple[str, ...]] = {}
    for at in range(plan.layout.pp):
        chunks = chunks_of(replace(plan, rank=at * plan.layout.stage))
        parts = Parts(shape=plan.shape, programs=programs, chunks=chunks)
        for kind in passes:
            for chunk in range(plan.layout.chunks):
                piece = instances_of(parts, Piecework(kind, chunk, 0))
                found[at, kind, chunk] = tuple(instance.template for instance in piece)
    return found


def _hop(plan: Plan, found: Rates) -> float:
    """One activation to the neighbouring stage, each rank over its own card."""
    size = 2 * plan.tokens // plan.layout.sp * plan.shape.hidden
    sent = Sending(
        algorithm="send",
        axis="pp",
        label=PIPELINE,
        wire=float(size),
        degree=2,
        tensor=size,
        world=plan.layout.world,
    )
    return message(sent, found)


# ---- the ends of a step --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """What follows the last backward: gradients still on their way, the optimizer, parameters."""

    gradients: float
    optimizer: float
    parameters: float


def _ends(
    job: Job,
    studio: Studio,
    run: pipeline.Run,
    segments: Mapping[str, Segment],
    pieces: Mapping[Piece, tuple[str, ...]],
    found: Rates,
) -> Ends:
    """The later of the first and the last stage."""
    each = [
        _stage_ends(job, step, studio, run, segments, pieces, found)
        for step in studio.ends(job.plan, found)
    ]
    return max(each, key=lambda ends: ends.gradients + ends.optimizer + ends.parameters)


def _stage_ends(
    job: Job,
    step: Step,
    studio: Studio,
    run: pipeline.Run,
    segments: Mapping[str, Segment],
    pieces: Mapping[Piece, tuple[str, ...]],
    found: Rates,
) -> Ends:
    gradients = parameters = passes = 0.0
    for name in (one.template for one in step.instances if is_end(one.template)):
        program = step.templates[name].program
        asked = studio.asked(program, sizes(step.plan))
        paid = prices(asked, found, job.regime)
        carried = {task.name: task.attributes.get("label") for task in program.tasks}
        gradients += sum(paid[task] for task, label in carried.items() if label == GRADIENTS)
        parameters += sum(paid[task] for task, label in carried.items() if label == PARAMETERS)
        passes += sum(paid[task] for task, kind in asked.items() if isinstance(kind, Passing))
    if not job.regime.beside:
        return Ends(gradients=gradients, optimizer=passes, parameters=parameters)
    ready = _ready(step.plan, run, segments, pieces)
    free = 0.0
    for moment in ready:
        free = max(free, moment) + gradients / len(ready)
    return Ends(
        gradients=max(0.0, free - run.seconds),
        optimizer=passes,
        parameters=parameters / len(ready),
    )


def _ready(
    plan: Plan,
    run: pipeline.Run,
    segments: Mapping[str, Segment],
    pieces: Mapping[Piece, tuple[str, ...]],
) -> list[float]:
    """When the gradients of each segment of a stage are summed over its micro-batches."""
    at = plan.layout.pp_rank(plan.rank)
    ready: list[float] = []
    for chunk in range(plan.layout.chunks):
        moment = run.last(at, chunk)
        for name in reversed(pieces[at, Pass.BACKWARD, chunk]):
            ready.append(moment)
            moment -= segments[name].seconds
    return sorted(ready)


def _summary(
    job: Job,
    segments: Mapping[str, Segment],
    run: pipeline.Run,
    pieces: Mapping[Piece, tuple[str, ...]],
    first: Mapping[Piece, tuple[str, ...]],
    ends: Ends,
) -> Simulated:
    plan = job.plan
    runs = [Counter[str]() for _ in range(plan.layout.pp)]  # of each segment, on each stage
    for parts, times in ((first, 1), (pieces, plan.local_micro_batches - 1)):
        for (stage, *_), names in parts.items():
            runs[stage].update({name: times * count for name, count in Counter(names).items()})
    busy = [sum(segments[name].seconds * n for name, n in each.items()) for each in runs]
    at = max(range(plan.layout.pp), key=lambda stage: busy[stage])
    exposed: dict[str, float] = {}
    for name, count in runs[at].items():
        for cause, time in segments[name].exposed.items():
            exposed[cause] = exposed.get(cause, 0.0) + time * count
    exposed |= {GRADIENTS: ends.gradients, PARAMETERS: ends.parameters}
    total = run.seconds + ends.gradients + ends.optimizer + ends.parameters
    flops = token_flops(plan.shape, sequence=plan.sequence) * plan.micro_batches * plan.tokens
    return Simulated(
        job=job,
        segments=segments,
        run=run,
        pieces=pieces,
        seconds=total,
        products=sum(segments[name].products * count for name, count in runs[at].items()),
        exposed=exposed,
        bubble=run.seconds - busy[at],
        flops=flops / total / job.ranks,
    )
