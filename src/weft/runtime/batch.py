"""One micro-batch on one rank: its share of the tokens, and the documents of the whole stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.data.batches import MicroBatch
from weft.ops.attention import Segments, segments
from weft.parallel.share import Share


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Shapes: tokens, targets [T] of this rank, positions [T] or [N] as its share says; segments
    over all N tokens. Tokens are empty on a stage that embeds none, targets on one that has no
    head.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    segments: Segments

    def environment(self, m: int) -> dict[str, Any]:
        """The batch under the keys that a step reads."""
        return {
            f"m{m}.tokens": self.tokens,
            f"m{m}.targets": self.targets,
            f"m{m}.positions": self.positions,
            f"m{m}.segments": self.segments,
        }


def stage(
    batch: MicroBatch,
    share: Share,
    *,
    device: torch.device,
    embeds: bool = True,
    has_head: bool = True,
) -> Batch:
    """Copies a rank's share of a micro-batch to its device, as far as its stage reads it."""
    return Batch(
        tokens=_copy(pick(batch.tokens, share.tokens)[: None if embeds else 0], device),
        targets=_copy(pick(batch.targets, share.tokens)[: None if has_head else 0], device),
        positions=_copy(pick(batch.positions, share.positions), device),
        segments=segments(batch.ends, device, held=share.tokens),
    )


def pick(values: Any, ranges: Sequence[range]) -> Any:
    """The elements of an array in these ranges, one range after the other."""
    if len(ranges) == 1:
        return values[ranges[0].start : ranges[0].stop]
    return np.concatenate([values[r.start : r.stop] for r in ranges])


def _copy(array: Any, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
