"""The letters of the project: what each dim means, and how a letter becomes a number.

A shape is written in letters (`"T D"`, `"L 2F D"`, `"T/2 D"` of half the tokens); `Sizes` holds
their numbers for one model, layout and micro-batch. A dynamic dim (routed rows) has no number
before the router has spoken: it has a `bound`, which the checker and the planner use, and at run
time the tensor itself says its size.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

LEGEND: Mapping[str, str] = MappingProxyType(
    {
        "B": "sequences of a micro-batch",
        "S": "positions of a sequence",
        "N": "tokens of a micro-batch, B S",
        "T": "tokens of a micro-batch on this rank, N / sp",
        "D": "model (hidden) width",
        "V": "vocabulary",
        "h": "query and key heads, H + G",
        "C": "channels of a head",
        "c": "channels of a head that are rotated",
        "H": "query heads",
        "G": "key/value heads",
        "J": "query heads on this rank inside attention, H / sp",
        "K": "key/value heads on this rank inside attention, max(G / sp, 1)",
        "Q": "columns of the QKV projection, (H + 2G) C",
        "A": "columns of the attention output, H C",
        "g": "columns of the keys, G C",
        "P": "columns of one rank's share of QKV, (J + 2K) C",
        "M": "columns of one rank's share of the attention output, J C",
        "X": "ranks of the sequence-parallel group, sp",
        "Y": "ranks of the expert-parallel group, ep",
        "d": "ranks of the world, pp dp sp",
        "E": "routed experts",
        "l": "layers",
        "L": "routed experts on this rank, E / ep",
        "k": "experts a token chooses",
        "U": "tokens of the expert-parallel group, T ep",
        "O": "routed rows leaving this rank, T k",
        "R": "routed rows on this rank (dynamic)",
        "o": "tokens leaving this rank, one for each rank they go to (dynamic)",
        "r": "tokens that came to this rank, each once (dynamic)",
        "p": "bytes of a row in 8 bits, its scales among them",
        "b": "rows in 8 bits leaving this rank, the scales of channels among them",
        "a": "rows in 8 bits on this rank, the scales of channels among them",
        "t": "T rows in 8 bits, the scales of channels among them",
        "u": "rows in 8 bits of the expert-parallel group, t ep",
        "F": "hidden width of a routed expert, or of this rank's slice",
        "W": "hidden width of a dense feed-forward, or of this rank's slice",
        "w": "hidden width of the shared experts together, or of this rank's slice",
        "Z": "elements of a flat bucket",
        "z": "elements of one rank's shard of a flat bucket",
        "y": "elements of one node's share of a flat bucket",
        "I": "elements of the statistics vector",
    }
)

DYNAMIC = frozenset({"R", "o", "r"})

_TERM = re.compile(r"(\d*)([A-Za-z]?)(?:/(\d+))?")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers for letters. For a dynamic letter the number is its balanced value; `bounds` holds
    its upper bound, and `ranks` the size of a group of each axis.
    """

    numbers: Mapping[str, int]
    bounds: Mapping[str, int]
    ranks: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def __getattr__(self, letter: str) -> int:
        try:
            return self.numbers[letter]
        except KeyError:
            raise AttributeError(
                f"no size for dim {letter!r}; known: {' '.join(sorted(self.numbers))}"
            ) from None

    def of(self, term: str) -> int:
        """The number a term of a shape stands for, rounded down where it is a part of a letter.

        Example:
            >>> sizes = Sizes({"F": 3, "T": 8}, {})
            >>> sizes.of("2F"), sizes.of("T/4")
            (6, 2)
        """
        match = _TERM.fullmatch(term)
        assert match, f"{term=} is not a dim term"
        coefficient, letter, parts = match.groups()
        whole = int(coefficient or 1) * (self.numbers[letter] if letter else 1)
        return whole // int(parts or 1)

    def shape(self, dims: str) -> tuple[int, ...]:
        """The sizes of a shape written in letters.

        Example:
            >>> Sizes({"T": 4, "D": 8}, {}).shape("T D")
            (4, 8)
        """
        return tuple(self.of(term) for term in dims.split())

    def count(self, dims: str) -> int:
        """The number of elements of a shape written in letters."""
        total = 1
        for size in self.shape(dims):
            total *= size
        return total


def letters(dims: str) -> tuple[str, ...]:
    """The letters a shape mentions, in order.

    Example:
        >>> letters("L 2F D")
        ('L', 'F', 'D')
    """
    found = (_TERM.fullmatch(term) for term in dims.split())
    return tuple(m.group(2) for m in found if m and m.group(2))


def is_dynamic(dims: str) -> bool:
    """Whether a shape has a dim whose size is known only after routing."""
    return any(letter in DYNAMIC for letter in letters(dims))
