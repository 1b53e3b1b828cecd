"""Which tokens of a micro-batch a rank holds, as ranges of its flat stream of N = B S tokens.

    sp, tp   rank r of n holds tokens [r T, (r + 1) T)
    cp       each sequence is cut into 2 n chunks, and rank r holds chunks r and 2 n - 1 - r of it

A query of chunk c attends to c + 1 chunks of keys, so both chunks of every context-parallel rank
together attend to 2 n + 1: the causal triangle is cut into equal parts (paper 1.1; a document that
ends inside a sequence makes them unequal again).
"""

from dataclasses import dataclass

from weft.parallel.layout import Attention, Layout


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The tokens a rank holds, in its own order, and the tokens whose positions it needs."""

    tokens: tuple[range, ...]
    positions: tuple[range, ...]


def whole(tokens: int) -> Share:
    """The share of a rank alone."""
    return Share(tokens=(range(tokens),), positions=(range(tokens),))


def share_of(layout: Layout, rank: int, *, sequences: int, sequence: int) -> Share:
    """The share of a rank of a layout. Under tensor parallelism it attends with every token.

    Example:
        >>> share_of(Layout(sp=2), 1, sequences=2, sequence=8).tokens
        (range(8, 16),)
        >>> share_of(Layout(sp=2, attention=Attention.CP), 1, sequences=1, sequence=8).tokens
        (range(2, 4), range(4, 6))
    """
    position, count = layout.sp_rank(rank), sequences * sequence
    match layout.attention:
        case Attention.SP:
            own = (_block(position, layout.sp, count),)
            return Share(tokens=own, positions=own)
        case Attention.TP:
            own = (_block(position, layout.sp, count),)
            return Share(tokens=own, positions=(range(count),))
        case Attention.CP:
            own = zigzag(position, layout.sp, sequences=sequences, sequence=sequence)
            return Share(tokens=own, positions=own)


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbering:
    """A rank numbers its tokens from `first`, and every `stretch` numbers are a sequence."""

    first: int
    stretch: int


def numbering_of(layout: Layout, rank: int, *, sequences: int, sequence: int) -> Numbering:
    """How the tokens of a rank's share fall into sequences; under context parallelism it has a part
    of each.

    Example:
        >>> numbering_of(Layout(sp=2), 1, sequences=2, sequence=8)
        Numbering(first=8, stretch=8)
        >>> numbering_of(Layout(sp=2, attention=Attention.CP), 1, sequences=2, sequence=8)
        Numbering(first=0, stretch=4)
    """
    if layout.attention is Attention.CP:
        return Numbering(first=0, stretch=sequence // layout.sp)
    tokens = sequences * sequence // layout.sp
    return Numbering(first=layout.sp_rank(rank) * tokens, stretch=sequence)


def zigzag(position: int, ranks: int, *, sequences: int, sequence: int) -> tuple[range, ...]:
    """Chunks `position` and `2 ranks - 1 - position` of each sequence.

    Example:
        >>> zigzag(0, 2, sequences=2, sequence=8)
        (range(0, 2), range(6, 8), range(8, 10), range(14, 16))
    """
    if ranks == 1:
        return (range(sequences * sequence),)
    chunk = sequence // (2 * ranks)
    starts = (
        first + chunk * place
        for first in range(0, sequences * sequence, sequence)
        for place in (position, 2 * ranks - 1 - position)
    )
    return tuple(range(start, start + chunk) for start in starts)


def _block(position: int, ranks: int, count: int) -> range:
    size = count // ranks
    return range(position * size, (position + 1) * size)
