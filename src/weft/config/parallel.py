"""The `[parallel]` branch: how many ranks an axis has, and how tokens reach their experts."""

from typing import ClassVar, Literal

from pydantic import Field

from weft.config.branch import Branch, Size


class ParallelConfig(Branch):
    """A layout: `dp x sp` ranks, of which consecutive blocks of `ep` hold every expert once.

    Whether it fits a model is checked where both are known (`config.run`).
    """

    section: ClassVar[str] = "parallel"

    dp: Size = Field(default=1, description="the degree of data parallelism")
    sp: Size = Field(default=1, description="the degree of sequence parallelism")
    ep: Size = Field(default=1, description="the degree of expert parallelism")
    dispatch: Literal["all_to_all", "all_gather"] = Field(
        default="all_to_all", description="how tokens reach their experts"
    )

    @property
    def ranks(self) -> int:
        """The number of ranks that the layout takes.

        Example:
            >>> ParallelConfig(dp=2, sp=4, ep=8).ranks
            8
        """
        return self.dp * self.sp
