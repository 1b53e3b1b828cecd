"""The language model around the layers: embedding before them, norm, head and loss behind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
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


def logits(o: Any, x: Values, w: Values) -> Values:
    """The logits of every token as a whole, for sampling and for comparisons."""
    return o.head_logits(o.rms_norm(x, w.norm), w.head)


def layer_norm_head(o: Any, x: Values, targets: Values, w: Values) -> Values:
    """The loss behind a norm that takes the mean off, and a head with a bias."""
    h = o.layer_norm(x, w.norm, w.norm_bias)
    return o.biased_cross_entropy(h, w.head, w.head_bias, targets)


def layer_norm_logits(o: Any, x: Values, w: Values) -> Values:
    """The logits of that head."""
    return o.add_bias(o.head_logits(o.layer_norm(x, w.norm, w.norm_bias), w.head), w.head_bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What stands behind the layers: its own weights besides the table, its loss, its logits."""

    weights: tuple[str, ...]
    loss: Callable[..., Any]
    logits: Callable[..., Any]


# By whether the family's norms take the mean off.
HEADS: Mapping[bool, Head] = MappingProxyType(
    {
        False: Head(weights=("norm",), loss=head, logits=logits),
        True: Head(
            weights=("norm", "norm_bias", "head_bias"),
            loss=layer_norm_head,
            logits=layer_norm_logits,
        ),
    }
)
