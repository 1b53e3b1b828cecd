"""What a piece of work costs on a machine, in seconds.

    product      waves of tiles over the multiprocessors at the rate of an inner loop; where the
                 machine was measured, the rate of the measured shapes nearby
    attention    FLOPs at the rate of flash attention; where it was measured, of the bodies that
                 `kernels.attention` names
    pass         bytes over the bandwidth that such a body reaches
    message      latency + bytes over the narrower of link and network card
    host         a synchronisation: the queue runs dry and fills again

`pricing` closes over all of it: it gives the function of a task that orders and simulations take.
Interference of lanes is no property of a task: `simulate` adds it.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, log, log2

from weft.compose.price import BYTES
from weft.graph.dims import Sizes
from weft.graph.opset import FIRST
from weft.graph.program import Program, Task
from weft.planner.constants import Constants, constants
from weft.planner.machine import REPEATABLE, Attention, Machine, Message, Product
from weft.planner.work import (
    Attend,
    Passing,
    Products,
    Sending,
    Waiting,
    Way,
    Work,
    filled,
    work,
)

Pricing = Callable[[Task, Program, Sizes], float]

# Rows, columns and relative speed of the tiles that libraries choose from; the smaller one feeds
# the tensor cores from shared memory more often (H200, CUTLASS: about 85 % of the large one).
TILES = ((128, 256, 1.0), (256, 128, 1.0), (128, 128, 0.85))
FILL = 128  # depth of a tile's contraction that its prologue and epilogue cost, in elements
SYNCHRONISE = 3e-5  # seconds: copy to the host, wake up, and the first kernel behind it


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """A machine with everything that prices work on it."""

    machine: Machine
    constants: Constants
    transport: str = "nccl"  # or "symmetric": kernels and copy engines over peer memory
    attention: str = REPEATABLE  # as `kernels.attention` names it

    @property
    def product_flops(self) -> float:
        """FLOP/s of the inner loop of a product over the whole device."""
        device = self.machine.device
        return device.peak_flops * device.sustained * self.constants.product

    @property
    def copy_bandwidth(self) -> float:
        """Bytes a second of a plain copy."""
        return self.machine.device.memory_bandwidth * self.machine.device.copy


def rates(machine: Machine, transport: str = "nccl", attention: str = REPEATABLE) -> Rates:
    """A machine at the constants of the file."""
    return Rates(machine=machine, constants=constants(), transport=transport, attention=attention)


def pricing(found: Rates, widths: Mapping[str, int] = BYTES) -> Pricing:
    """The price of a task: a function of the task, its program and the sizes behind its letters."""

    def price(task: Task, program: Program, n: Sizes) -> float:
        return seconds(work(task, program, n, widths), found)

    return price


def imbalanced(n: Sizes, factor: float) -> Sizes:
    """The sizes on the rank that routing hits hardest: its rows are that much above the mean."""
    worst = n.bounds.get("R", n.R)
    rows = min(ceil(n.R * factor), worst)
    return replace(n, numbers={**n.numbers, "R": rows})


def seconds(asked: Work, found: Rates) -> float:
    """What a piece of work costs."""
    match asked:
        case Products():
            return product_seconds(asked, found) + added_seconds(asked, found)
        case Attend():
            return _attend(asked, found)
        case Passing():
            return _passing(asked, found)
        case Sending():
            return message(asked, found)
        case Waiting(synchronises=synchronises):
            return SYNCHRONISE if synchronises else 0.0


# ---- compute -------------------------------------------------------------------------------------


def product_seconds(asked: Products, found: Rates, *, taken: float = 0.0) -> float:
    """A product on what is left of the multiprocessors when a share of them is taken."""
    memory = asked.moved / found.copy_bandwidth
    launch = found.machine.device.launch
    if found.machine.measured.products:
        rate = _measured_rate(asked, found) * (1 - taken)
        return max(asked.flops / rate, memory) + launch
    phases = ("", "dgrad", "wgrad") if asked.phase == "fused" else (asked.phase,)
    busy = sum(_tiled(asked, phase, found, taken) for phase in phases)
    return max(busy, memory) + launch


def added_seconds(asked: Work, found: Rates) -> float:
    """What the pass behind a grouped product takes that adds its gradient; measured rates hold it
    already.
    """
    if not isinstance(asked, Products) or not asked.added or found.machine.measured.products:
        return 0.0
    bandwidth = found.machine.device.memory_bandwidth * found.constants.stream
    return asked.added / bandwidth + found.machine.device.launch


def _tiled(asked: Products, phase: str, found: Rates, taken: float) -> float:
    """Waves of tiles over the multiprocessors left, for the tile that suits the shape best."""
    each = asked.rows / asked.groups
    rows, columns, depth = {
        "": (each, asked.n, asked.k),
        "dgrad": (each, asked.k, asked.n),
        "wgrad": (asked.n, asked.k, each),
        FIRST: (asked.n, asked.k, each),
    }[phase]
    all_units = found.machine.device.multiprocessors
    units = max(int(all_units * (1 - taken)), 1)

    def time(high: int, wide: int, speed: float) -> float:
        tiles = asked.groups * ceil(rows / high) * ceil(columns / wide)
        flops = 2 * high * wide * (depth + FILL) / speed
        return ceil(tiles / units) * flops / (found.product_flops / all_units)

    return min(time(*tile) for tile in TILES)


def _measured_rate(asked: Products, found: Rates) -> float:
    """FLOP/s from the measured shapes: their rates, the more a shape resembles the more it counts.

    Numerics: weights fall with the square of the distance in logarithms of rows a group, columns,
    depth and groups; another phase counts as a factor of 16 in size, one that writes a gradient
    where the other adds as one of 1.1: it stands for the other until it is measured itself.
    """
    total = weight = 0.0
    for known in found.machine.measured.products:
        apart = (
            log((asked.rows / asked.groups) / (known.rows / known.groups)) ** 2
            + log(asked.n / known.n) ** 2
            + log(asked.k / known.k) ** 2
            + log(asked.groups / known.groups) ** 2 / 4
            + _apart(asked.phase, known.phase)
        )
        near = 1 / (apart**2 + 1e-6)  # 1e-6: a shape that was measured counts alone
        total, weight = total + near * _rate_as(asked.phase, known, found), weight + near
    return total / weight


def _rate_as(phase: str, known: Product, found: Rates) -> float:
    """FLOP/s of a measured shape in another phase: a weight gradient that is added to its sum reads
    that sum, one that is written does not, and a product hides little of it.
    """
    if {phase, known.phase} != {"wgrad", FIRST}:
        return known.flops
    flops = 2 * known.rows * known.n * known.k
    took = flops / known.flops
    read = BYTES["acc"] * known.groups * known.n * known.k / found.copy_bandwidth
    other = took + read if phase == "wgrad" else max(took - read, took / 2)  # it writes as much
    return flops / other


def _apart(phase: str, other: str) -> float:
    """How unlike two phases are, as a squared logarithm of sizes."""
    if phase == other:
        return 0.0
    return log(1.1 if {phase, other} == {"wgrad", FIRST} else 16) ** 2


def _attend(asked: Attend, found: Rates) -> float:
    device = found.machine.device
    known = _attentions(asked.phase, found)
    if known:
        nearest = min(known, key=lambda a: abs(log(a.length / max(asked.length, 1))))
        # A longer sequence has fewer blocks that are masked in part: no lower rate than a shorter
        # one. Where one was measured, the products of its stack had lowered the clock.
        full = max(a.flops for a in known if a.length <= nearest.length)
        rate = full * filled(asked, device.multiprocessors, found.attention)
        return asked.flops / rate + device.launch
    rate = device.peak_flops * device.sustained * found.constants.attention
    return asked.flops / rate + device.launch


def _attentions(phase: str, found: Rates) -> Sequence[Attention]:
    """What was measured of the bodies asked for; else of the repeatable ones, whose full waves are
    what others have at least.
    """
    known = [a for a in found.machine.measured.attention if a.phase == phase]
    own = [a for a in known if a.kernel == found.attention]
    return own or [a for a in known if a.kernel == REPEATABLE]


def _passing(asked: Passing, found: Rates) -> float:
    known = found.machine.measured.passes.get(asked.body)
    if known is not None:
        return known.seconds + asked.moved / known.bandwidth
    if found.machine.measured.passes:
        return asked.moved / found.copy_bandwidth + found.machine.device.launch
    share = {
        Way.STREAM: found.constants.stream,
        Way.ROWS: found.constants.rows,
        Way.SUMS: found.constants.sums,
    }[asked.way]
    bandwidth = found.machine.device.memory_bandwidth * share
    return asked.moved / bandwidth + found.constants.gap


# ---- communication -------------------------------------------------------------------------------


def message(asked: Sending, found: Rates, *, node_ranks: int | None = None) -> float:
    """Latency, and the bytes over what the group's path gives.

    `node_ranks` are the members of the group inside one node, where the axis does not say it: a
    group that leaves its node is as fast as the cards of those members together, or as the link.
    """
    if asked.degree <= 1 or asked.wire <= 0:
        return 0.0
    here = _inside(asked, found.machine) if node_ranks is None else node_ranks
    link = _link(asked, found)
    if asked.degree <= here:
        return _latency(asked, found, inside=True) + asked.wire / link
    card = found.machine.nic.bandwidth * found.constants.network
    if asked.algorithm == "all_to_all":
        outside = asked.wire * (asked.degree - here) / (asked.degree - 1)
        slowest = max(outside / card, (asked.wire - outside) / link)
        return _latency(asked, found, inside=False) + slowest
    return _latency(asked, found, inside=False) + asked.wire / min(link, here * card)


def _inside(asked: Sending, machine: Machine) -> int:
    """Members of a group in one node: all where the job fits into it, else neighbours by rank, or
    one in each node.
    """
    far = asked.axis in FAR or asked.axis.endswith("_inter")
    return 1 if far and asked.world > machine.link.ranks else machine.link.ranks


# groups whose members lie in different nodes
FAR = frozenset({"edp", "dp", "pp"})


def _link(asked: Sending, found: Rates) -> float:
    """Bytes a second over the links of one node, for a message of that size."""
    if found.transport == "symmetric":
        copies = [m for m in found.machine.measured.messages if m.transport == "symmetric"]
        if copies:
            return _bus(copies, asked.tensor)
        return found.machine.link.bandwidth * found.constants.direct
    known = [
        m
        for m in found.machine.measured.messages
        if m.transport == found.transport and m.algorithm == asked.algorithm
    ]
    if known:
        return _bus(known, asked.tensor)
    share = found.constants.exchange if asked.algorithm == "all_to_all" else found.constants.ring
    return found.machine.link.bandwidth * share


def _latency(asked: Sending, found: Rates, *, inside: bool) -> float:
    """Seconds before the first byte; a measured curve holds it already."""
    if inside and any(m.transport == found.transport for m in found.machine.measured.messages):
        return 0.0
    if inside:
        return found.constants.latency
    return found.constants.latency + found.machine.nic.latency * ceil(log2(asked.degree))


def _bus(curve: Sequence[Message], size: float) -> float:
    """Bus bandwidth at a size: a line between measured points in logarithms, the ends continued.

    Below the smallest message its time stands: bandwidth falls in proportion.
    """
    points = sorted((m.size, m.bus) for m in curve)
    size = max(size, 1.0)
    if size <= points[0][0]:
        return points[0][1] * size / points[0][0]
    for (low, slow), (high, fast) in itertools.pairwise(points):
        if size <= high:
            part = log(size / low) / log(high / low)
            return exp(log(slow) + part * log(fast / slow))
    return points[-1][1]
