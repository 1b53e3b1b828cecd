"""The `[compression]` branch: in how many bits what leaves a rank travels."""

from typing import ClassVar, Literal

from pydantic import Field

from weft.config.branch import Branch

Bits = Literal["none", "fp8"]
CROSSINGS = ("dispatch", "combine", "dispatch_grad", "combine_grad")


class CompressionConfig(Branch):
    """Fewer bits on the wire; sums are made in FP32 whatever travels.

    `bf16` rounds each term of a sum of gradients once. `bf16_ring` rounds the sum at every hop: it
    is what is compared with, and nothing to train with.

    Activations cross to their experts and back, and so do their gradients: four crossings, each
    with or without `fp8` (E4M3). Where one has it, gate weights multiply behind the experts. Where
    a rank holds every expert nothing crosses, and nothing is rounded.
    """

    section: ClassVar[str] = "compression"

    gradients: Literal["fp32", "bf16", "bf16_ring"] = Field(
        default="fp32", description="the dtype of gradients between replicas"
    )
    dispatch: Bits = Field(default="none", description="tokens on their way to their experts")
    combine: Bits = Field(default="none", description="what experts made, on its way back")
    dispatch_grad: Bits = Field(default="none", description="the gradient of what was dispatched")
    combine_grad: Bits = Field(default="none", description="the gradient of what was combined")
    scales: Literal["token", "block"] = Field(
        default="token",
        description="what shares a scale: a token (of a gradient 128 tokens of a channel), or 128 "
        "channels of a token",
    )

    @property
    def encodes(self) -> bool:
        """Whether activations travel in eight bits anywhere."""
        return any(getattr(self, crossing) == "fp8" for crossing in CROSSINGS)
