"""The `[kernels]` branch: which bodies run the operators."""

from typing import ClassVar, Literal

from pydantic import Field

from weft.config.branch import Branch


class KernelsConfig(Branch):
    """The fastest bodies whose bits repeat, unless something else is asked for."""

    section: ClassVar[str] = "kernels"

    bodies: Literal["fast", "reference"] = Field(
        default="fast", description="the bodies that run the operators; `weft doctor` lists them"
    )
    fuse: Literal["auto", "all", "none"] = Field(
        default="none",  # no whole step has been timed with them yet
        description="fused operators in place of the sequences they are defined by: none, those "
        "for which this machine has a faster body (auto), or all; `weft doctor` lists them",
    )
    attention: Literal["repeatable", "flash", "cudnn"] = Field(
        default="repeatable",
        description="the attention of a GPU in bfloat16; flash and cudnn are faster backwards, but "
        "their gradients differ in the last bits from run to run",
    )
    transport: Literal["auto", "nccl", "symmetric"] = Field(
        default="nccl",  # whole steps are not always faster with another one: docs/decisions/0006
        description="what carries the collectives of GPUs of one host: NCCL alone, peer memory for "
        "what it was measured to carry faster (auto), or for all of them (symmetric)",
    )
