"""A machine file from one short run: every body where it runs, collectives by size, host time.

    collectives  by size, and beside a product (`bench.collectives`)
    stacks       layers of published shapes, each at its own width, length and number of experts:
                 layouts of all ranks, then on one rank, dealt out to all of them
    tasks        each beside what it asks of a machine, and its host time (`bench.clock`)

Orders are serial, so that nothing runs beside what is timed. A stack that does not fit is said and
left out. What is known so far is a machine after each stack: a run that is ended leaves the last.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist

from weft.bench import collectives, record
from weft.bench.ceilings import Ceilings, stored
from weft.bench.clock import Taken, take
from weft.bench.profile import hold
from weft.bench.rig import assemble
from weft.bench.world import Wires, fresh
from weft.comm.transport import Transport
from weft.config.load import build
from weft.config.run import RunConfig
from weft.ops.registry import alternatives
from weft.planner.calibration import measured
from weft.planner.machine import Beside, Device, Machine, Message, Network
from weft.runtime import backends
from weft.trainer.record import Stopwatch
from weft.trainer.session import Place, open_transport

Tree = dict[str, Any]


# ---- what is run ---------------------------------------------------------------------------------


def _stack(name: str, model: Mapping[str, Any], sequence: int, micro_batch: int) -> Tree:
    return {
        "name": name,
        "model": {"vocab": 32768, "head_dim": 128, **model},
        "data": {"source": "stdlib", "sequence": sequence},
        "optim": {"lr": 1e-4, "warmup_steps": 0},
        "train": {
            "steps": 1, "global_batch": micro_batch, "micro_batch": micro_batch,
            "precision": "bfloat16", "eval_every": 1, "checkpoint_every": 0, "device": "cuda",
        },
        "overlap": {"order": "serial"},
    }  # fmt: skip


# Phi-3.5-MoE, OLMoE, Qwen3-235B-A22B, Mixtral-8x22B, and two between with shared experts.
LARGE: Sequence[Tree] = (
    _stack("phi-3.5", {"family": "mixtral", "hidden": 4096, "layers": 1, "heads": 32,
        "kv_heads": 8, "ffn_hidden": 6400, "experts": 16, "top_k": 2}, 4096, 2),
    _stack("olmoe", {"family": "qwen3_moe", "hidden": 2048, "layers": 1, "heads": 16,
        "kv_heads": 16, "ffn_hidden": 1024, "experts": 64, "top_k": 8, "qk_norm": True}, 4096, 4),
    _stack("qwen3-235b", {"family": "qwen3_moe", "hidden": 4096, "layers": 1, "heads": 64,
        "kv_heads": 4, "ffn_hidden": 1536, "experts": 128, "top_k": 8, "qk_norm": True}, 4096, 2),
    _stack("shared-2560", {"family": "deepseek_moe", "hidden": 2560, "layers": 1, "heads": 20,
        "kv_heads": 20, "ffn_hidden": 1280, "experts": 48, "top_k": 6, "shared_experts": 2},
        4096, 2),
    _stack("mixtral-8x22b", {"family": "mixtral", "hidden": 6144, "layers": 1, "heads": 48,
        "kv_heads": 8, "ffn_hidden": 16384, "experts": 8, "top_k": 2}, 8192, 1),
    _stack("shared-3072", {"family": "deepseek_moe", "hidden": 3072, "layers": 1, "heads": 24,
        "kv_heads": 8, "ffn_hidden": 8192, "experts": 16, "top_k": 3, "shared_experts": 1},
        8192, 1),
)  # fmt: skip
# What differs where attention is that of cuDNN: of sequences of 4,096 and of 8,192.
OTHERWISE: Mapping[str, Sequence[str]] = {
    "olmoe": (),
    "shared-2560": ("data.sequence=8192", "train.micro_batch=1", "train.global_batch=1"),
}
SPREAD: Sequence[Sequence[str]] = (  # layouts of all ranks, each over another stack
    ("sp", "ep", "all_to_all"),
    ("sp", "ep", "all_gather"),
    ("dp", "", "all_to_all"),
    ("tp", "", "all_to_all"),
)
_TO_TEST = {"hidden": 64, "heads": 4, "kv_heads": 4, "head_dim": 16, "ffn_hidden": 32, "vocab": 128}
SMALL: Sequence[Tree] = tuple(  # seconds on a CPU, where nobody plans a cluster
    _stack(f"small-{i}", {"family": "mixtral", "layers": 1, "experts": 4, "top_k": 2, **_TO_TEST},
           64 * i, 2) for i in (1, 2)
)  # fmt: skip


def singles(*, cuda: bool) -> Iterator[list[RunConfig]]:
    """One rank of every stack; the narrow ones once more at another size, in two micro-batches, of
    which the second adds to gradients that the first has written, and with cuDNN's backward of
    attention where there is one.
    """
    for tree in LARGE if cuda else SMALL:
        short = [*_plain(cuda=cuda), "train.micro_batch=1", "train.global_batch=2"]
        again = [build(tree, short)] if tree["model"]["hidden"] <= NARROW else []
        yield [build(tree, _plain(cuda=cuda)), *again, *_otherwise(tree)]


def _otherwise(tree: Tree) -> Iterator[RunConfig]:
    """The same stack with cuDNN's backward of attention."""
    if tree["name"] in OTHERWISE and "cudnn" in alternatives()["attention"]:
        yield build(tree, ["kernels.attention=cudnn", *OTHERWISE[tree["name"]]])


