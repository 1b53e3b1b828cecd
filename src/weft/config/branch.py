"""What every branch of a recipe shares: strictness, and errors that say how to repair them.

An error has one line a problem, always in one form, so that people and tests read it alike:

    parallel.sp = 3: must divide model.heads (32); nearest legal value: parallel.sp = 4

The part after the last colon is a legal assignment: it can be pasted behind `--set`.
"""

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from weft.errors import ConfigError

INDEX_LIMIT = 2**31 - 1  # kernels index rows and columns with 32 bits

Size = Annotated[int, Field(ge=1, le=INDEX_LIMIT)]
Count = Annotated[int, Field(ge=0, le=INDEX_LIMIT)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Branch(BaseModel):
    """One branch of a recipe: frozen, strict, and closed to unknown keys.

    Raises:
        ConfigError: a key is unknown or missing, or a value breaks a rule; all of them are listed.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    section: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            problems = [_problem(cls, detail) for detail in error.errors(include_url=False)]
            raise ConfigError(listing(problems)) from None


def as_tuple(value: Any) -> Any:
    """A list, which is what TOML has, as what a frozen recipe keeps."""
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


def listing(problems: list[str]) -> str:
    """One problem as it is, several as a list."""
    if len(problems) == 1:
        return problems[0]
    return "\n  - ".join((f"{len(problems)} problems:", *problems))


def refusal(key: str, value: object, rule: str, legal: object) -> str:
    """The text of a broken rule: where, what was found, the rule, the nearest value that obeys it.

    Example:
        >>> refusal("parallel.sp", 3, "must divide model.heads (32)", 4)
        'parallel.sp = 3: must divide model.heads (32); nearest legal value: parallel.sp = 4'
    """
    return f"{key} = {written(value)}: {rule}; nearest legal value: {key} = {written(legal)}"


def nearest(value: int, legal: Iterable[int]) -> int:
    """The legal number closest to a value, the smaller one of two at equal distance.

    Example:
        >>> nearest(3, [1, 2, 4, 8])
        2
    """
    return min(legal, key=lambda candidate: (abs(candidate - value), candidate))


def divisors(number: int) -> list[int]:
    """Every divisor of a positive number, ascending.

    Example:
        >>> divisors(12)
        [1, 2, 3, 4, 6, 12]
    """
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})


def closest_name(name: str, names: Iterable[str], *, resemblance: float = 0.6) -> str | None:
    """The name a person most likely meant, or None where nothing resembles it.

    0.6 is difflib's own threshold.

    Example:
        >>> closest_name("hiden", ["hidden", "heads"])
        'hidden'
    """
    matches = get_close_matches(name, list(names), n=1, cutoff=resemblance)
    return matches[0] if matches else None


def written(value: object) -> str:
    """A value as a recipe writes it, shortened where it is long.

    Example:
        >>> written("a"), written(True), written(0.5)
        ('"a"', 'true', '0.5')
    """
    text = _written(value)
    longest = 60  # keeps a problem on one line of a terminal
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        quoted = json.dumps(value, ensure_ascii=False)
        return quoted.encode("utf-8", "backslashreplace").decode()  # what no terminal could print
    if isinstance(value, int) and value.bit_length() > 128:  # Python prints no endless integers
        return f"{'-' if value < 0 else ''}2^{value.bit_length() - 1} or so"
    if isinstance(value, tuple):
        items = cast("tuple[object, ...]", value)
        return f"[{', '.join(map(_written, items))}]"
    return repr(value) if not isinstance(value, (dict, list)) else "a table or list"


def join(section: str, key: str) -> str:
    """A key under a branch, as `--set` takes it."""
    return f"{section}.{key}" if section else key


def _problem(branch: type[Branch], detail: ErrorDetails) -> str:
    """One pydantic complaint in our own words."""
    if not detail["loc"]:
        return (
            f"{branch.section or 'the recipe'} = {written(detail['input'])}: must be a table "
            f"with the keys {', '.join(branch.model_fields)}"
        )
    name = str(detail["loc"][0])
    key = join(branch.section, name)
    if detail["type"] == "extra_forbidden":
        return _unknown(branch, name)
    if detail["type"] == "missing":
        meaning, example = _meaning(branch, name), _example(branch, name)
        return f"{key}: missing; it needs {meaning}; for instance {example}"
    rule, legal = _rule(branch, name, detail)
    return refusal(key, detail["input"], rule, legal)


def _unknown(branch: type[Branch], name: str) -> str:
    """An unknown key, with the key that was meant: here, or in a branch below."""
    key = join(branch.section, name)
    below = {
        field: join(child.section, field)
        for child in _children(branch).values()
        for field in child.model_fields
    }
    here = {field: join(branch.section, field) for field in branch.model_fields}
    known = {**below, **here}
    meant = closest_name(name, known)
    if meant:
        return f"{key}: unknown key; nearest legal key: {known[meant]}"
    return f"{key}: unknown key; legal keys: {', '.join(here.values())}"


def _children(branch: type[Branch]) -> Mapping[str, type[Branch]]:
    kinds = {name: field.annotation for name, field in branch.model_fields.items()}
    return {n: k for n, k in kinds.items() if isinstance(k, type) and issubclass(k, Branch)}


def _meaning(branch: type[Branch], name: str) -> str:
    if name in _children(branch):
        return "a table"
    return branch.model_fields[name].description or "a value"


def _example(branch: type[Branch], name: str) -> str:
    child = _children(branch).get(name)
    if child is not None:
        return f"[{child.section}] with the keys {', '.join(child.model_fields)}"
    return f"{join(branch.section, name)} = {written(_sample(branch, name))}"


def _sample(branch: type[Branch], name: str) -> object:
    """A legal value of a field: its default, or the example beside it."""
    field = branch.model_fields[name]
    if field.is_required() or field.default is None:
        assert field.examples, f"{branch.__name__}.{name} needs an example"
        return field.examples[0]
    return field.default


_NOUNS = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "string_unicode": "a string of valid characters",
    "bool_type": "true or false",
}


def _rule(branch: type[Branch], name: str, detail: ErrorDetails) -> tuple[str, object]:
    """The rule a value broke, and the nearest value that obeys it."""
    found, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "greater_than_equal":
            return f"must be at least {context['ge']}", context["ge"]
        case "less_than_equal":
            return f"must be at most {context['le']}", context["le"]
        case "greater_than":
            return f"must be greater than {context['gt']}", _sample(branch, name)
        case "less_than":
            return f"must be less than {context['lt']}", _sample(branch, name)
        case "literal_error":
            choices = [c.strip("' ") for c in context["expected"].replace(" or ", ",").split(",")]
            meant = closest_name(written(found), choices, resemblance=0.0) or choices[0]
            return f"must be one of {', '.join(choices)}", meant
        case "string_pattern_mismatch":
            return f"must be {_meaning(branch, name)}", _sample(branch, name)
        case kind if kind in _NOUNS:
            return f"must be {_NOUNS[kind]}", _converted(kind, found, _sample(branch, name))
        case _:
            return f"is not allowed ({detail['msg']})", _sample(branch, name)


def _converted(kind: str, found: object, otherwise: object) -> object:
    """What was probably meant by a value of the wrong type."""
    if kind == "int_type" and isinstance(found, float) and found.is_integer():
        return int(found)
    if kind == "string_type" and isinstance(found, (int, float)) and not isinstance(found, bool):
        return written(found)
    if isinstance(found, str):
        return _parsed(kind, found.strip(), otherwise)
    return otherwise


def _parsed(kind: str, text: str, otherwise: object) -> object:
    if kind == "bool_type":
        return {"true": True, "false": False}.get(text.lower(), otherwise)
    try:
        return (
            int(text) if kind == "int_type" else float(text) if kind == "float_type" else otherwise
        )
    except ValueError:
        return otherwise
