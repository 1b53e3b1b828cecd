"""The `[overlap]` branch: in which order the operators of a layer run."""

from typing import ClassVar, Literal

from pydantic import Field

from weft.config.branch import Branch


class OverlapConfig(Branch):
    """Communication beside computation, or one operator after the other; the bits are the same."""

    section: ClassVar[str] = "overlap"

    order: Literal["overlapped", "serial"] = Field(
        default="overlapped", description="the order of the operators of a layer"
    )
