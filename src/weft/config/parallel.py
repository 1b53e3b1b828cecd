"""The `[parallel]` branch: how many ranks an axis has, and what travels between them."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from weft.config.branch import Branch, Count, NonNegative, Size, as_tuple

BUCKET = 40_000_000  # elements, Megatron-LM's default


class ParallelConfig(Branch):
    """A layout: `pp` stages of `dp x sp` ranks, of which consecutive blocks of `ep` hold every
    expert of their stage once.

    Whether it fits a model is checked where both are known (`config.run`).
    """

    section: ClassVar[str] = "parallel"

    pp: Size = Field(default=1, description="the stages of the pipeline")
    dp: Size = Field(default=1, description="the degree of data parallelism")
    sp: Size = Field(default=1, description="the degree of sequence parallelism")
    ep: Size = Field(default=1, description="the degree of expert parallelism")
    attention: Literal["sp", "tp", "cp"] = Field(
        default="sp", description="what the sp group does in attention: sequence, tensor or context"
    )
    ffn: Literal["ep", "tp"] = Field(
        default="ep", description="whole experts over ep, or a slice of every expert over sp"
    )
    dispatch: Literal["all_to_all", "all_gather", "deduplicated", "auto"] = Field(
        default="all_to_all",
        description="how tokens reach their experts; auto: as the machine's prices say",
    )
    row_bound: NonNegative = Field(
        default=0.0,
        examples=[1.25],
        description="the even shares of rows an expert rank makes room for, so that the host waits "
        "for no count; a step that needs more is run again; 0: as many as come",
    )
    zero: Literal[1, 2] = Field(
        default=1, description="1 shards the optimizer's state, 2 sums of gradients as well"
    )
    pipeline: Literal["1f1b", "interleaved", "zero_bubble"] = Field(
        default="1f1b", description="the order of a pipeline's forwards and backwards"
    )
    chunks: Size = Field(default=1, description="the parts of the model on each stage")
    layers: Annotated[tuple[Size, ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        examples=[[3, 3, 2]],
        description="the layers of each part in the order of the model; none: cut by cost",
    )
    node: Count = Field(
        default=0, description="ranks of a node, whose wires are faster; 0 where all are alike"
    )
    bucket_elements: Size = Field(
        default=BUCKET,
        description="the most gradients that are summed in one collective",
    )

    @property
    def ranks(self) -> int:
        """The number of ranks that the layout takes.

        Example:
            >>> ParallelConfig(pp=3, dp=2, sp=4, ep=8).ranks
            24
        """
        return self.pp * self.stage_ranks

    @property
    def stage_ranks(self) -> int:
        """The number of ranks of one stage."""
        return self.dp * self.sp
