"""The bodies of this room by the names of the fused operators, for half precision."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from weft.kernels.fused import down, up, wgrad


@dataclass(frozen=True, slots=True)
class Offer:
    """A fused body, and the widest experts (F) for which it was faster than its sequence; and than
    one in which what it makes inside is made again, since nobody keeps it.
    """

    body: Callable
    widest: int
    widest_again: int = 0


# A gather costs products the same share of their time at any width, and saves a pass that weighs
# less the wider the experts are: measured at 768 and 14,336 (docs/log.md), equal at about 1,400.
# SwiGLU in the up projection was faster at both. Its gradient in the down projection was not at the
# wider one, nor was that of gradients that lie by expert at either; but where activations are made
# again in any case, a pass of its own takes longer than what that adds to the product.
_NEVER, _FINE, _ANY = 0, 1024, 2**20


def fused_bodies() -> Mapping[str, Offer]:
    """Returns the bodies that replace sequences on an NVIDIA GPU.

    Numerics:
        FP32 inside, rounded once; the same bits every time.
    """
    return MappingProxyType(
        {
            "permute_up_swiglu": Offer(up.permute_up_swiglu, _FINE),
            "reorder_up_swiglu": Offer(up.reorder_up_swiglu, _FINE),
            "up_swiglu": Offer(up.up_swiglu, _ANY),
            "swiglu_down_gather.dgrad": Offer(down.swiglu_down_gather_dgrad, _FINE),
            "swiglu_down_reorder.dgrad": Offer(down.swiglu_down_reorder_dgrad, _FINE),
            "swiglu_down.dgrad": Offer(down.swiglu_down_dgrad, _NEVER, _ANY),
            "permute_up.wgrad": Offer(wgrad.permute_up_wgrad, _FINE),
            "permute_up.wgrad_first": Offer(wgrad.permute_up_wgrad_first, _FINE),
            "reorder_up.wgrad": Offer(wgrad.reorder_up_wgrad, _FINE),
            "reorder_up.wgrad_first": Offer(wgrad.reorder_up_wgrad_first, _FINE),
            "down_gather.wgrad": Offer(wgrad.down_gather_wgrad, _FINE),
            "down_gather.wgrad_first": Offer(wgrad.down_gather_wgrad_first, _FINE),
            "down_reorder.wgrad": Offer(wgrad.down_reorder_wgrad, _FINE),
            "down_reorder.wgrad_first": Offer(wgrad.down_reorder_wgrad_first, _FINE),
        }
    )
