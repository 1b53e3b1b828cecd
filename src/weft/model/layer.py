"""The layer, written once: one line an operator, the paper's names, the communication visible.

`o` is an interpretation: it may record the call, compute it at once, or lower it to the collectives
of a layout. Nothing here knows a device, a rank, a stream, a dtype or a setting. Names follow the
paper's Figure 8 (`docs/notation.md`).
"""

from typing import Any

Values = Any  # whatever the interpretation's values are: names in a program, or tensors


def attention_half(o: Any, x: Values, w: Values) -> Values:
    """The residual stream after attention, and its norm for the feed-forward half."""
    h = o.rms_norm(x, w.norm1)
    qkv = o.qkv_project(h, w)
    q, k, v = o.rotate(qkv, w)  # RoPE (and QK norm where the family has it)
    q, k, v = o.seq_to_heads(q, k, v)  # all-to-all; identity when sp = 1
    a = o.attention(q, k, v, w)
    a = o.heads_to_seq(a)  # all-to-all
    return o.add_rms_norm(x, o.project(a, w), w.norm2)


def windowed_attention_half(o: Any, x: Values, w: Values) -> Values:
    """The same, where a token sees so many tokens of its document and no further."""
    h = o.rms_norm(x, w.norm1)
    q, k, v = o.rotate(o.qkv_project(h, w), w)
    q, k, v = o.seq_to_heads(q, k, v)
    a = o.heads_to_seq(o.window_attention(q, k, v, w))
    return o.add_rms_norm(x, o.project(a, w), w.norm2)


def moe_layer(o: Any, x: Values, w: Values) -> Values:
    """Attention, then routed experts."""
    y, h = attention_half(o, x, w)
    r = o.route(h, w)
    e = o.dispatch(h, r)  # all-to-all, or all-gather + scatter-and-drop
    u = o.expert_up(e, w)  # FC1 and FC3, one grouped GEMM
    s = o.swiglu(u, e)  # the gate weight multiplies here, before FC2
    d = o.expert_down(s, w, e)
    z = o.combine(d, e)  # all-to-all, or fill-and-gather + reduce-scatter
    return o.add(y, z)


def shared_moe_layer(o: Any, x: Values, w: Values) -> Values:
    """Attention, then routed experts beside experts that every token visits."""
    y, h = attention_half(o, x, w)
    r = o.route(h, w)
    e = o.dispatch(h, r)
    u = o.expert_up(e, w)
    s = o.swiglu(u, e)
    d = o.expert_down(s, w, e)
    f = o.shared_down(o.shared_swiglu(o.shared_up(h, w.shared_up)), w.shared_down)
    z = o.combine(d, e)
    return o.add(o.add(y, f), z)


def gated_moe_layer(o: Any, x: Values, w: Values) -> Values:
    """Attention, then routed experts beside a shared one that each token weighs for itself."""
    y, h = attention_half(o, x, w)
    r = o.route(h, w)
    e = o.dispatch(h, r)
    u = o.expert_up(e, w)
    s = o.swiglu(u, e)
    d = o.expert_down(s, w, e)
    f = o.shared_down(o.shared_swiglu(o.shared_up(h, w.shared_up)), w.shared_down)
    f = o.shared_gate(f, h, w.shared_gate)
    z = o.combine(d, e)
    return o.add(o.add(y, f), z)


def layer_norm_moe_layer(o: Any, x: Values, w: Values) -> Values:
    """Attention, then routed experts, between norms that take the mean off."""
    h = o.layer_norm(x, w.norm1, w.norm1_bias)
    q, k, v = o.rotate(o.qkv_project(h, w), w)
    q, k, v = o.seq_to_heads(q, k, v)
    a = o.heads_to_seq(o.attention(q, k, v, w))
    y, h = o.add_layer_norm(x, o.project(a, w), w.norm2, w.norm2_bias)
    r = o.route(h, w)
    e = o.dispatch(h, r)
    u = o.expert_up(e, w)
    s = o.swiglu(u, e)
    d = o.expert_down(s, w, e)
    z = o.combine(d, e)
    return o.add(y, z)


def windowed_moe_layer(o: Any, x: Values, w: Values) -> Values:
    """Attention through a window, then routed experts."""
    y, h = windowed_attention_half(o, x, w)
    r = o.route(h, w)
    e = o.dispatch(h, r)
    u = o.expert_up(e, w)
    s = o.swiglu(u, e)
    d = o.expert_down(s, w, e)
    z = o.combine(d, e)
    return o.add(y, z)


def dense_layer(o: Any, x: Values, w: Values) -> Values:
    """Attention, then one feed-forward that every token visits."""
    y, h = attention_half(o, x, w)
    f = o.dense_down(o.dense_swiglu(o.dense_up(h, w.dense_up)), w.dense_down)
    return o.add(y, f)
