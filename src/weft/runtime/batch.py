"""One micro-batch on one rank: its slice of the tokens, and the documents of the whole stream."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft.data.batches import MicroBatch
from weft.ops.attention import Segments, segments


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Shapes: tokens, targets, positions [T] of this rank; segments over all N tokens."""

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


def stage(batch: MicroBatch, *, sp: int, sp_rank: int, device: torch.device) -> Batch:
    """Copies this rank's share of a micro-batch to its device."""
    count = len(batch.tokens) // sp
    share = slice(sp_rank * count, (sp_rank + 1) * count)
    return Batch(
        tokens=_copy(batch.tokens[share], device),
        targets=_copy(batch.targets[share], device),
        positions=_copy(batch.positions[share], device),
        segments=segments(batch.ends, device),
    )


def _copy(array: Any, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