def spreads(world: int, *, cuda: bool) -> Iterator[RunConfig]:
    """Layouts of all ranks, over the narrow stacks in turn."""
    stacks = [tree for tree in (LARGE if cuda else SMALL) if tree["model"]["hidden"] <= NARROW]
    for at, (group, experts, dispatch) in enumerate(SPREAD if world > 1 else ()):
        tree = stacks[at % len(stacks)]
        yield build(tree, [*_plain(cuda=cuda), *_layout(tree, group, experts, dispatch, world)])


NARROW = 2560  # channels of the residual stream: of such a stack a rank is set up in a second


def _plain(*, cuda: bool) -> list[str]:
    return [] if cuda else ["train.device=cpu", "train.precision=float32"]


def _layout(tree: Tree, group: str, experts: str, dispatch: str, world: int) -> list[str]:
    axis = "dp" if group == "dp" else "sp"
    found = [f"parallel.{axis}={world}", f"parallel.dispatch={dispatch}"]
    if experts:
        found.append(f"parallel.ep={world}")
    if group == "tp":
        found += ["parallel.attention=tp", "parallel.ffn=tp"]
    if axis == "dp":
        batch = tree["train"]["micro_batch"] * world
        found += [f"train.global_batch={batch}", "compression.gradients=bf16"]
    return found


# ---- the whole run -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The machine whose numbers on paper are kept, if any, and who is told how it goes."""

    base: Machine | None
    say: Callable[[str], None]


def calibrate(place: Place, order: Order) -> Iterator[Machine]:
    """The machine under this rank as it is known after each stack; every rank of a world, which
    has met the others, goes through all of them.
    """
    cuda = place.device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    device = _device(place.device, stored(place.device, dtype), order.base)
    messages, beside = _wire(place, dtype, cuda=cuda)
    link, nic = _networks(order.base, place.world)
    name = order.base.name if order.base else record.name(place.device)
    taken: list[Taken] = []
    for more in _taken(place, order, cuda=cuda):
        taken += more
        found = measured(
            [sample for one in taken for sample in one.samples],
            device=device,
            issue=_issue(taken) if cuda else {},  # a CPU is its own host
            messages=messages,
            beside=beside,
        )
        yield Machine(name=name, device=device, link=link, nic=nic, measured=found)


def _taken(place: Place, order: Order, *, cuda: bool) -> Iterator[list[Taken]]:
    """What all ranks run together, then stacks of one rank, one on each of them at a time."""
    wires = Wires(place)
    for config in spreads(place.world, cuda=cuda):
        yield [_of(config, wires.of(config), place, order)]
    wires.close()
    alone, stacks = replace(place, world=1, rank=0), list(singles(cuda=cuda))
    for first in range(0, len(stacks), place.world):
        mine = stacks[first + place.rank : first + place.rank + 1]
        yield _shared(
            [_of(c, Wires(alone).of(c), alone, order) for many in mine for c in many], place
        )


