"""The layouts that are proved: one line each, in words that stand for keys of a recipe.

    pp2 v2 zero_bubble | dp2 sp2 ep4 node2 | all_gather | zero2 | bf16
    pipeline             ranks of a stage    dispatch     what is sharded, how gradients travel

`sp`, `tp` and `cp` are one axis of ranks and say what it does in attention; `ffn-tp` cuts every
expert over it. A line may start with the name of its model, `moe:` where it does not.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from weft.config.compression import CROSSINGS

STACKED = """
sp2
sp2 ep2
sp2 ep2 all_gather
sp2 ep2 deduplicated
sp4
sp4 ep2
sp4 ep4
sp4 ep4 all_gather
sp8 ep8
sp4 dp2 ep2 deduplicated
sp2 dp2 ep4
sp2 dp2 ep4 deduplicated
sp2 dp4 ep8 all_gather
sp4 dp2 ep8
sp4 dp4 ep16
sp4 dp4 ep8 all_gather node4
dp2
dp2 ep2
dp4 ep4 deduplicated
wide: dp8 ep8
sp2 ffn-tp
sp4 ffn-tp
sp2 dp2 ffn-tp
tp2 ep2
tp4 ep4 all_gather
tp4 dp2 ep2
tp2 dp2 ep4 deduplicated
tp2 ffn-tp
tp4 ffn-tp
tp2 dp4 ffn-tp node4
cp2 ep2
cp4 ep4 deduplicated
cp8 ep2
cp2 dp2 ep4 all_gather
cp2 ffn-tp
cp4 dp2 ffn-tp
dp4 node2
wide: dp8 node2 zero2
sp2 dp4 ep2 node4
sp2 dp4 ep4 node2
sp4 dp4 ep4 node4 zero2
dp4 zero2
sp2 dp2 ep2 zero2
tp2 dp2 ep2 zero2
dp4 bf16
sp2 dp4 ep2 node4 bf16
dp4 ep2 zero2 bf16_ring
dp4 ep2 buckets
sp2 ep2 fp8
tp2 dp2 ep4 all_gather fp8 block
sp2 ep2 merge
sp2 dp2 ep4 across merge remat
cp2 ep2 paper across deduplicated
tied: pp2
tied: pp4
staged: pp2 interleaved v2
staged: pp2 zero_bubble
staged: pp2 zero_bubble v2
staged: pp4 dp2 ep2
deep: pp4 interleaved v2
staged: pp4 zero_bubble
deep: pp4 zero_bubble v2 sp2 ep2
tied: pp4 sp2 dp2 ep4 node2 zero2 all_gather
tied: pp2 dp2 ep2
tied: pp2 sp2 ep2 zero_bubble
tied: pp2 dp2 zero2
tied: pp2 dp2 zero2 interleaved v2
tied: pp2 dp2 zero2 zero_bubble v2
staged: pp2 tp2 ep2
staged: sp2 ep2 remat
staged: dp2 sp2 ep4 deduplicated remat
tied: tp2 ep2
tied: dp2 zero2
tp2 ep2 deduplicated
cp2 dp2 ep2 zero2
tp4 dp4 ep8 node4
capacity: sp2 ep2
capacity: dp2 sp2 ep4 all_gather
sp2 ep2 all_gather bounded
sp4 dp2 ep4 all_gather tight
capacity: dp2 sp2 ep4 all_gather tight
cp2 ep2 all_gather tight fp8
"""

GLOO = """
sp2 ep2
sp2 ep2 all_gather
sp2 ep2 deduplicated
dp2
tp2 ep2
tp2 ffn-tp
cp2 ep2
sp2 dp2 ep4
sp4 ep2 all_gather
dp4 node2 zero2
dp4 ep2 node2 bf16
tp2 dp2 ep2
cp4 ffn-tp
cp2 dp2 ep4 all_gather
tied: pp2 dp2 ep2 zero_bubble
sp2 ep2 fp8
"""

# Layouts that somebody will ask for, and that do not exist.
IMPOSSIBLE = """
sp3
capacity: cp2 ep2
capacity: sp4 ep4 deduplicated
capacity: sp2 ffn-tp
sp16
cp5
ep2
sp2 ep32
sp2 dp2 ep3
sp2 ep2 ffn-tp
dp3
dp4 node3
sp2 dp4 ep4 node3
tp2 dp3 node3
sp4 dp3 ffn-tp node6
tp1 ep1
ep1 all_gather
sp2 ep2 bounded
dp1 zero2
dp1 bf16
sp2 fp8
sp2 ep2 block
dp4 node4
dp2 interleaved
dp2 across
pp2 merge
pp2 interleaved
deep: pp16
deep: pp4 v4 interleaved
v2
"""

DEGREES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "pp": ("parallel.pp={}",),
        "v": ("parallel.chunks={}",),
        "dp": ("parallel.dp={}",),
        "sp": ("parallel.sp={}",),
        "tp": ("parallel.sp={}", "parallel.attention=tp"),
        "cp": ("parallel.sp={}", "parallel.attention=cp"),
        "ep": ("parallel.ep={}",),
        "node": ("parallel.node={}",),
        "zero": ("parallel.zero={}",),
    }
)
WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "all_gather": ("parallel.dispatch=all_gather",),
        "deduplicated": ("parallel.dispatch=deduplicated",),
        "bounded": ("parallel.row_bound=1.5",),
        "tight": ("parallel.row_bound=1",),
        "ffn-tp": ("parallel.ffn=tp",),
        "interleaved": ("parallel.pipeline=interleaved",),
        "zero_bubble": ("parallel.pipeline=zero_bubble",),
        "bf16": ("compression.gradients=bf16",),
        "bf16_ring": ("compression.gradients=bf16_ring",),
        "fp8": tuple(f"compression.{crossing}=fp8" for crossing in CROSSINGS),
        "block": ("compression.scales=block",),
        "buckets": ("parallel.bucket_elements=1000",),
        "remat": ("overlap.remat=full",),
        "across": ("overlap.across=true",),
        "merge": ("overlap.merge=true",),
        "paper": ("overlap.order=paper",),
    }
)
MODEL = "moe"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A line of a table: the model it names, and what it asks of a recipe."""

    name: str
    model: str
    overrides: tuple[str, ...]
    processes: bool = False
    exists: bool = True


def every_row() -> tuple[Row, ...]:
    """The rows of all three tables."""
    gloo = (replace(found, processes=True) for found in rows(GLOO))
    none = (replace(found, exists=False) for found in rows(IMPOSSIBLE))
    return (*none, *rows(STACKED), *gloo)


def rows(table: str) -> tuple[Row, ...]:
    """The rows of a table in its order."""
    return tuple(row(line) for line in table.strip().splitlines())


def row(line: str) -> Row:
    """One line as a row.

    Example:
        >>> row("tied: tp2 all_gather").overrides
        ('parallel.sp=2', 'parallel.attention=tp', 'parallel.dispatch=all_gather')
    """
    model, colon, layout = line.rpartition(":")
    return Row(
        name=line,
        model=model if colon else MODEL,
        overrides=tuple(key for word in layout.split() for key in _overrides(word)),
    )


def _overrides(word: str) -> Iterator[str]:
    if word in WORDS:
        yield from WORDS[word]
        return
    match = re.fullmatch(r"([a-z]+)(\d+)", word)
    assert match, f"{word=} is no word of the table"
    axis, degree = match.groups()
    for key in DEGREES[axis]:
        yield key.format(degree)
