"""Elements that the forward of one layer brings one rank: as the paper prints it, and as counted.

    n ranks, b s tokens of the group, h hidden, m query heads a key/value head, k choices a token

    what             printed                          one direction, forward
    attention tp     2 b s h (n-1)/n                  the same
    attention sp     2 b s h (n-1)/n (2 + 2/m) / n    half of it
    attention cp     2 b s h (n-1)/n 2/m              half of it
    ffn tp           2 b s h (n-1)/n                  the same
    ffn ep, rows     2 b s h (n-1)/n k / n            the same
    ffn ep, gather   2 b s h (n-1)/n                  the same
    ffn ep, visits   -                                2 b s h (n-1)/n min(k, n) / n

NOTE: the printed formulas of sequence and context parallelism count both directions, those beside
them one. Compare the derived column only. Where r ranks share a key/value head, m becomes m / r.

Rows and visits are those of even routing. Paper: 1.2 and its Eqs 1 to 4.
"""

from dataclasses import dataclass
from fractions import Fraction

from weft.parallel.layout import Attention, Dispatch, FeedForward, Layout, split_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """One half of a layer: its group, the labels of its payload, both formulas with their values.

    `printed` is 0 where the paper has no formula.
    """

    operator: str
    axis: str
    labels: tuple[str, ...]
    printed_text: str
    printed: Fraction
    derived_text: str
    derived: Fraction


def attention_volume(
    layout: Layout, *, tokens: int, hidden: int, heads: int, kv_heads: int, head_dim: int
) -> Volume:
    """The volume of attention over `sp` ranks with so many tokens of a micro-batch.

    Example:
        >>> volume = attention_volume(
        ...     Layout(sp=8), tokens=64, hidden=32, heads=32, kv_heads=8, head_dim=1
        ... )
        >>> [float(x) / (2 * 64 * 32 * 7 / 8) for x in (volume.printed, volume.derived)]
        [0.3125, 0.15625]
    """
    n = layout.sp
    inside = Fraction(tokens * heads * head_dim * (n - 1), n)  # h of the paper is heads x channels
    match layout.attention:
        case Attention.TP:
            whole = Fraction(2 * tokens * hidden * (n - 1), n)
            text = "2 b s h (n-1)/n"
            return _volume("attention", "sp", ("tokens of attention", "attention"),
                           text, whole, text, whole)  # fmt: skip
        case Attention.SP:
            m = Fraction(heads, kv_heads) / split_heads(heads, kv_heads, n).replicas
            part = (2 + 2 / m) / n
            return _volume("attention", "sp", ("qkv", "attention"),
                           "2 b s h (n-1)/n (2 + 2/m) / n", 2 * inside * part,
                           "b s h (n-1)/n (2 + 2/m) / n", inside * part)  # fmt: skip
        case Attention.CP:
            part = Fraction(2 * kv_heads, heads)
            return _volume("attention", "sp", ("keys and values",),
                           "2 b s h (n-1)/n 2/m", 2 * inside * part,
                           "b s h (n-1)/n 2/m", inside * part)  # fmt: skip


def experts_volume(layout: Layout, *, tokens: int, hidden: int, top_k: int) -> Volume:
    """The volume of routed experts; `tokens` are those of a micro-batch.

    Example:
        >>> layout = Layout(sp=8, ep=8)
        >>> volume = experts_volume(layout, tokens=64, hidden=32, top_k=3)
        >>> float(volume.derived / experts_volume(
        ...     Layout(sp=8, ffn=FeedForward.TP), tokens=64, hidden=32, top_k=3
        ... ).derived)
        0.375
    """
    sliced = layout.ffn is FeedForward.TP
    n = layout.sp if sliced else layout.ep
    whole = Fraction(2 * (tokens // layout.sp) * n * hidden * (n - 1), n)
    text = "2 b s h (n-1)/n"
    if sliced or layout.dispatch is Dispatch.ALL_GATHER:
        axis = "sp" if sliced else "ep"
        return _volume("experts", axis, ("tokens", "outputs"), text, whole, text, whole)
    if layout.dispatch is Dispatch.DEDUPLICATED:
        part = Fraction(min(top_k, n), n)
        return _volume("experts", "ep", ("rows", "outputs"), "-", Fraction(0),
                       f"{text} min(k, n) / n", whole * part)  # fmt: skip
    part = Fraction(top_k, n)
    return _volume("experts", "ep", ("rows", "outputs"), f"{text} k / n", whole * part,
                   f"{text} k / n", whole * part)  # fmt: skip


def _volume(
    operator: str,
    axis: str,
    labels: tuple[str, ...],
    printed_text: str,
    printed: Fraction,
    derived_text: str,
    derived: Fraction,
) -> Volume:
    return Volume(
        operator=operator,
        axis=axis,
        labels=labels,
        printed_text=printed_text,
        printed=printed,
        derived_text=derived_text,
        derived=derived,
    )
