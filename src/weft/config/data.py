"""The `[data]` branch: which text, as which tokens, cut into which sequences.

source = "jsonl"                         one source, or several in proportion:
path = "corpus/"                         mix = [{source = "text", path = "a/", weight = 2.0},
                                                {source = "prepared", path = "b/", weight = 1.0}]
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from weft.config.branch import Branch, Positive, Size, as_tuple, refusal, written
from weft.errors import ConfigError

Source = Literal["stdlib", "text", "jsonl", "parquet", "hugging_face", "megatron", "prepared"]

SourceField = Annotated[Source, Field(description="where text comes from")]
Path = Annotated[
    str | None, Field(examples=["corpus/"], description="the file or folder of a source")
]
TextField = Annotated[str, Field(description="the field of a record that holds its text")]
PromptField = Annotated[
    str | None, Field(examples=["prompt"], description="the field of what is read, not learned")
]
AnswerField = Annotated[
    str | None, Field(examples=["answer"], description="the field of what is learned")
]


class MixConfig(Branch):
    """One component of a mixture, and how many samples it gives against the others.

    Raises:
        ConfigError: a value is outside its range, or `path` does not go with `source`.
    """

    section: ClassVar[str] = "data.mix"

    source: SourceField = "text"
    path: Path = None
    weight: Positive = Field(examples=[1.0], description="the share, against the other weights")
    text_field: TextField = "text"
    prompt_field: PromptField = None
    answer_field: AnswerField = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_source(self)
        return self


class DataConfig(Branch):
    """The corpus: the interpreter's own library source, what the user has, or a mixture.

    Raises:
        ConfigError: a value is outside its range, or `path` does not go with `source`.
    """

    section: ClassVar[str] = "data"

    source: SourceField = "stdlib"
    path: Path = None
    text_field: TextField = "text"
    prompt_field: PromptField = None
    answer_field: AnswerField = None
    mix: Annotated[tuple[MixConfig, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="several sources in proportion, instead of one"
    )
    tokenizer: Annotated[str, Field(min_length=1)] = Field(
        default="bytes", description='"bytes", or the path of a tokenizer.json'
    )
    on_bad: Literal["stop", "skip"] = Field(
        default="stop", description="what to do with a document that cannot be read"
    )
    packing: Literal["auto", "stream", "whole"] = Field(
        default="auto",
        description="whether samples cut documents, or leave them whole; auto: those with a prompt",
    )
    sequence: Size = Field(examples=[256], description="the positions of a sequence")
    validation_bytes: Size = Field(
        default=131072,  # 128 KiB: steady to about 0.01 nats for bytes, and seconds to evaluate
        description="the bytes kept apart for evaluation",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.mix:
            _check_source(self)
        elif self.source != "stdlib" or self.path is not None:
            raise ConfigError(
                f"data.mix: stands beside data.source = {written(self.source)}, and each component "
                "has a source of its own; leave out data.source and data.path"
            )
        return self


def components(data: DataConfig) -> tuple[MixConfig, ...]:
    """The sources of a recipe: those of its mixture, or the one it has.

    Example:
        >>> [part.source for part in components(DataConfig(sequence=8))]
        ['stdlib']
    """
    if data.mix:
        return data.mix
    alone = MixConfig(
        source=data.source,
        path=data.path,
        weight=1.0,
        text_field=data.text_field,
        prompt_field=data.prompt_field,
        answer_field=data.answer_field,
    )
    return (alone,)


def _check_source(config: MixConfig | DataConfig) -> None:
    section, source = config.section, config.source
    if source == "stdlib" and config.path is not None:
        rule = f"reads the library, not {section}.path ({written(config.path)})"
        raise ConfigError(refusal(f"{section}.source", source, rule, "text"))
    if source != "stdlib" and not config.path:
        raise ConfigError(
            f"{section}.path: missing; {section}.source = {written(source)} needs the file or "
            f'folder to read; for instance {section}.path = "corpus/"'
        )
    if (config.prompt_field is None) != (config.answer_field is None):
        lacking = "answer" if config.answer_field is None else "prompt"
        raise ConfigError(
            f"{section}.{lacking}_field: missing; a prompt and an answer come together; for "
            f'instance {section}.{lacking}_field = "{lacking}"'
        )
