"""The `[data]` branch: which text, cut into which sequences."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from weft.config.branch import Branch, Size, refusal, written
from weft.errors import ConfigError


class DataConfig(Branch):
    """The corpus: the interpreter's own library source, or text files of the user's.

    Raises:
        ConfigError: a value is outside its range, or `path` does not go with `source`.
    """

    section: ClassVar[str] = "data"

    source: Literal["stdlib", "text"] = Field(default="stdlib", description="where text comes from")
    path: str | None = Field(
        default=None, examples=["corpus/"], description="the file or folder of a text source"
    )
    sequence: Size = Field(examples=[256], description="the positions of a sequence")
    validation_bytes: Size = Field(
        default=131072,  # 128 KiB: steady to about 0.01 nats for bytes, and seconds to evaluate
        description="the bytes kept apart for evaluation",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source == "text" and not self.path:
            raise ConfigError(
                'data.path: missing; data.source = "text" needs the file or folder to read; '
                'for instance data.path = "corpus/"'
            )
        if self.source == "stdlib" and self.path is not None:
            rule = f"reads the library, not data.path ({written(self.path)})"
            raise ConfigError(refusal("data.source", self.source, rule, "text"))
        return self
