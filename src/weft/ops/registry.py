"""The bodies of this room by the names of the vocabulary.

`reference_bodies` is complete: every operator but the collectives, on any device and in any dtype.
The other tables replace some of them where torch has a faster body for a device; which of them a
machine takes, and why, is decided once in `runtime.backends`. Whether this torch has the private
operators they call is asked here and nowhere else.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from weft.ops import (
    attention,
    attention_cuda,
    attention_part,
    balance,
    bias,
    chunk,
    clamped,
    fp8,
    gate,
    gradient,
    grouped,
    heads,
    layer_norm,
    linear,
    loss,
    norm,
    optimizer,
    rope,
    router,
    rows,
    selection,
    sink,
    sparsemixer,
    visits,
)

Bodies = Mapping[str, Callable]


def reference_bodies() -> Bodies:
    """Returns every body of the vocabulary but the collectives', for any device and dtype."""
    return MappingProxyType(
        {
            "embed": linear.embed,
            "embed.wgrad": linear.embed_wgrad,
            "rope_table": rope.rope_table,
            "yarn_rope_table": rope.yarn_rope_table,
            "rms_norm": norm.rms_norm,
            "rms_norm.dgrad": norm.rms_norm_dgrad,
            "rms_norm.wgrad": norm.rms_norm_wgrad,
            "add_rms_norm": norm.add_rms_norm,
            "add_rms_norm.dgrad": norm.add_rms_norm_dgrad,
            "add_rms_norm.wgrad": norm.add_rms_norm_wgrad,
            "layer_norm": layer_norm.layer_norm,
            "layer_norm.dgrad": layer_norm.layer_norm_dgrad,
            "layer_norm.wgrad": layer_norm.layer_norm_wgrad,
            "add_layer_norm": layer_norm.add_layer_norm,
            "add_layer_norm.dgrad": layer_norm.add_layer_norm_dgrad,
            "add_layer_norm.wgrad": layer_norm.add_layer_norm_wgrad,
            "qkv_project": linear.project,
            "qkv_project.dgrad": linear.project_dgrad,
            "qkv_project.wgrad": linear.project_wgrad,
            "qkv_project_shared": linear.project_shared,
            "qkv_project_shared.dgrad": linear.project_shared_dgrad,
            "qkv_project_shared.wgrad": linear.project_shared_wgrad,
            "rotate": rope.rotate,
            "rotate.dgrad": rope.rotate_dgrad,
            "norm_rotate": rope.norm_rotate,
            "norm_rotate.dgrad": rope.norm_rotate_dgrad,
            "norm_rotate.wgrad": rope.norm_rotate_wgrad,
            "wide_norm_rotate": rope.wide_norm_rotate,
            "wide_norm_rotate.dgrad": rope.wide_norm_rotate_dgrad,
            "wide_norm_rotate.wgrad": rope.wide_norm_rotate_wgrad,
            "pack_heads": heads.pack_heads,
            "pack_heads.dgrad": heads.pack_heads_dgrad,
            "split_heads": heads.split_heads,
            "split_heads.dgrad": heads.split_heads_dgrad,
            "attention": attention.attention,
            "attention.dgrad": attention.attention_dgrad,
            "sink_attention": sink.sink_attention,
            "sink_attention.dgrad": sink.sink_attention_dgrad,
            "sink_attention.wgrad": sink.sink_attention_wgrad,
            "join_kv": heads.join_kv,
            "join_kv.dgrad": heads.join_kv_dgrad,
            "order_kv": heads.order_kv,
            "order_kv.dgrad": heads.order_kv_dgrad,
            "attention_part": attention_part.attention_part,
            "attention_part.dgrad": attention_part.attention_part_dgrad,
            "join_heads": heads.join_heads,
            "join_heads.dgrad": heads.join_heads_dgrad,
            "project": linear.project,
            "project.dgrad": linear.project_dgrad,
            "project.wgrad": linear.project_wgrad,
            "add": linear.add,
            "add_bias": bias.add_bias,
            "add_bias.wgrad": bias.add_bias_wgrad,
            "router_logits": linear.router_logits,
            "router_logits.dgrad": linear.router_logits_dgrad,
            "router_logits.wgrad": linear.project_wgrad,
            "biased_router_logits": bias.biased_router_logits,
            "biased_router_logits.dgrad": bias.biased_router_logits_dgrad,
            "biased_router_logits.wgrad": bias.biased_router_logits_wgrad,
            "select_grouped_experts": selection.select_grouped_experts,
            "select_grouped_experts.dgrad": selection.select_grouped_experts_dgrad,
            "select_experts": router.select_experts,
            "select_experts.dgrad": router.select_experts_dgrad,
            "replay_experts": router.replay_experts,
            "replay_experts.dgrad": router.select_experts_dgrad,
            "select_sparsemixer": sparsemixer.select_sparsemixer,
            "select_sparsemixer.dgrad": sparsemixer.select_sparsemixer_dgrad,
            "replay_sparsemixer": sparsemixer.replay_sparsemixer,
            "replay_sparsemixer.dgrad": sparsemixer.select_sparsemixer_dgrad,
            "count_load": balance.count_load,
            "router_losses": balance.router_losses,
            "router_losses.dgrad": balance.router_losses_dgrad,
            "add_load": balance.add_load,
            "score_choices": balance.score_choices,
            "keep_choices": balance.keep_choices,
            "add_dropped": balance.add_dropped,
            "balance_router": balance.balance_router,
            "plan_rows": rows.plan_rows,
            "plan_received": rows.plan_received,
            "count_local": rows.count_local,
            "count_visits": visits.count_visits,
            "plan_visits": visits.plan_visits,
            "visits_to_host": visits.visits_to_host,
            "permute_gates": rows.permute,
            "permute_gates.dgrad": rows.permute_dgrad,
            "plan_local": rows.plan_local,
            "plan_within": rows.plan_within,
            "permute": rows.permute,
            "permute.dgrad": rows.permute_dgrad,
            "permute_weights": rows.permute_weights,
            "permute_weights.dgrad": rows.permute_weights_dgrad,
            "reorder": rows.reorder,
            "reorder.dgrad": rows.reorder_dgrad,
            "reorder_weights": rows.reorder,
            "reorder_weights.dgrad": rows.reorder_dgrad,
            "gather_sum": rows.gather_sum,
            "gather_sum.dgrad": rows.gather_sum_dgrad,
            "expert_up": grouped.expert_up,
            "expert_up.dgrad": grouped.expert_up_dgrad,
            "expert_up.wgrad": grouped.expert_up_wgrad,
            "expert_up.wgrad_first": grouped.expert_up_wgrad_first,
            "swiglu": grouped.swiglu,
            "swiglu.dgrad": grouped.swiglu_dgrad,
            "expert_down": grouped.expert_up,
            "expert_down.dgrad": grouped.expert_up_dgrad,
            "expert_down.wgrad": grouped.expert_up_wgrad,
            "expert_down.wgrad_first": grouped.expert_up_wgrad_first,
            "add_expert_bias": bias.add_expert_bias,
            "add_expert_bias.wgrad": bias.add_expert_bias_wgrad,
            "clamped_swiglu": clamped.clamped_swiglu,
            "clamped_swiglu.dgrad": clamped.clamped_swiglu_dgrad,
            "clamped_glu": clamped.clamped_glu,
            "clamped_glu.dgrad": clamped.clamped_glu_dgrad,
            "add_weighted_bias": bias.add_weighted_bias,
            "add_weighted_bias.dgrad": bias.add_weighted_bias_dgrad,
            "add_weighted_bias.wgrad": bias.add_weighted_bias_wgrad,
            "weighted_down": grouped.weighted_down,
            "weighted_down.dgrad": grouped.weighted_down_dgrad,
            "weighted_down.wgrad": grouped.weighted_down_wgrad,
            "weighted_down.wgrad_first": grouped.weighted_down_wgrad_first,
            "encode_rows": fp8.encode_rows,
            "decode_rows": fp8.decode_rows,
            "decode_row_sums": fp8.decode_row_sums,
            "encode_channels": fp8.encode_channels,
            "decode_channels": fp8.decode_channels,
            "encode_blocks": fp8.encode_blocks,
            "decode_blocks": fp8.decode_blocks,
            "decode_block_sums": fp8.decode_block_sums,
            "dense_swiglu": grouped.dense_swiglu,
            "dense_swiglu.dgrad": grouped.dense_swiglu_dgrad,
            "shared_gate": gate.shared_gate,
            "shared_gate.dgrad": gate.shared_gate_dgrad,
            "shared_gate.wgrad": gate.shared_gate_wgrad,
            "cross_entropy": loss.cross_entropy,
            "cross_entropy.fused": loss.cross_entropy_fused,
            "biased_cross_entropy": loss.biased_cross_entropy,
            "biased_cross_entropy.fused": loss.biased_cross_entropy_fused,
            "slice_chunk": chunk.slice_chunk,
            "join_chunks": chunk.join_chunks,
            "take_blocks": chunk.take_blocks,
            "join_blocks": chunk.join_blocks,
            "merge_rows": chunk.merge_rows,
            "place_gathered": chunk.place_gathered,
            "place_received": chunk.place_received,
            "all_rows_to_host": chunk.all_rows_to_host,
            "all_splits_to_host": chunk.all_splits_to_host,
            "splits_to_host": rows.splits_to_host,
            "rows_to_host": rows.rows_to_host,
            "encode_grad": gradient.encode_grad,
            "decode_grad": gradient.decode_grad,
            "take_block": gradient.take_block,
            "add_block": gradient.add_block,
            "widen_grad": gradient.widen_grad,
            "add_shard": gradient.add_shard,
            "clear_grad": gradient.clear_grad,
            "square_sum": optimizer.square_sum,
            "decide": optimizer.decide,
            "adamw": optimizer.adamw,
            "round_params": optimizer.round_params,
        }
    )


