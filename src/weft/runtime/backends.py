"""Which body runs each operator on this machine: decided once, frozen, printable.

The reference is always there; a faster body replaces it where the device and the dtype allow. Every
choice carries its reason and whether it gives the same bits twice. `weft doctor` prints the table.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import MappingProxyType

import torch
from torch.utils import deterministic

from weft.comm.kernel import Bodies
from weft.comm.transports.symmetric import REFERENCE, Sums
from weft.compose.plan import Plan, sizes
from weft.config.kernels import KernelsConfig
from weft.errors import ConfigError
from weft.graph.fused import FUSED
from weft.ops.fused import sequences
from weft.ops.registry import alternatives, cpu_bodies, cuda_bodies, reference_bodies

Body = Callable[..., object]

_MADE_AGAIN = ("selective", "full")  # policies that do not keep the activations of experts


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One operator's body, where it comes from, why, and whether it is repeatable bit for bit.

    A fused operator also has the `widest` experts for which its body is faster than its sequence,
    and than one in which what it makes inside is made again.
    """

    body: Body
    reason: str
    repeatable: bool = True
    widest: int = 0
    widest_again: int = 0

    @property
    def source(self) -> str:
        return f"{self.body.__module__.removeprefix('weft.')}.{self.body.__qualname__}"


Table = Mapping[str, Choice]

_TRITON = "one pass in Triton"
_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "attention_cpu": "SDPA's own CPU kernel; skips the masked half",
        "attention_cpu_dgrad": "SDPA's own CPU kernel",
        "attention_flash": "documents of any length in one launch",
        "attention_mixed": "cuDNN where all documents have one length, else flash attention",
        "attention_flash_dgrad_repeatable": "flash attention in its deterministic mode",
        "swiglu_dgrad_cpu": "blocks of rows whose passes stay in the cache",
        "embed_wgrad_cpu": "index_add_ walks its rows in order on a CPU",
        "expert_up_grouped": "F.grouped_mm: one launch, group ends stay on the device",
        "weighted_down_grouped": "F.grouped_mm: one launch, group ends stay on the device",
        "weighted_down_dgrad_grouped": "F.grouped_mm: one launch, group ends stay on the device",
        "weighted_down_wgrad_grouped": "F.grouped_mm: one launch, group ends stay on the device",
        "expert_up_dgrad_grouped": "F.grouped_mm: one launch, group ends stay on the device",
        "expert_up_wgrad_grouped": "F.grouped_mm: one launch, group ends stay on the device",
        "expert_up_wgrad_first_grouped": "F.grouped_mm: one launch, group ends stay on the device",
        "weighted_down_wgrad_first_grouped": "F.grouped_mm: one launch, ends stay on the device",
        "expert_wgrad": "Triton: the product is added where it is accumulated in FP32",
        "expert_wgrad_first": "Triton: the product is written where it is accumulated in FP32",
        "project_wgrad_narrow": "the product itself accumulates in FP32",
        "router_logits_narrow": "the product itself accumulates in FP32",
        "router_logits_dgrad_narrow": "FP32 as the sum of two BF16 numbers",
        "router_logits_wgrad_narrow": "FP32 as the sum of two BF16 numbers",
        "router_logits_dgrad": "Triton: FP32 as the sum of two BF16 numbers, split as it is read",
        "router_logits_wgrad": "Triton: FP32 as the sum of two BF16 numbers, split as it is read",
        "biased_router_logits_wgrad": "Triton: FP32 as the sum of two BF16 numbers",
        "cross_entropy_fused_narrow": "the product itself accumulates in FP32",
        "adamw_fused": "one pass over the state",
    }
)


def choose(device: torch.device, act: torch.dtype, kernels: KernelsConfig | None = None) -> Table:
    """The table of this machine, as the recipe wants it.

    Raises:
        ConfigError: the recipe asks for a body that this machine does not have.
    """
    kernels = kernels or KernelsConfig()
    table = {
        name: Choice(body=body, reason="reference") for name, body in reference_bodies().items()
    }
    if kernels.bodies == "fast":
        for name, body in _faster(device, act).items():
            table[name] = Choice(body=body, reason=_REASONS.get(body.__qualname__, _TRITON))
    for name, body in sequences(bodies(table)).items():
        table[name] = Choice(body=body, reason="the sequence that defines it")
    if kernels.bodies == "fast":
        table.update(_fused(device, act))
    for name, body in _asked_for(device, act, kernels).items():
        reason = f"kernels.attention = {kernels.attention!r}"
        table[name] = Choice(body=body, reason=reason, repeatable=not name.endswith("dgrad"))
    return MappingProxyType(table)


def _faster(device: torch.device, act: torch.dtype) -> Mapping[str, Body]:
    if device.type == "cpu":
        return cpu_bodies()
    if act is not torch.bfloat16:
        return {}
    return {**cuda_bodies(), **_triton_bodies()}


def _triton_bodies() -> Mapping[str, Body]:
    """The bodies in Triton, which comes with torch where there is a GPU it supports."""
    if find_spec("triton") is None:
        return {}
    from weft.kernels.triton.table import triton_bodies  # noqa: PLC0415 - only where it can be

    return triton_bodies()


