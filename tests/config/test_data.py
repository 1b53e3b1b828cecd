"""Text comes from one place, and a path goes with a text source only."""

import pytest

from weft.config.data import DataConfig, components
from weft.errors import ConfigError


def test_the_standard_library_needs_no_path() -> None:
    assert DataConfig(sequence=128).source == "stdlib"


@pytest.mark.parametrize("path", [None, ""])
def test_a_text_source_without_a_path_is_refused(path: str | None) -> None:
    with pytest.raises(
        ConfigError, match=r'data.path: missing.*for instance data.path = "corpus/"'
    ):
        DataConfig(source="text", path=path, sequence=128)


def test_a_path_that_nothing_would_read_is_refused() -> None:
    with pytest.raises(ConfigError, match='nearest legal value: data.source = "text"'):
        DataConfig(path="corpus/", sequence=128)


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match="data.sequence = 0: must be at least 1"):
        DataConfig(sequence=0)


def test_a_mixture_has_components_of_its_own() -> None:
    mix = [{"path": "a/", "weight": 2.0}, {"source": "stdlib", "weight": 1.0}]
    config = DataConfig.model_validate({"mix": mix, "sequence": 8})
    assert [(part.source, part.weight) for part in components(config)] == [
        ("text", 2.0),
        ("stdlib", 1.0),
    ]
    with pytest.raises(ConfigError, match="each component has a source of its own"):
        DataConfig.model_validate({"mix": mix, "sequence": 8, "source": "text", "path": "b"})


@pytest.mark.parametrize(
    ("component", "reason"),
    [
        ({"path": "a/"}, "data.mix.weight: missing"),
        ({"path": "a/", "weight": 0.0}, "data.mix.weight = 0.0: must be greater than 0"),
        ({"weight": 1.0}, "data.mix.path: missing"),
        ({"path": "a", "weight": 1.0, "wieght": 2.0}, "nearest legal key: data.mix.weight"),
        ({"path": "a", "weight": 1.0, "source": "tex"}, 'nearest legal value: .* = "text"'),
    ],
)
def test_a_bad_component_is_refused_by_its_key(component: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        DataConfig.model_validate({"mix": [component], "sequence": 8})


def test_one_source_is_a_mixture_of_one() -> None:
    (alone,) = components(DataConfig(source="jsonl", path="a", text_field="body", sequence=8))
    assert (alone.source, alone.path, alone.text_field) == ("jsonl", "a", "body")


def test_a_prompt_needs_an_answer() -> None:
    with pytest.raises(ConfigError, match='for instance data.answer_field = "answer"'):
        DataConfig(source="jsonl", path="a", prompt_field="q", sequence=8)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="data.on_bad"):
        DataConfig.model_validate({"on_bad": "ignore", "sequence": 8})
