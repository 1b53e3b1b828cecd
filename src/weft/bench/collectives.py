"""Collectives of a wire by size, and what a product and a collective cost each other.

Sizes are those of nccl-tests: the whole tensor, of which each of `n` ranks has `1/n` before a
gather or after a scatter. A rate is the bus bandwidth, bytes a rank receives a second.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from weft.bench.profile import hold
from weft.comm.handle import Handle
from weft.comm.transport import Transport
from weft.planner.machine import Beside, Message
from weft.trainer.record import Stopwatch

Collective = Callable[[Transport, Tensor], Handle]
AXIS = "world"  # every rank: the axis that each layout has
REPEATS, WARM_UP = 7, 2


def _gather(transport: Transport, x: Tensor) -> Handle:
    return transport.all_gather(
        x[: x.numel() // transport.group_size(AXIS)], axis=AXIS, label="bench"
    )


COLLECTIVES: Mapping[str, Collective] = {
    "all_gather": _gather,
    "reduce_scatter": lambda t, x: t.reduce_scatter(x, axis=AXIS, label="bench"),
    "all_to_all": lambda t, x: t.all_to_all(x, axis=AXIS, label="bench"),
    "all_reduce": lambda t, x: t.all_reduce(x, axis=AXIS, label="bench"),
}
# bytes: counts and statistics, gate weights, tokens, buckets
LARGE = (2**14, 2**19, 2**22, 2**24, 2**26, 2**28, 2**29)
SMALL = (2**14, 2**18, 2**22)


def sweep(transport: Transport, device: torch.device, dtype: torch.dtype) -> Iterator[Message]:
    """Every collective at every size; nothing where there is one rank."""
    n = transport.group_size(AXIS)
    wire = "nccl" if device.type == "cuda" else "gloo"
    for size in (LARGE if device.type == "cuda" else SMALL) if n > 1 else ():
        x = torch.randn(size // dtype.itemsize, device=device, dtype=dtype)
        for name, post in COLLECTIVES.items():
            took = _median(transport, device, lambda p=post, x=x: p(transport, x).wait())
            received = size * (n - 1) / n * (2 if name == "all_reduce" else 1)
            yield Message(algorithm=name, transport=wire, size=float(size), bus=received / took)


def _median(transport: Transport, device: torch.device, run: Callable[[], object]) -> float:
    """Seconds on the device, from when every rank has come; issued behind one another while it is
    held, so that the host's time to issue one is not in it, nor to connect at the first.
    """
    for _ in range(WARM_UP):
        run()
    transport.barrier()
    hold(device)
    watches: list[Stopwatch] = []
    for _ in range(REPEATS):
        watch = Stopwatch(device)
        run()
        watch.stop()
        watches.append(watch)
    return statistics.median(watch.milliseconds() for watch in watches) * 1e-3


SIDE, ROUNDS, CROSSING = 4096, 24, 2**26  # a product as a layer has it, and tokens on their way


def beside(transport: Transport, device: torch.device, dtype: torch.dtype) -> Beside | None:
    """How much longer a product and a gather take beside each other; on CUDA, with ranks to send
    to.
    """
    if device.type != "cuda" or transport.group_size(AXIS) == 1:
        return None
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(CROSSING // dtype.itemsize, device=device, dtype=dtype)
    lane = torch.cuda.Stream(device, priority=-1)

    def products(count: int) -> float:
        watch = Stopwatch(device)
        for _ in range(count):
            torch.mm(a, b)
        watch.stop()
        return watch.milliseconds() / count

    def gathers(count: int) -> Stopwatch:
        with torch.cuda.stream(lane):
            watch = Stopwatch(device)
            for _ in range(count):
                _gather(transport, x).wait()
            watch.stop()
        return watch

    products(ROUNDS)
    gathers(ROUNDS)
    transport.barrier()  # the first of both warmed up
    product = products(ROUNDS)
    transport.barrier()
    gather = gathers(ROUNDS).milliseconds() / ROUNDS
    # the counts below come of these, and all ranks must gather equally often
    alike = torch.tensor([product, gather], device=device)
    alike = transport.all_reduce(alike, axis=AXIS, label="bench").wait()
    product, gather = (alike / transport.group_size(AXIS)).tolist()
    transport.barrier()
    # far more of the one than lasts as long as the other: it is never alone
    around = gathers(3 * ROUNDS + round(3 * ROUNDS * product / gather))
    slow_product = products(ROUNDS)
    around.milliseconds()
    transport.barrier()
    filling = round(4 * ROUNDS * gather / product) + ROUNDS
    watch = gathers(ROUNDS)
    products(filling)
    slow_gather = watch.milliseconds() / ROUNDS
    transport.barrier()
    return Beside(compute=max(slow_product / product, 1.0), wire=max(slow_gather / gather, 1.0))
