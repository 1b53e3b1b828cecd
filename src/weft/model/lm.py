"""The language model around the layers: embedding before them, norm, head and loss behind."""

from typing import Any

Values = Any


def embedding(o: Any, tokens: Values, positions: Values, w: Values) -> Values:
    """The first hidden state and the rotary table that every layer shares."""
    x = o.embed(tokens, w.embed)
    cos, sin = o.rope_table(positions)
    return x, cos, sin


def head(o: Any, x: Values, targets: Values, w: Values) -> Values:
    """The loss summed so far after this micro-batch; logits never exist as a whole."""
    h = o.rms_norm(x, w.norm)
    return o.cross_entropy(h, w.head, targets)
