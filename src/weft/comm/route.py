"""Which bytes of a call go to which member in which piece: found once a call and shape.

A block that fits a slot is one piece. A longer one travels in pieces of nearly a slot, and the last
of them is a quarter of one: pieces land while later ones travel, so of all landings only that of
the last piece is waited for. The first need not be short: landing is five times as fast as the
wire. Both ends of a pair know the bytes of a block and so cut it alike.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

_PAGE = 4096  # pieces begin on pages, where slots are large enough to


class Block(NamedTuple):
    """A stretch of a flat tensor of bytes, from or for one member."""

    first: int
    size: int


class Piece(NamedTuple):
    """What one slot carries: the member at the other end, and where it lies in the tensor here."""

    peer: int
    first: int
    size: int


class Round(NamedTuple):
    """A piece to each member that still expects one, one from each that still has some, and a part
    of what the member keeps: where it lies and where it belongs.
    """

    pushes: tuple[Piece, ...]
    lands: tuple[Piece, ...]
    own: Piece
    home: Piece


Route = tuple[Round, ...]  # a call as one member carries it out


def cut(size: int, slot_bytes: int) -> tuple[Block, ...]:
    """The pieces of a block; one of no bytes where it has none.

    Example:
        >>> [block.size for block in cut(1024, 1024)]
        [1024]
        >>> [block.size >> 20 for block in cut(2**26, 2**24)]
        [15, 15, 15, 15, 4]
    """
    if size <= slot_bytes:
        return (Block(0, size),)
    last = slot_bytes // 4
    count = -(-(size - last) // slot_bytes)
    step = min(_PAGE, slot_bytes // 4)
    each = -(-(size - last) // (count * step)) * step
    firsts = range(0, size, each)
    return tuple(Block(first, min(each, size - first)) for first in firsts)


def in_turn(sizes: Sequence[int]) -> list[Block]:
    """Blocks of these sizes, one behind the other.

    Example:
        >>> in_turn([3, 0, 2])
        [Block(first=0, size=3), Block(first=3, size=0), Block(first=3, size=2)]
    """
    starts = accumulate(sizes, initial=0)
    return [Block(first, size) for first, size in zip(starts, sizes, strict=False)]


def find_route(
    sends: Sequence[Block], lands: Sequence[Block], *, position: int, slot_bytes: int
) -> Route:
    """The route of blocks to and from each member, the own one among them.

    Each member starts with its neighbour, so that none is everybody's first.
    """
    size = len(sends)
    others = [(position + way) % size for way in range(1, size)]
    pushes = {peer: _pieces(peer, sends[peer], slot_bytes) for peer in others}
    landings = {peer: _pieces(peer, lands[peer], slot_bytes) for peer in others}
    count = max(len(pieces) for pieces in (*pushes.values(), *landings.values()))
    own, home = sends[position], lands[position]
    parts = _parts(own.size, count)
    return tuple(
        Round(
            pushes=_numbered(number, pushes.values()),
            lands=_numbered(number, landings.values()),
            own=Piece(position, own.first + part.first, part.size),
            home=Piece(position, home.first + part.first, part.size),
        )
        for number, part in enumerate(parts)
    )


def _parts(size: int, count: int) -> list[Block]:
    """What is kept, in parts for the first half of the rounds: all of it in the first would hold
    up what lands, and the last one has nothing to hide it.
    """
    each = -(-size // (max(count // 2, 1) * _PAGE)) * _PAGE
    firsts = (min(number * each, size) for number in range(count))
    return [Block(first, min(each, size - first)) for first in firsts]


def _pieces(peer: int, block: Block, slot_bytes: int) -> list[Piece]:
    return [Piece(peer, block.first + at, size) for at, size in cut(block.size, slot_bytes)]


def _numbered(number: int, blocks: Iterable[list[Piece]]) -> tuple[Piece, ...]:
    return tuple(pieces[number] for pieces in blocks if number < len(pieces))