def cpu_bodies() -> Bodies:
    """Returns the bodies that replace the reference on a CPU, in any dtype.

    Numerics:
        The same sums in fewer passes: equal to the reference within the tolerance of their
        operators, and deterministic for a given number of threads.
    """
    faster: dict[str, Callable] = {
        "embed.wgrad": linear.embed_wgrad_cpu,
        "swiglu.dgrad": grouped.swiglu_dgrad_cpu,
    }
    if _has("_scaled_dot_product_flash_attention_for_cpu"):
        faster["attention"] = attention.attention_cpu
        faster["attention.dgrad"] = attention.attention_cpu_dgrad
    if _has("_fused_adamw_"):
        faster["adamw"] = optimizer.adamw_fused
    return MappingProxyType(faster)


def cuda_bodies() -> Bodies:
    """Returns the bodies that replace the reference on a GPU in bfloat16.

    None of them waits for the device.
    """
    faster: dict[str, Callable] = {}
    if _has("_grouped_mm"):
        for name in ("expert_up", "expert_down"):
            faster[name] = grouped.expert_up_grouped
            faster[f"{name}.dgrad"] = grouped.expert_up_dgrad_grouped
            faster[f"{name}.wgrad"] = grouped.expert_up_wgrad_grouped
            faster[f"{name}.wgrad_first"] = grouped.expert_up_wgrad_first_grouped
        faster["weighted_down"] = grouped.weighted_down_grouped
        faster["weighted_down.dgrad"] = grouped.weighted_down_dgrad_grouped
        faster["weighted_down.wgrad"] = grouped.weighted_down_wgrad_grouped
        faster["weighted_down.wgrad_first"] = grouped.weighted_down_wgrad_first_grouped
    if "dtype_out" in torch.ops.aten.addmm.overloads():
        faster["qkv_project.wgrad"] = linear.project_wgrad_narrow
        faster["project.wgrad"] = linear.project_wgrad_narrow
        faster["cross_entropy.fused"] = loss.cross_entropy_fused_narrow
        faster["router_logits.wgrad"] = linear.router_logits_wgrad_narrow
    if "dtype" in torch.ops.aten.mm.overloads():
        faster["router_logits"] = linear.router_logits_narrow
        faster["router_logits.dgrad"] = linear.router_logits_dgrad_narrow
    if _has("_flash_attention_forward"):
        has_cudnn = _has("_scaled_dot_product_cudnn_attention")
        forward = attention_cuda.attention_mixed if has_cudnn else attention_cuda.attention_flash
        faster["attention"] = forward
        faster["attention.dgrad"] = attention_cuda.attention_flash_dgrad_repeatable
    if _has("_fused_adamw_"):
        faster["adamw"] = optimizer.adamw_fused
    return MappingProxyType(faster)


def alternatives() -> Mapping[str, Mapping[str, Bodies]]:
    """Returns, by operator and name, bodies for a GPU in bfloat16 that a recipe may ask for.

    Numerics:
        Not repeatable: their backward adds partial sums in no fixed order.
    """
    found: dict[str, Mapping[str, Bodies]] = {}
    attentions: dict[str, Bodies] = {}
    if _has("_flash_attention_forward"):
        attentions["flash"] = {
            "attention": attention_cuda.attention_flash,
            "attention.dgrad": attention_cuda.attention_flash_dgrad,
        }
    if attentions and _has("_scaled_dot_product_cudnn_attention"):
        attentions["cudnn"] = {
            "attention": attention_cuda.attention_cudnn_or_flash,
            "attention.dgrad": attention_cuda.attention_cudnn_or_flash_dgrad,
        }
    found["attention"] = attentions
    return MappingProxyType(found)


def _has(operator: str) -> bool:
    return hasattr(torch.ops.aten, operator)
