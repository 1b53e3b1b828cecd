"""One rank's step played whole, as its executor runs it: every instance, every lane, and the host.

    host       issues action after action, each for the time its body takes to issue; where a task
               brings numbers to the host it waits until the device is there
    compute    one task after another, none before it is issued; slower beside a collective
    lanes      the collectives of a group in order; slower beside compute, and lanes that are busy
               at once share the link
    edges      what a segment leaves in flight is joined by a later one, busy lanes stay busy
    steps      follow one another: at the beginning of one the host is as far ahead as at the end

All ranks are taken to be alike. `simulate` prices pipelines, whose ranks differ, by segments.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from weft.compose.instance import Instance
from weft.compose.plan import sizes
from weft.compose.step import Step
from weft.graph.dims import Sizes
from weft.graph.opset import Lane
from weft.graph.program import Program, Task
from weft.model.count import token_flops
from weft.planner.cost import Rates, imbalanced, seconds
from weft.planner.machine import Beside
from weft.planner.play import COMPUTE, label
from weft.planner.work import Attend, Passing, Products, Way, Work, work
from weft.schedule.action import Join, Post, Run, Wait
from weft.telemetry.trace import SEGMENT, Span

ZERO = "zero gradients"  # what a step clears before it begins: no task, and a pass all the same
HOST = "host"  # what compute waits for where it is through before the next task is issued


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """A played step: its time, where it goes, and every task on its lane."""

    seconds: float
    products: float
    exposed: Mapping[str, float]  # seconds that compute stood still, by what it waited for
    issue: float  # seconds that the host takes to issue it
    flops: float  # of the model, a second and rank
    tokens_per_s: float
    spans: tuple[Span, ...]

    @property
    def bubble(self) -> float:
        """One stage waits for no other."""
        return 0.0

    @property
    def others(self) -> float:
        """What is neither product nor waiting."""
        return self.seconds - self.products - sum(self.exposed.values())


def play_step(step: Step, found: Rates) -> Whole:
    """One step of one rank at the rates of a machine, behind one like it."""
    plan = step.plan
    priced = _priced(step, imbalanced(sizes(plan), found.constants.imbalance), found)
    first = _played(step, priced, found, ahead=0.0)
    device = _played(step, priced, found, ahead=first.now - first.host)
    took = device.now
    tokens = plan.micro_batches * plan.tokens
    done = token_flops(plan.shape, sequence=plan.sequence) * tokens
    return Whole(
        seconds=took,
        products=sum(priced[one.template].products for one in step.instances),
        exposed=device.exposed,
        issue=device.issued,
        flops=done / took / plan.layout.world,
        tokens_per_s=tokens / took,
        spans=tuple(device.spans),
    )


# ---- prices --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prices:
    """What the tasks of a template take, by name, and its products and attention together."""

    tasks: Mapping[str, float]
    products: float


def _priced(step: Step, n: Sizes, found: Rates) -> Mapping[str, _Prices]:
    return {name: _price(ordered.program, n, found) for name, ordered in step.templates.items()}


def _price(program: Program, n: Sizes, found: Rates) -> _Prices:
    asked: dict[str, Work] = {task.name: work(task, program, n) for task in program.tasks}
    tasks = {name: seconds(kind, found) for name, kind in asked.items()}
    heavy = (name for name, kind in asked.items() if isinstance(kind, Products | Attend))
    return _Prices(tasks=tasks, products=sum(tasks[name] for name in heavy))


def _cleared(step: Step) -> Work:
    """The sums of gradients that are not written first, and of shards, filled with zeros."""
    count = sum(len(r) for ranges in step.zeroed.values() for r in ranges)
    if step.plan.sync.zero > 1:
        count += sum(bucket.shard for bucket in step.buckets)
    return Passing(body=ZERO, moved=4 * count, way=Way.STREAM)


def _beside(found: Rates) -> Beside:
    """As measured; else a collective of kernels takes its share of the multiprocessors. Over peer
    memory it takes none: what its kernels hold there has not been measured.
    """
    if found.transport == "symmetric":
        return Beside(compute=1.0, wire=1.0)
    share = found.constants.wire_share
    return found.machine.measured.beside or Beside(compute=1 / (1 - share), wire=1.0)


# ---- playing -------------------------------------------------------------------------------------


def _played(step: Step, priced: Mapping[str, _Prices], found: Rates, *, ahead: float) -> "_Device":
    """The device behind a step that it begins while the host is that many seconds ahead."""
    device = _Device(beside=_beside(found), host=-ahead)
    device.run(ZERO, seconds(_cleared(step), found))
    flying = dict[str, _Sent]()  # by the key under which it is joined
    for instance in step.instances:
        begun = device.now
        _play(step, instance, priced[instance.template], flying, device, found)
        device.spans.append(_span(SEGMENT, instance.template, begun, device.now))
    device.drain()
    return device


def _play(
    step: Step,
    instance: Instance,
    prices: _Prices,
    flying: "dict[str, _Sent]",
    device: "_Device",
    found: Rates,
) -> None:
    """One instance; what it leaves in flight is known by the key under which it is read."""
    ordered = step.templates[instance.template]
    issue = found.machine.measured.issue
    usual = median(issue.values()) if issue else found.machine.device.launch
    posted: dict[str, _Sent] = {}
    for action in ordered.actions:
        match action:
            case Run(task) if task.lane is Lane.HOST:
                device.synchronise()
                device.issue(issue.get(task.body, 0.0) or prices.tasks[task.name])
            case Run(task):
                device.issue(issue.get(task.body, usual))
                device.run(task.body, prices.tasks[task.name])
            case Post(task):
                device.issue(issue.get(task.body, usual))
                sent = posted[task.name] = device.post(task, prices.tasks[task.name])
                flying |= {instance.writes[v]: sent for v in task.outputs if v in instance.writes}
            case Wait(task):
                device.wait(posted[task.name])
            case Join(value) if instance.reads[value] in flying:
                device.wait(flying.pop(instance.reads[value]))
            case _:
                pass


@dataclass(kw_only=True, slots=True)
class _Sent:
    """A collective on its lane: what is left of it, when it began, and whether it is there."""

    task: Task
    left: float
    begun: float = -1.0
    arrived: bool = False


@dataclass(kw_only=True, slots=True)
class _Device:
    """Compute, lanes and host at one moment of the play, and what has happened up to it."""

    beside: Beside
    now: float = 0.0
    host: float = 0.0
    issued: float = 0.0
    lanes: dict[str, deque[_Sent]] = field(default_factory=dict[str, deque[_Sent]])
    exposed: dict[str, float] = field(default_factory=dict[str, float])
    spans: list[Span] = field(default_factory=list[Span])

    def issue(self, cost: float) -> None:
        """The host issues the next action; compute that is through waits for it."""
        self.host += cost
        self.issued += cost
        if self.host > self.now:
            self._stand_until(self.host, HOST)

    def synchronise(self) -> None:
        """The host waits until the device is there."""
        self.host = max(self.host, self.now)

    def run(self, name: str, cost: float) -> None:
        """A task on the compute lane."""
        begun, left = self.now, cost
        while left > 0:
            heads = self._heads()
            if not heads:
                self.now += left
                break
            wire = self.beside.wire * len(heads)
            step = min(left * self.beside.compute, min(head.left for head in heads) * wire)
            left -= step / self.beside.compute
            self._progress(heads, step, wire)
        if self.now > begun:
            self.spans.append(_span(COMPUTE, name, begun, self.now))

    def post(self, task: Task, cost: float) -> _Sent:
        """A collective behind those of its lane."""
        sent = _Sent(task=task, left=cost)
        self.lanes.setdefault(f"{task.lane} {task.group}", deque()).append(sent)
        return sent

    def wait(self, sent: _Sent) -> None:
        """Compute stands still until a collective has arrived."""
        begun = self.now
        while not sent.arrived:
            self._idle(float("inf"))
        self._stood(begun, label(sent.task))

    def drain(self) -> None:
        """Until every lane is through."""
        while self._heads():
            self._idle(float("inf"))

    def _stand_until(self, moment: float, cause: str) -> None:
        begun = self.now
        while self.now < moment:
            if self._heads():
                self._idle(moment - self.now)
            else:
                self.now = moment
        self._stood(begun, cause)

    def _stood(self, begun: float, cause: str) -> None:
        if self.now > begun:
            self.exposed[cause] = self.exposed.get(cause, 0.0) + self.now - begun
            self.spans.append(_span(COMPUTE, f"wait {cause}", begun, self.now))

    def _idle(self, most: float) -> None:
        """Lanes alone, until one collective has arrived or for that long."""
        heads = self._heads()
        wire = float(len(heads))
        self._progress(heads, min(most, min(head.left for head in heads) * wire), wire)

    def _heads(self) -> list[_Sent]:
        return [lane[0] for lane in self.lanes.values() if lane]

    def _progress(self, heads: list[_Sent], step: float, wire: float) -> None:
        for head in heads:
            head.begun = self.now if head.begun < 0 else head.begun
        self.now += step
        for lane in self.lanes.values():
            if lane and lane[0] in heads:
                head = lane[0]
                head.left -= step / wire
                if head.left <= TINY:
                    lane.popleft()
                    head.arrived = True
                    self.spans.append(_sent_span(head, self.now))


TINY = 1e-12  # seconds: less than any task, more than the rounding of a step of this play


def _span(lane: str, name: str, start: float, stop: float) -> Span:
    return Span(rank=0, lane=lane, name=name, start=start, stop=stop, detail={})


def _sent_span(head: _Sent, stop: float) -> Span:
    task = head.task
    name = f"{task.body} {task.attributes['label']}"
    return _span(f"{task.lane} {task.group}", name, head.begun, stop)
