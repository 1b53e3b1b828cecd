"""Which body runs each operator on this machine: decided once, frozen, printable.

The reference is always there; a faster body replaces it where the device and the dtype allow. Every
choice carries its reason and whether it gives the same bits twice. `weft doctor` prints the table.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch.utils import deterministic

from weft.errors import ConfigError
from weft.ops.registry import cpu_bodies, cuda_bodies, reference_bodies

Body = Callable[..., object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One operator's body, where it comes from, why, and whether it is repeatable bit for bit."""

    body: Body
    reason: str
    repeatable: bool = True

    @property
    def source(self) -> str:
        return f"{self.body.__module__.removeprefix('weft.')}.{self.body.__qualname__}"


Table = Mapping[str, Choice]

_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "attention_cpu": "SDPA's own CPU kernel; skips the masked half",
        "attention_cpu_dgrad": "SDPA's own CPU kernel",
        "attention_flash": "documents of any length in one launch",
        "attention_flash_dgrad_repeatable": "flash attention in its deterministic mode",
        "swiglu_dgrad_cpu": "blocks of rows whose passes stay in the cache",
        "embed_wgrad_cpu": "index_add_ walks its rows in order on a CPU",
        "expert_up_grouped": "F.grouped_mm: one launch, group ends stay on the device",
        "expert_up_dgrad_grouped": "F.grouped_mm: one launch, group ends stay on the device",
        "expert_up_wgrad_grouped": "F.grouped_mm: one launch, group ends stay on the device",
        "project_wgrad_narrow": "the product itself accumulates in FP32",
        "cross_entropy_fused_narrow": "the product itself accumulates in FP32",
        "adamw_fused": "one pass over the state",
    }
)


def choose(device: torch.device, act: torch.dtype) -> Table:
    """The table of this machine."""
    table = {
        name: Choice(body=body, reason="reference") for name, body in reference_bodies().items()
    }
    for name, body in _faster(device, act).items():
        table[name] = Choice(body=body, reason=_REASONS[body.__qualname__])
    return MappingProxyType(table)


def _faster(device: torch.device, act: torch.dtype) -> Mapping[str, Body]:
    if device.type == "cpu":
        return cpu_bodies()
    return cuda_bodies() if act is torch.bfloat16 else {}


def bodies(table: Table) -> Mapping[str, Body]:
    """The bodies alone, for binding."""
    return MappingProxyType({name: choice.body for name, choice in table.items()})


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
        torch.cuda.set_device(device)
        # a body may ask for deterministic kernels; new buffers need no filling for that
        # (a setter of the module's class, which the type checker cannot see)
        setattr(deterministic, "fill_uninitialized_memory", False)  # noqa: B010


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


def peak_flops(device: torch.device) -> float | None:
    """The BF16 peak of a device, or None where weft has no figure for it."""
    if device.type == "cpu":
        return None
    words = torch.cuda.get_device_name(device).split()
    return next((peak for name, peak in PEAK_FLOPS.items() if name in words), None)