def _shared(own: list[Taken], place: Place) -> list[Taken]:
    """What every rank found, on each of them."""
    if place.world == 1:
        return own
    shares: list[list[Taken]] = [[] for _ in range(place.world)]
    dist.all_gather_object(shares, own)
    return [one for share in shares for one in share]


def _issue(taken: Sequence[Taken]) -> Mapping[str, float]:
    """Host seconds of each body, with the executor's part once a rank alone has shown it."""
    every: dict[str, list[float]] = {}
    for one in taken:
        for body, times in one.issue.items():
            every.setdefault(body, []).extend(times)
    between = [one.between for one in taken if one.between is not None]
    executor = statistics.median(between) if between else 0.0
    return {body: statistics.median(times) + executor for body, times in every.items()}


def _wire(place: Place, dtype: torch.dtype, *, cuda: bool) -> tuple[list[Message], Beside | None]:
    """Collectives of all ranks, where there are others."""
    if place.world == 1:
        return [], None
    transport = open_transport(next(spreads(place.world, cuda=cuda)), place)
    messages = list(collectives.sweep(transport, place.device, dtype))
    beside = collectives.beside(transport, place.device, dtype)
    transport.close()
    return messages, beside


def _of(config: RunConfig, transport: Transport, place: Place, order: Order) -> Taken:
    """What the step of one recipe gives."""
    begun = time.perf_counter()
    try:
        found = take(assemble(config, place, transport))
    except torch.OutOfMemoryError as error:
        order.say(f"{config.name}: left out, {str(error).splitlines()[0]}")
        found = Taken()
    fresh(place.device)
    layout = f"{config.name} on {config.parallel.ranks} rank(s)"
    order.say(f"{layout}: {time.perf_counter() - begun:.1f} s")
    return found


def _device(where: torch.device, ceilings: Ceilings, base: Machine | None) -> Device:
    """Peaks on paper where there are any, what was reached beside them."""
    launch = _launch_seconds(where)
    if base is not None:
        known = base.device
        return replace(
            known,
            sustained=min(ceilings.product / known.peak_flops, 1.0),
            copy=min(ceilings.copy / known.memory_bandwidth, 1.0),
            launch=launch,
        )
    memory, units = _parts(where)
    peak = backends.peak_flops(where) or ceilings.product
    return Device(
        peak_flops=peak,
        sustained=min(ceilings.product / peak, 1.0),
        memory_bytes=float(memory),
        memory_bandwidth=ceilings.copy,
        copy=1.0,
        multiprocessors=units,
        launch=launch,
    )


def _parts(where: torch.device) -> tuple[int, int]:
    """Bytes of memory, and multiprocessors or cores."""
    if where.type == "cuda":
        properties = torch.cuda.get_device_properties(where)
        return properties.total_memory, properties.multi_processor_count
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), backends.cores()


def _launch_seconds(device: torch.device) -> float:
    """What the shortest kernel takes from start to start, behind others."""
    x = torch.ones(1, device=device)
    count, took = 200, 0.0
    for _ in range(2):  # the first warms up
        hold(device)
        watch = Stopwatch(device)
        for _ in range(count):
            x.add_(1)
        watch.stop()
        took = watch.milliseconds() * 1e-3
    return took / count


# of wires that nobody stated: PCIe 4.0 x16, and a card of 100 Gbit/s
_LINK = Network(ranks=8, bandwidth=25e9, latency=1e-5)
_NIC = Network(ranks=100_000, bandwidth=12.5e9, latency=2e-5)


def _networks(base: Machine | None, world: int) -> tuple[Network, Network]:
    if base is not None:
        return base.link, base.nic
    return replace(_LINK, ranks=world), _NIC


REACHED = ("device.sustained", "device.copy", "device.launch")  # measured whatever is on paper


def sources_of(found: Machine, known: Mapping[str, str], run: str) -> Mapping[str, str]:
    """Where each number of a machine is from: its file's sources, or this run."""
    assumed = "assumed: PCIe 4.0 x16 between ranks, a card of 100 Gbit/s between nodes"
    texts: dict[str, str] = {}
    for key, table in (("device", found.device), ("link", found.link), ("nic", found.nic)):
        for part in fields(table):
            name = f"{key}.{part.name}"
            texts[name] = known.get(name, run if key == "device" else assumed)
    return texts | dict.fromkeys(REACHED, run)
