"""Every branch is strict, frozen and closed, and every complaint ends in something legal."""

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from weft.config.branch import Branch, closest_name, divisors, listing, nearest, refusal, written
from weft.config.data import DataConfig
from weft.config.model import ModelConfig
from weft.config.optim import OptimConfig
from weft.config.overlap import OverlapConfig
from weft.config.parallel import ParallelConfig
from weft.config.run import RunConfig
from weft.config.train import TrainConfig
from weft.errors import ConfigError

BRANCHES = [
    ModelConfig,
    ParallelConfig,
    OverlapConfig,
    DataConfig,
    OptimConfig,
    TrainConfig,
    RunConfig,
]


class Loom(Branch):
    section: ClassVar[str] = "loom"

    threads: int = Field(ge=2, examples=[8], description="the number of threads")
    tension: float = 1.0
    name: str = "loom"


def test_a_problem_names_key_value_rule_and_a_legal_neighbour() -> None:
    with pytest.raises(ConfigError) as caught:
        Loom(threads=1)
    expected = "loom.threads = 1: must be at least 2; nearest legal value: loom.threads = 2"
    assert str(caught.value) == expected


def test_every_problem_of_a_branch_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match="3 problems") as caught:
        Loom.model_validate({"tension": "slack", "nane": "x"})
    text = str(caught.value)
    assert "loom.threads: missing; it needs the number of threads" in text
    assert 'loom.tension = "slack": must be a number' in text
    assert "loom.nane: unknown key; nearest legal key: loom.name" in text


@pytest.mark.parametrize(
    ("found", "legal"), [(3.0, "3"), ("12", "12"), ("many", "8"), (True, "8"), (None, "8")]
)
def test_a_value_of_the_wrong_type_is_refused_with_what_was_meant(
    found: object, legal: str
) -> None:
    with pytest.raises(
        ConfigError, match=rf"must be an integer; nearest legal value: loom.threads = {legal}$"
    ):
        Loom.model_validate({"threads": found})


@pytest.mark.parametrize("found", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused(found: float) -> None:
    with pytest.raises(ConfigError, match="must be a finite number"):
        Loom(threads=2, tension=found)


def test_a_branch_that_is_no_table_is_refused_with_its_keys() -> None:
    with pytest.raises(
        ConfigError, match="loom = 3: must be a table with the keys threads, tension, name"
    ):
        Loom.model_validate(3)


def test_a_branch_cannot_be_changed_in_place() -> None:
    loom = Loom(threads=2)
    with pytest.raises(ValidationError, match="frozen"):
        loom.threads = 3  # pyright: ignore[reportAttributeAccessIssue]  # the point of the test


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda branch: branch.__name__)
def test_every_field_says_what_it_means_and_has_a_legal_sample(branch: type[Branch]) -> None:
    for name, field in branch.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Branch):
            continue
        assert field.description, f"{branch.__name__}.{name} has no description"
        has_sample = field.examples or (not field.is_required() and field.default is not None)
        assert has_sample, f"{branch.__name__}.{name} has neither a default nor an example"


@given(st.integers(1, 3000))
def test_divisors_are_all_and_only_the_divisors(number: int) -> None:
    assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]


def test_nearest_takes_the_smaller_of_two_at_equal_distance() -> None:
    assert nearest(3, [8, 4, 2]) == 2


def test_a_name_that_resembles_nothing_has_no_neighbour() -> None:
    assert closest_name("xyzzy", ["hidden", "heads"]) is None
    assert closest_name("xyzzy", ["hidden", "heads"], resemblance=0.0)


def test_values_are_written_as_a_recipe_writes_them_and_stay_on_one_line() -> None:
    assert [written(v) for v in (True, "a", 1.5, [1])] == ["true", '"a"', "1.5", "a table or list"]
    assert len(written("a" * 1000)) <= 60
    assert len(written(-(10**6000))) <= 60  # more digits than Python agrees to print


def test_one_problem_stands_alone_and_several_are_a_list() -> None:
    assert listing(["a"]) == "a"
    assert listing(["a", "b"]) == "2 problems:\n  - a\n  - b"
    assert refusal("a.b", 1, "must be even", 2).endswith("nearest legal value: a.b = 2")
