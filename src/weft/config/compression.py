"""The `[compression]` branch: in how many bits what leaves a rank travels."""

from typing import ClassVar, Literal

from pydantic import Field

from weft.config.branch import Branch


class CompressionConfig(Branch):
    """Fewer bits on the wire; sums are made in FP32 whatever travels.

    `bf16` rounds each term of a sum of gradients once. `bf16_ring` rounds the sum at every hop: it
    is what is compared with, and nothing to train with.
    """

    section: ClassVar[str] = "compression"

    gradients: Literal["fp32", "bf16", "bf16_ring"] = Field(
        default="fp32", description="the dtype of gradients between replicas"
    )
