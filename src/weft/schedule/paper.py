"""The paper's order of a layer, by hand: what it shows of the backward (2.4) and its completion
(2.5), and the same idea forwards.

A line is a task by `schedule.sequence.task_key`; what a layout or a family does not have is left
out, and what the list does not name comes when it is needed. `again` marks rematerialised tasks.
Both ways to the experts are in one list: a task of the one is absent from the other. What is cut
into chunks has the place of the whole, but for what is marked `later`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from weft.graph.program import Program
from weft.schedule.action import Ordered
from weft.schedule.sequence import in_sequence, listed

FORWARD = """
    rms_norm norm1
    qkv_project qkv
    all_to_all qkv
    attention
    all_to_all attention
    project out
    add_rms_norm norm2
    all_gather tokens
    router_logits router
    select_experts
    all_gather_experts experts
    all_gather_weights weights
    all_gather tokens later
    plan_rows
    all_to_all_counts counts
    permute
    permute_weights
    all_to_all_rows rows
    all_to_all_weights weights
    count_load
    add_load
    sum_load load
    project shared_up
    dense_swiglu
    project shared_down
    router_losses
    expert_up up
    swiglu
    permute_up_swiglu up
    reorder_up_swiglu up
    up_swiglu up
    expert_down down
    reduce_scatter outputs
    all_to_all_rows outputs
"""

# 2.4: the gradient's all-gather hides the norm and SwiGLU that run again; the all-gather that runs
# again hides under scatter and FC2. 2.5: each later transfer under a weight gradient.
BACKWARD = """
    all_gather outputs
    all_to_all_rows outputs
    again rms_norm norm2
    again swiglu
    again all_gather tokens
    again all_to_all_rows rows
    gather_sum.dgrad
    reorder.dgrad
    expert_down.dgrad down
    swiglu_down_gather.dgrad down
    swiglu_down_reorder.dgrad down
    swiglu_down.dgrad down
    expert_down.wgrad down
    down_gather.wgrad down
    down_reorder.wgrad down
    swiglu.dgrad
    again all_to_all attention
    expert_up.dgrad up
    permute.dgrad
    reduce_scatter tokens
    all_to_all_rows rows
    permute_weights.dgrad
    reduce_scatter_weights weights
    all_to_all_weights weights
    again permute
    again reorder
    expert_up.wgrad up
    permute_up.wgrad up
    reorder_up.wgrad up
    router_losses.dgrad
    project.dgrad shared_down
    again dense_swiglu
    project.wgrad shared_down
    dense_swiglu.dgrad
    project.dgrad shared_up
    project.wgrad shared_up
    select_experts.dgrad
    router_logits.dgrad router
    router_logits.wgrad router
    add_rms_norm.dgrad norm2
    project.dgrad out
    all_to_all attention
    again join_heads
    project.wgrad out
    add_rms_norm.wgrad norm2
    again all_to_all qkv
    attention.dgrad
    split_heads.dgrad
    all_to_all qkv
    again rms_norm norm1
    pack_heads.dgrad
    rotate.dgrad
    norm_rotate.dgrad q_norm
    qkv_project.dgrad qkv
    qkv_project.wgrad qkv
    rms_norm.dgrad norm1
    rms_norm.wgrad norm1
"""

_NO_LAYERS = ("embedding", "receive", "send")
_LISTS: Mapping[str, str] = MappingProxyType({"forward": FORWARD, "backward": BACKWARD})


def paper(program: Program) -> Ordered | None:
    """The paper's order of a layer's forward or backward; of other segments it says nothing."""
    kind, _, direction = program.name.partition(".")
    if direction not in _LISTS or kind in _NO_LAYERS:
        return None
    keys = [line.strip() for line in _LISTS[direction].strip().splitlines()]
    return in_sequence(program, listed(program, keys))
