"""The bodies of this room by the names of the vocabulary, for half precision."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from weft.kernels.triton import (
    balance,
    embedding,
    gradient,
    grouped,
    loss,
    maps,
    norm,
    optimizer,
    rope,
    router,
    router_product,
    rows,
    swiglu,
)


def triton_bodies() -> Mapping[str, Callable]:
    """Returns the bodies that replace the reference on an NVIDIA GPU.

    Numerics:
        FP32 inside, rounded once; the same bits every time.
    """
    return MappingProxyType(
        {
            "embed.wgrad": embedding.embed_wgrad,
            "rms_norm": norm.rms_norm,
            "rms_norm.dgrad": norm.rms_norm_dgrad,
            "rms_norm.wgrad": norm.rms_norm_wgrad,
            "add_rms_norm": norm.add_rms_norm,
            "add_rms_norm.dgrad": norm.add_rms_norm_dgrad,
            "add_rms_norm.wgrad": norm.add_rms_norm_wgrad,
            "rotate": rope.rotate,
            "rotate.dgrad": rope.rotate_dgrad,
            "norm_rotate": rope.norm_rotate,
            "norm_rotate.dgrad": rope.norm_rotate_dgrad,
            "norm_rotate.wgrad": rope.norm_rotate_wgrad,
            "router_logits.dgrad": router_product.router_logits_dgrad,
            "router_logits.wgrad": router_product.router_logits_wgrad,
            "biased_router_logits.dgrad": router_product.router_logits_dgrad,
            "biased_router_logits.wgrad": router_product.biased_router_logits_wgrad,
            "select_experts": router.select_experts,
            "select_experts.dgrad": router.select_experts_dgrad,
            "replay_experts.dgrad": router.select_experts_dgrad,
            "add_load": balance.add_load,
            "router_losses": balance.router_losses,
            "router_losses.dgrad": balance.router_losses_dgrad,
            "count_load": maps.count_load,
            "count_local": maps.count_local,
            "plan_rows": maps.plan_rows,
            "plan_local": maps.plan_local,
            "plan_within": maps.plan_within,
            "permute": rows.permute,
            "permute.dgrad": rows.permute_dgrad,
            "permute_weights": rows.permute_weights,
            "permute_weights.dgrad": rows.permute_weights_dgrad,
            "reorder": rows.reorder,
            "reorder.dgrad": rows.reorder_dgrad,
            "gather_sum": rows.gather_sum,
            "gather_sum.dgrad": rows.gather_sum_dgrad,
            "expert_up.wgrad": grouped.expert_wgrad,
            "expert_up.wgrad_first": grouped.expert_wgrad_first,
            "expert_down.wgrad": grouped.expert_wgrad,
            "expert_down.wgrad_first": grouped.expert_wgrad_first,
            "swiglu": swiglu.swiglu,
            "swiglu.dgrad": swiglu.swiglu_dgrad,
            "dense_swiglu": swiglu.dense_swiglu,
            "dense_swiglu.dgrad": swiglu.dense_swiglu_dgrad,
            "cross_entropy.fused": loss.cross_entropy_fused,
            "decode_grad": gradient.decode_grad,
            "square_sum": optimizer.square_sum,
            "adamw": optimizer.adamw,
        }
    )
