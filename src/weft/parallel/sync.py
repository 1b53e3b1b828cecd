"""The outermost wire: gradients to the ranks that own their sums, parameters back.

    flat              encode -> reduce over all replicas           own shard of the sum
    hierarchical      reduce-scatter inside the node (FP32)
                      encode -> reduce between nodes               own shard of the sum
    back              gather between nodes, then inside the node

What crosses the last leg, of n ranks and Z elements, is one of

    fp32         reduce-scatter of the sums as they are accumulated      4 Z (n-1)/n bytes
    bf16         one cast, all-to-all, FP32 sum in rank order            2 Z (n-1)/n bytes
    bf16_ring    n - 1 hops of a shard, each sum rounded to bfloat16     2 Z (n-1)/n bytes

`bf16` happens in the memory of the gradient itself: the cast fills its first half, the all-to-all
its second, and the sum is written over what was sent. `bf16_ring` is there for comparison.

A shard is named by its legs, the first the slowest: of replica (inter j, intra i) of m nodes it is
block `i m + j`. Where two legs are at work they are different axes and so different lanes: while
one bucket crosses between the nodes, the next is summed inside them.

Paper: 1.4, 4.1 and Fig 5, Fig 11, App. A.1. How compression goes with the hierarchy is not in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from weft.parallel.layout import Leg

GRADIENTS, PARAMETERS = "gradients", "parameters"  # payload names


class Wire(StrEnum):
    """In how many bits gradients cross the outermost leg."""

    FP32 = "fp32"
    BF16 = "bf16"
    BF16_RING = "bf16_ring"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sync:
    """How replicas are kept in step: the wire of gradients, the most elements of a bucket, and what
    is sharded: optimizer state (ZeRO-1), sums of gradients too (ZeRO-2).
    """

    gradients: Wire = Wire.FP32
    zero: int = 1
    bucket: int = 40_000_000  # Megatron-LM's default; 160 MB of FP32


def shard_index(legs: Sequence[Leg], place: int) -> int:
    """Which shard of a bucket a replica owns.

    Example:
        >>> two = (Leg(axis="dense_intra", ranks=4), Leg(axis="dense_inter", ranks=2))
        >>> [shard_index(two, place) for place in range(8)]
        [0, 2, 4, 6, 1, 3, 5, 7]
    """
    index = 0
    for leg in legs:
        place, position = divmod(place, leg.ranks)
        index = index * leg.ranks + position
    return index


def reduce(o: Any, grad: Any, legs: Sequence[Leg], *, wire: Wire, place: int) -> Any:
    """The own shard of a bucket's gradient, summed over all replicas."""
    *near, last = legs
    for leg in near:
        place //= leg.ranks
        grad = grad if leg.ranks == 1 else _scatter(o, grad, leg)
    if last.ranks == 1:
        return _scatter(o, grad, last)
    match wire:
        case Wire.FP32:
            return _scatter(o, grad, last)
        case Wire.BF16:
            return _exchange(o, grad, last)
        case Wire.BF16_RING:
            return _ring(o, grad, last, place)


def _scatter(o: Any, grad: Any, leg: Leg) -> Any:
    (shard,) = o.call(
        "reduce_scatter_grad", grad, axis=leg.axis, label=GRADIENTS, renames=_lengths(grad, leg)
    )
    return shard


def _exchange(o: Any, grad: Any, leg: Leg) -> Any:
    """One rounding for each term, none for the sum."""
    lengths = _lengths(grad, leg)
    (sent,) = o.call("encode_grad", grad, renames=lengths)
    (received,) = o.call(
        "all_to_all_grad", sent, grad, axis=leg.axis, label=GRADIENTS, renames=lengths
    )
    (shard,) = o.call("decode_grad", received, grad, ranks=leg.ranks, renames=lengths)
    return shard


def _ring(o: Any, grad: Any, leg: Leg, place: int) -> Any:
    """Block b starts behind its owner and collects a term at every rank on the way around."""
    lengths = _lengths(grad, leg)
    (sent,) = o.call("encode_grad", grad, renames=lengths)
    block = (place - 1) % leg.ranks
    (partial,) = o.call("take_block", sent, block=block, ranks=leg.ranks, renames=lengths)
    for _ in range(leg.ranks - 1):
        block = (block - 1) % leg.ranks
        (arrived,) = o.call("pass_on", partial, axis=leg.axis, label=GRADIENTS, renames=lengths)
        (partial,) = o.call("add_block", arrived, sent, block=block, renames=lengths)
    (shard,) = o.call("widen_grad", partial, renames=lengths)
    return shard


def accumulate(o: Any, grad: Any, shard: Any, total: Any) -> tuple[Any, Any]:
    """The shard added to those of earlier micro-batches, and the gradient cleared for the next."""
    (summed,) = o.call("add_shard", shard, total, renames={"z": shard.dims})
    (cleared,) = o.call("clear_grad", grad, summed, renames={"Z": grad.dims, "z": shard.dims})
    return summed, cleared


def gather(o: Any, updated: Any, bucket: Any, legs: Sequence[Leg], *, place: int) -> Any:
    """The bucket with the parameters of all owners in it."""
    first, *far = legs
    if far:
        (last,) = far
        node = int(bucket.dims) // first.ranks
        (updated,) = o.call(
            "gather_block", updated, bucket,
            axis=last.axis, label=PARAMETERS, first=place % first.ranks * node,
            renames={"Z": bucket.dims, "z": updated.dims, "y": str(node)},
        )  # fmt: skip
    (gathered,) = o.call(
        "gather_params", updated, bucket, axis=first.axis, label=PARAMETERS,
        renames={"Z": bucket.dims, "z": updated.dims},
    )  # fmt: skip
    return gathered


def _lengths(grad: Any, leg: Leg) -> dict[str, str]:
    """Elements before and after a leg in place of the letters that stand for any bucket's."""
    return {"Z": grad.dims, "z": str(int(grad.dims) // leg.ranks)}
