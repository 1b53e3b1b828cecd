"""The bodies of this room by the names of the fused operators, for half precision."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from weft.kernels.fused import down, up, wgrad


def fused_bodies() -> Mapping[str, Callable]:
    """Returns the bodies that replace sequences on an NVIDIA GPU.

    Numerics:
        FP32 inside, rounded once; the same bits every time.
    """
    return MappingProxyType(
        {
            "permute_up_swiglu": up.permute_up_swiglu,
            "reorder_up_swiglu": up.reorder_up_swiglu,
            "up_swiglu": up.up_swiglu,
            "swiglu_down_gather.dgrad": down.swiglu_down_gather_dgrad,
            "swiglu_down_reorder.dgrad": down.swiglu_down_reorder_dgrad,
            "swiglu_down.dgrad": down.swiglu_down_dgrad,
            "permute_up.wgrad": wgrad.permute_up_wgrad,
            "reorder_up.wgrad": wgrad.reorder_up_wgrad,
            "down_gather.wgrad": wgrad.down_gather_wgrad,
            "down_reorder.wgrad": wgrad.down_reorder_wgrad,
        }
    )
