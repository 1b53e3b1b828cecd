"""How fast collectives are, over each wire of this machine: time, and bytes received a second.

Both wires take turns in one process, on the same random data, and their results are compared bit
for bit before anything is timed. On CUDA a call is timed between events on one stream, behind a
product that gives the host time to issue it and a short sum that brings the ranks together; on a
CPU by the host's clock.

    all_gather, reduce_scatter, all_to_all    bfloat16, by megabytes received a rank
    all_reduce                                FP32, by bytes: loads and statistics
    gradients                                 FP32 to FP32 sums of the own shard: the first wire's
                                              reduce-scatter in FP32, then bfloat16 on each wire
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from weft.bench import foretold
from weft.bench.record import append, entry
from weft.bench.spread import Spread, spread
from weft.comm.mesh import Mesh
from weft.comm.reach import ARENA_BYTES
from weft.comm.symmetric import slot_bytes_of
from weft.comm.transport import Transport
from weft.comm.transports.gloo import GlooTransport
from weft.comm.transports.nccl import NcclTransport
from weft.errors import VerificationError
from weft.runtime.backends import peer_kernels, pick_device, prepare
from weft.trainer import peers

MOVES = ("all_gather", "reduce_scatter", "all_to_all")
TIMEOUT_SECONDS = 60.0
AXIS = "dense"
SHORT_SUMS = (1 << 8, 1 << 14, 1 << 18)  # bytes
KERNELS = "one kernel"  # peer memory, every call of even blocks a kernel
_SIDE, _PRODUCTS = 8192, 4  # six milliseconds of an H200: the host issues a call meanwhile

Call = Callable[[Transport], Tensor]
Wires = Mapping[str, Transport]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """How much is measured: megabytes received a rank, elements of a gradient, repeats, and turns
    that nobody times.
    """

    megabytes: tuple[int, ...]
    elements: int
    repeats: int
    warm_up: int = 3


def work_on(device: torch.device, *, repeats: int) -> Work:
    """What a device carries in a minute."""
    if device.type == "cuda":
        return Work(megabytes=(1, 4, 16, 64, 256), elements=1 << 30, repeats=repeats)
    return Work(megabytes=(1, 4, 16), elements=1 << 20, repeats=repeats)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """One collective of one size, and how each wire carries it; the first is the one to beat."""

    name: str
    received_bytes: int  # in the fewest bits that some wire sends
    runs: Mapping[str, tuple[str, Call]]  # label -> wire, call
    alike: tuple[str, ...]  # labels that must find the same bits, each time


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What the wires took for one contest."""

    name: str
    received_bytes: int
    times_us: Mapping[str, Spread]

    def rate(self, label: str) -> float:
        """Gigabytes received a second."""
        return self.received_bytes / self.times_us[label].median / 1e3

    def ratio(self, label: str) -> float:
        """How many times as fast as the first."""
        first = next(iter(self.times_us.values()))
        return first.median / self.times_us[label].median


