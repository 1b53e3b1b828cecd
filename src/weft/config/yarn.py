"""The `[model.yarn]` branch: rotary frequencies stretched beyond the first training (YaRN)."""

from typing import ClassVar

from pydantic import Field

from weft.config.branch import Branch, Positive, Size


class YarnConfig(Branch):
    """How far positions are stretched, and which channels keep their frequency.

    Raises:
        ConfigError: a value is outside its range.

    Paper: arXiv 2309.00071, sections 3.2 and 3.4; 32 and 1 are its choice for language models.
    """

    section: ClassVar[str] = "model.yarn"

    factor: Positive = Field(examples=[32.0], description="the factor on the longest sequence")
    original: Size = Field(examples=[4096], description="the longest sequence before stretching")
    beta_fast: Positive = Field(
        default=32.0, description="the turns within `original` from which a channel stays"
    )
    beta_slow: Positive = Field(
        default=1.0,
        description="the turns within `original` up to which a channel stretches",
    )
    truncate: bool = Field(
        default=True, description="whether the ramp between them begins and ends at whole channels"
    )
