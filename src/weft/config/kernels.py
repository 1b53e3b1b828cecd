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
    attention: Literal["repeatable", "flash", "cudnn"] = Field(
        default="repeatable",
        description="the attention of a GPU in bfloat16; flash and cudnn are faster backwards, but "
        "their gradients differ in the last bits from run to run",
    )
    transport: Literal["auto", "nccl", "symmetric"] = Field(
        default="auto",
        description="what carries the collectives of GPUs: peer memory where it was measured to be "
        "faster, NCCL alone, or peer memory for all of them",
    )