def measure(wires: Wires, device: torch.device, work: Work) -> Iterator[Row]:
    """Every contest over these wires as it ends; every rank goes through all of them and finds the
    same figures.

    Raises:
        VerificationError: two wires do not give the same bits.
    """
    ranks = next(iter(wires.values())).group_size(AXIS)
    contests = (
        *moves(wires, device, ranks, work.megabytes),
        *short_sums(wires, device, ranks),
        lambda: gradients(wires, device, ranks, work.elements),
    )
    for make in contests:
        yield _contest(make(), wires, device, work)


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What to measure with how many ranks, and where the first says so."""

    ranks: int
    device: str
    work: Work
    file: Path | None
    say: Callable[[str], None]


def measure_here(order: Order) -> None:
    """Measures with ranks that are children of this process; the first one prints."""
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
        spawn(measure_rank, (f"file://{folder}/meeting", order), nprocs=order.ranks)


def measure_rank(rank: int, meeting: str, order: Order) -> None:
    """Measures one rank; the first prints and appends."""
    device = pick_device(order.device, rank)
    prepare(device, threads=1, neighbours=order.ranks)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=meeting,
        rank=rank,
        world_size=order.ranks,
    )
    wires = open_wires(Mesh(dp=order.ranks), device)
    if rank == 0:
        order.say(render([], title(wires, device, order.ranks)))
    asked: list[tuple[str, int]] = []
    for row in measure(wires, device, order.work):
        if row.name != "all_reduce":
            asked.append((row.name, row.received_bytes))
        if rank == 0:
            order.say("\n".join(lines(row)))
            if order.file is not None:
                append(order.file, entry("comm", device, {"ranks": order.ranks, **record(row)}))
    if rank == 0 and device.type == "cuda" and order.ranks == 2:
        slot_bytes = slot_bytes_of(ARENA_BYTES, order.ranks)
        order.say("\n" + foretold.render(asked, slot_bytes=slot_bytes))
    list(wires.values())[-1].close()
    dist.destroy_process_group()


def open_wires(mesh: Mesh, device: torch.device) -> Wires:
    """The wires of a device, the one to beat first; the last one closes them all."""
    if device.type != "cuda":
        return {"gloo": GlooTransport(mesh, timeout_seconds=TIMEOUT_SECONDS, lanes=("comm",))}
    seconds = TIMEOUT_SECONDS
    nccl = NcclTransport(mesh, device=device, timeout_seconds=seconds, lanes=("comm",))
    open_peers = partial(peers.beside, nccl, "symmetric", device, timeout_seconds=seconds)
    return {
        "NCCL": nccl,
        KERNELS: open_peers(kernels=peer_kernels(device), most=sys.maxsize),
        "symmetric": open_peers(),
    }


# ---- what is measured ----------------------------------------------------------------------------


def moves(
    wires: Wires, device: torch.device, ranks: int, megabytes: tuple[int, ...]
) -> list[Callable[[], Contest]]:
    """Each collective of each size, its data made when it is its turn."""
    return [
        partial(_move, name, wires, device, ranks, size << 20)
        for size in megabytes
        for name in MOVES
    ]


def _move(
    name: str, wires: Wires, device: torch.device, ranks: int, received_bytes: int
) -> Contest:
    blocks = 1 if name == "all_gather" else ranks
    elements = received_bytes // (ranks - 1) // 2  # of bfloat16, from each of the others
    x = torch.randn(blocks * elements, device=device, dtype=torch.bfloat16)

    def run(transport: Transport) -> Tensor:
        return getattr(transport, name)(x, axis=AXIS, label="bench").wait()

    adds = name == "reduce_scatter" and ranks > 2  # each wire in an order of its own
    return Contest(
        name=name,
        received_bytes=elements * 2 * (ranks - 1),
        runs={wire: (wire, run) for wire in wires},
        alike=tuple(wires)[1:] if adds else tuple(wires),
    )


def short_sums(wires: Wires, device: torch.device, ranks: int) -> list[Callable[[], Contest]]:
    """The sum of a short vector over all members, of each size."""
    return [partial(_short_sum, wires, device, ranks, size) for size in SHORT_SUMS]


def _short_sum(wires: Wires, device: torch.device, ranks: int, num_bytes: int) -> Contest:
    x = torch.randn(num_bytes // 4, device=device)

    def run(transport: Transport) -> Tensor:
        return transport.all_reduce(x, axis=AXIS, label="bench").wait()

    return Contest(
        name="all_reduce",
        received_bytes=2 * num_bytes * (ranks - 1) // ranks,
        runs={wire: (wire, run) for wire in wires},
        alike=tuple(wires)[1:] if ranks > 2 else tuple(wires),  # NCCL has an order of its own
    )


def gradients(wires: Wires, device: torch.device, ranks: int, elements: int) -> Contest:
    """The sum of gradients: in FP32 on the first wire, against bfloat16 on each of them."""
    grad = torch.randn(elements, device=device)
    out = torch.empty(elements // ranks, device=device)

    def whole(transport: Transport) -> Tensor:
        return transport.reduce_scatter(grad, axis=AXIS, label="bench").wait()

    def rounded(transport: Transport) -> Tensor:
        wire = torch.bfloat16
        return transport.all_to_all_sum(grad, out, wire=wire, axis=AXIS, label="bench").wait()

    first = next(iter(wires))
    halves = {f"{wire} BF16": (wire, rounded) for wire in wires}
    return Contest(
        name="gradients",
        received_bytes=elements * 2 * (ranks - 1) // ranks,
        runs={f"{first} FP32": (first, whole), **halves},
        alike=tuple(halves),
    )


# ---- how it is measured --------------------------------------------------------------------------


def _contest(contest: Contest, wires: Wires, device: torch.device, work: Work) -> Row:
    _compare(contest, wires)
    times: dict[str, list[float]] = {label: [] for label in contest.runs}
    for turn in range(work.warm_up + work.repeats):
        for label, (wire, call) in contest.runs.items():
            taken = _time(call, wires[wire], device)
            if turn >= work.warm_up:
                times[label].append(taken)
    slowest = torch.tensor(list(times.values()), device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)  # a collective is done when all ranks are
    return Row(
        name=contest.name,
        received_bytes=contest.received_bytes,
        times_us={label: spread(row) for label, row in zip(times, slowest.tolist(), strict=True)},
    )


def _compare(contest: Contest, wires: Wires) -> None:
    """Checks that wires which do the same arithmetic give the same bits, and twice the same."""
    turns = (*contest.alike, *contest.alike)
    found = [(label, *contest.runs[label]) for label in turns]
    expected = None
    for label, wire, call in found:
        bits = call(wires[wire]).clone()
        expected = bits if expected is None else expected
        if not torch.equal(bits, expected):
            raise VerificationError(
                f"{contest.name} of {contest.received_bytes} bytes: {label} found other bits than "
                f"{turns[0]}; try kernels.transport = 'nccl', and report it"
            )


def _time(call: Call, transport: Transport, device: torch.device) -> float:
    """Microseconds of one call."""
    if device.type != "cuda":
        dist.barrier()
        begun = time.perf_counter()
        call(transport)
        return (time.perf_counter() - begun) * 1e6
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    side = torch.randn(_SIDE, _SIDE, device=device, dtype=torch.bfloat16)
    for _ in range(_PRODUCTS):
        torch.mm(side, side)
    transport.all_reduce(side[0, :1], axis=AXIS, label="together").wait()
    begin.record()
    call(transport)
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) * 1e3


# ---- what is said of it --------------------------------------------------------------------------


def title(wires: Wires, device: torch.device, ranks: int) -> str:
    """Which wires these are, and what this machine lacks."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    lacks = "" if len(wires) > 1 else "; no other wire to compare with on this device"
    return f"{ranks} ranks of {name}: {', '.join(wires)}{lacks}"


def render(rows: list[Row], about: str) -> str:
    """A table: a line for each collective, size and wire."""
    head = f"{'collective':<15}{'MB':>9}  {'wire':<16}{'us (min to p90)':>30}{'GB/s':>8}"
    return "\n".join((about, "", head, *(line for row in rows for line in lines(row))))


def lines(row: Row) -> Iterator[str]:
    """A line for each wire of a row."""
    for label, times in row.times_us.items():
        yield (
            f"{row.name:<15}{row.received_bytes / 2**20:>9.4g}  {label:<16}"
            f"{times.text(1):>30}{row.rate(label):>8.0f}  {row.ratio(label):.2f}x"
        )


def record(row: Row) -> dict[str, object]:
    """One row as JSON."""
    return {
        "collective": row.name,
        "received_bytes": row.received_bytes,
        "wires": {
            label: {"us": times.record(), "gbs": row.rate(label), "ratio": row.ratio(label)}
            for label, times in row.times_us.items()
        },
    }
