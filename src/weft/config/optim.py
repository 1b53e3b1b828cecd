"""The `[optim]` branch: AdamW, its schedule and the clipping of gradients.

Defaults that are not 0, 1 or 2 are those of GPT-3 (arXiv 2005.14165, appendix B): betas, epsilon,
decay, clipping, and a cosine down to a tenth.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from weft.config.branch import Branch, Count, Fraction, NonNegative, Positive, Size


class OptimConfig(Branch):
    """AdamW with a linear warm-up, and a way down to `min_lr_ratio * lr`.

    Raises:
        ConfigError: a value is outside its range.
    """

    section: ClassVar[str] = "optim"

    lr: Positive = Field(examples=[3e-4], description="the highest learning rate")
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="the last learning rate as a part of the highest"
    )
    warmup_steps: Count = Field(examples=[10], description="the steps of the linear warm-up")
    schedule: Literal["cosine", "warmup_stable_decay"] = Field(
        default="cosine", description="how the learning rate goes down after the warm-up"
    )
    decay_steps: Size | None = Field(
        default=None,
        examples=[20],
        description="the last steps, in which warmup_stable_decay goes down",
    )
    skip_sigmas: Positive | None = Field(
        default=None,
        examples=[6.0],
        description="refuse steps whose loss or gradient norm is so many deviations above the mean",
    )
    beta1: Fraction = Field(default=0.9, description="the decay of the first moment")
    beta2: Fraction = Field(default=0.95, description="the decay of the second moment")
    eps: Positive = Field(default=1e-8, description="the epsilon of the update")
    weight_decay: NonNegative = Field(default=0.1, description="the decay of matrices")
    clip_norm: Positive = Field(default=1.0, description="the largest global gradient norm")
