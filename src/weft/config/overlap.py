"""The `[overlap]` branch: what is kept for the backward, and in which order operators run."""

from typing import Any, ClassVar, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from weft.config.branch import Branch, closest_name, refusal
from weft.errors import ConfigError

POLICIES = ("none", "selective", "full", "auto")
PAIRS = ("qkv", "out", "dispatch", "combine", "qkv_grad", "out_grad", "dispatch_grad")
_ROOM = 2**33  # bytes of the example in an error: what a layer or two of a large model keep


class OverlapConfig(Branch):
    """Communication beside computation, or one operator after the other; the bits are the same."""

    section: ClassVar[str] = "overlap"

    order: Literal["overlapped", "serial", "paper", "auto"] = Field(
        default="overlapped", description="the order of the operators of a layer"
    )
    across: bool = Field(
        default=False,
        description="whether a layer's backward posts the first collective of the next one's",
    )
    merge: bool = Field(
        default=False,
        description="whether a micro-batch's backward runs beside the next one's forward",
    )
    remat: str | tuple[str, ...] = Field(
        default="none",
        description="what the backward makes again: none, selective, full, auto, or a list of "
        "values by name",
    )
    memory: int = Field(
        default=0,
        ge=0,
        description='bytes for what the layers of a rank keep, with remat = "auto"',
    )

    split: tuple[str, ...] = Field(
        default=(),
        description="pairs of a product and a collective that are cut into chunks: any of "
        f"{', '.join(PAIRS)}",
    )
    chunks: int = Field(default=2, ge=2, description="into how many chunks a pair is cut")

    schedule: str = Field(
        default="",
        description="a file of saved orders (weft show schedule --actions) that go before `order`",
    )

    @field_validator("remat", "split", mode="before")
    @classmethod
    def _take_list(cls, value: Any) -> Any:
        """A list of names as TOML has it, as a tuple: strict types take no list for one."""
        return tuple(cast("list[Any]", value)) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.remat, str) and self.remat not in POLICIES:
            rule = f"must be one of {', '.join(POLICIES)}, or a list of values"
            meant = closest_name(self.remat, POLICIES) or "none"
            raise ConfigError(refusal("overlap.remat", self.remat, rule, meant))
        if self.remat == "auto" and not self.memory:
            rule = 'must be given with overlap.remat = "auto"'
            raise ConfigError(refusal("overlap.memory", self.memory, rule, _ROOM))
        if self.remat != "auto" and self.memory:
            rule = 'has no meaning without overlap.remat = "auto"'
            raise ConfigError(refusal("overlap.memory", self.memory, rule, 0))
        return self

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        for name in self.split:
            if name not in PAIRS:
                rule = f"must hold none but {', '.join(PAIRS)}, found {name!r}"
                meant = closest_name(name, PAIRS) or PAIRS[0]
                legal = tuple(dict.fromkeys(meant if n == name else n for n in self.split))
                raise ConfigError(refusal("overlap.split", self.split, rule, legal))
        once = tuple(dict.fromkeys(self.split))
        if once != self.split:
            rule = "must name a pair once"
            raise ConfigError(refusal("overlap.split", self.split, rule, once))
        return self