def _fused(device: torch.device, act: torch.dtype) -> Table:
    """The fused bodies, where Triton and a GPU are."""
    if device.type == "cpu" or act is not torch.bfloat16 or find_spec("triton") is None:
        return {}
    from weft.kernels.fused.table import fused_bodies  # noqa: PLC0415 - only where it can be

    return {
        name: Choice(
            body=offer.body,
            reason=_taken_for(offer.widest, offer.widest_again),
            widest=offer.widest,
            widest_again=offer.widest_again,
        )
        for name, offer in fused_bodies().items()
    }


def _taken_for(widest: int, again: int) -> str:
    """Why a fused body is there, and for which experts it is taken."""
    made = f", up to {again:,} where activations are made again" if again > widest else ""
    return f"one kernel in Triton; taken for experts up to {widest:,} wide{made}"


def with_fused(plan: Plan, table: Table, kernels: KernelsConfig) -> Plan:
    """The plan with the fused operators that this machine runs faster than what they replace, at
    the width of the plan's experts.
    """
    if kernels.fuse != "auto":
        return plan
    width, again = sizes(plan).F, plan.remat in _MADE_AGAIN
    fused = (name for name in FUSED if width <= _widest(table[name], again=again))
    return replace(plan, fused=tuple(fused))


def _widest(choice: Choice, *, again: bool) -> int:
    """The widest experts for which a fused body is taken, where activations are made `again`."""
    return max(choice.widest, choice.widest_again) if again else choice.widest


def _asked_for(
    device: torch.device, act: torch.dtype, kernels: KernelsConfig
) -> Mapping[str, Body]:
    if kernels.attention == "repeatable":
        return {}
    found = alternatives()["attention"]
    if device.type != "cuda" or act is not torch.bfloat16 or kernels.attention not in found:
        raise ConfigError(
            f"kernels.attention = {kernels.attention!r}: needs a CUDA device and "
            f"train.precision = 'bfloat16', found {device.type} and {act}; try 'repeatable'"
        )
    return found[kernels.attention]


def bodies(table: Table) -> Mapping[str, Body]:
    """The bodies alone, for binding."""
    return MappingProxyType({name: choice.body for name, choice in table.items()})


def gradient_sums(device: torch.device) -> Sums:
    """The bodies that round and add gradients on their way between peers."""
    if device.type != "cuda" or find_spec("triton") is None:
        return REFERENCE
    from weft.kernels.triton.gradient import add_rounded  # noqa: PLC0415 - only where it can be

    return Sums(encode=REFERENCE.encode, add=add_rounded)


def peer_kernels(device: torch.device) -> Bodies | None:
    """The kernels of collectives between peers, where Triton and a GPU are."""
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    from weft.kernels.triton.collectives import BODIES  # noqa: PLC0415 - only where it can be

    return BODIES


def pick_device(wanted: str, local_rank: int) -> torch.device:
    """The device of a rank.

    Raises:
        ConfigError: CUDA is asked for and there is none, or fewer devices than ranks on this
        machine.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if local_rank >= found:
        raise ConfigError(
            f"train.device = {wanted!r}: rank {local_rank} of this machine finds {found} CUDA "
            "devices; start fewer ranks a machine or try train.device = 'cpu'"
        )
    return torch.device("cuda", local_rank)


def prepare(device: torch.device, *, threads: int | None, neighbours: int) -> None:
    """Sets what torch keeps for the whole process: threads, the device, repeatable kernels.

    Without a number of threads the cores of a CPU are shared with the `neighbours`, the ranks on
    this machine: more threads than cores cost a step many times over, since they wait by spinning.
    """
    if threads is not None or device.type == "cpu":
        torch.set_num_threads(threads or max(cores() // neighbours, 1))
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        # streams that share a connection hold each other up; read when the device is first used
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", str(CONNECTIONS))
        torch.cuda.set_device(device)
        # peer memory is mapped without what it does not use: a multicast object binds every device
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        # a body may ask for deterministic kernels; new buffers need no filling for that
        # (a setter of the module's class, which the type checker cannot see)
        setattr(deterministic, "fill_uninitialized_memory", False)  # noqa: B010


CONNECTIONS = (
    32  # the most that CUDA has; each axis of collectives takes two streams, of 8 by default
)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of the GNU C library
LARGEST_THRESHOLD = 2**25  # the most it takes for the second; larger tensors are still mapped anew


def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory for the next step; false where it has no such call.

    Without it each large activation is mapped, zeroed and unmapped again in every step: 12 % of the
    step of a small model on 2 cores (docs/log.md).
    """
    library = ctypes.CDLL(None)
    if sys.platform != "linux" or not hasattr(library, "mallopt"):
        return False
    kept = library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    return bool(kept and library.mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD))


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


PEAK_FLOPS: Mapping[str, float] = MappingProxyType(
    {
        "H200": 989e12,  # dense BF16, NVIDIA data sheets; H800 and A100 also in the paper's Table 4
        "H100": 989e12,
        "H800": 989e12,
        "A100": 312e12,
        "A800": 312e12,
        "H20": 148e12,
        "B200": 2250e12,
    }
)


def accelerator(device: torch.device) -> str:
    """What the driver calls a device, as in NVIDIA H200; of a CPU just that."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def peak_flops(device: torch.device) -> float | None:
    """The BF16 peak of a device, or None where weft has no figure for it."""
    words = accelerator(device).split()
    return next((peak for name, peak in PEAK_FLOPS.items() if name in words), None)
