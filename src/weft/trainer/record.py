"""From a step's results to its record: one flat object, the line of `metrics.jsonl`.

Results stay on the device until they are asked for, so that the host can run ahead of it: `read`
starts the copy, `record` waits for it.
"""

import math
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft.compose.plan import AUX, LOSS, NORM2, OVERFLOW, Plan, Z, drop_places, load_places
from weft.model.count import token_flops
from weft.model.families import Kind
from weft.runtime.backends import peak_flops
from weft.runtime.executor import Environment


class Stopwatch:
    """Times a stretch of work on the device it runs on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self.begin = self._mark()
        self.end: Any = None

    def stop(self) -> None:
        """Marks the end."""
        self.end = self._mark()

    def milliseconds(self) -> float:
        """The time between the marks; on CUDA waits for the second."""
        if not self.cuda:
            return (self.end - self.begin) * 1e3
        self.end.synchronize()
        return self.begin.elapsed_time(self.end)

    def _mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """The results of a step on their way to the host."""

    step: int
    tokens: int
    lr: float
    stats: Tensor
    verdict: Tensor
    watch: Stopwatch
    exposed_seconds: float
    starved_seconds: float  # before it could begin: waiting for its batches

    @property
    def overflow(self) -> bool:
        """Whether a rank had no room for a row; on CUDA waits for the step."""
        self.watch.milliseconds()
        return bool(self.stats[OVERFLOW] > 0)


def read(
    environment: Environment,
    *,
    step: int,
    tokens: int,
    lr: float,
    watch: Stopwatch,
    exposed_seconds: float,
    starved_seconds: float,
) -> Reading:
    """Starts the copy of a step's results to the host."""
    stats, verdict = _to_host(environment["stats"]), _to_host(environment["verdict"])
    watch.stop()  # after the copies, so that waiting for it is waiting for them
    return Reading(
        step=step,
        tokens=tokens,
        lr=lr,
        stats=stats,
        verdict=verdict,
        watch=watch,
        exposed_seconds=exposed_seconds,
        starved_seconds=starved_seconds,
    )


def _to_host(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def record(reading: Reading, plan: Plan, device: torch.device) -> dict[str, Any]:
    """The record of a step, once its results are here."""
    step_ms = reading.watch.milliseconds()
    stats = reading.stats
    loss = float(stats[LOSS])
    per_second = reading.tokens / (step_ms / 1e3)
    return {
        "step": reading.step,
        "loss": number(loss),
        "loss_hex": loss.hex(),
        "tokens": reading.tokens * reading.step,
        "tokens_per_s": per_second,
        "step_ms": step_ms,
        "grad_norm": number(float(stats[NORM2]) ** 0.5),
        "lr": reading.lr,
        "aux_loss": number(float(stats[AUX])),
        "z_loss": number(float(stats[Z])),
        **_loads(stats, plan),
        "mfu": _mfu(per_second, plan, device),
        "exposed_comm_ms": reading.exposed_seconds * 1e3 if device.type == "cpu" else None,
        "starved_ms": reading.starved_seconds * 1e3,
        "peak_bytes": peak_bytes(device),
        "skipped": bool(reading.verdict[1]),
        "time": round(time.time(), 3),
    }


def number(value: float) -> float | None:
    """The value as JSON knows it: null where it is not finite."""
    return value if math.isfinite(value) else None


def _loads(stats: Tensor, plan: Plan) -> dict[str, Any]:
    """Expert load over an even spread: its extremes over all layers, and each layer by itself.

    Entropy is that of the choices over its greatest value: 1 when even, 0 when one expert has them
    all. Violation is the busiest expert's load over an even one, less 1.

    Paper:
        The violation is MaxVio of "Auxiliary-Loss-Free Load Balancing" (arXiv 2408.15664), 4.1.
    """
    shape = plan.shape
    routed = list(routed_layers(plan))
    loads = stats[load_places(shape)].view(shape.layers, shape.experts)[routed]
    chances = loads / loads.sum(-1, keepdim=True).clamp_min(1)
    share = chances * shape.experts
    entropy = torch.special.entr(chances).sum(-1) / math.log(max(shape.experts, 2))
    return {
        "expert_load_max": float(share.max()),
        "expert_load_min": float(share.min()),
        "dead_experts": int((loads == 0).sum()),
        "dropped": [int(count) for count in stats[drop_places(shape)][routed]],
        "expert_load": [_rounded(layer, 3) for layer in share],
        "expert_load_entropy": _rounded(entropy, 4),
        "expert_load_violation": _rounded(share.amax(-1) - 1, 3),
    }


def routed_layers(plan: Plan) -> tuple[int, ...]:
    """The layers that have experts, in the order of `expert_load`."""
    shape = plan.shape
    return tuple(i for i in range(shape.layers) if shape.kind(i) is not Kind.DENSE)


def _rounded(values: Tensor, digits: int) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def _mfu(tokens_per_second: float, plan: Plan, device: torch.device) -> float | None:
    peak = peak_flops(device)
    if peak is None or plan.precision != "bfloat16":
        return None
    flops = token_flops(plan.shape, sequence=plan.sequence)
    return tokens_per_second * flops / (peak * plan.layout.world)


def peak_bytes(device: torch.device) -> int:
    """The most memory this rank has held: allocated on CUDA, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def unmeasured(plan: Plan, device: torch.device) -> dict[str, str]:
    """The fields whose value is null on this machine, each with the reason."""
    reasons = {}
    if peak_flops(device) is None:
        reasons["mfu"] = "no peak rate is known for this device"
    elif plan.precision != "bfloat16":
        reasons["mfu"] = "the peak rate is of bfloat16 and this run computes in another dtype"
    if device.type == "cuda":
        reasons["exposed_comm_ms"] = "needs a profile: `weft bench step` measures it"
    return reasons
