"""Text comes from one place, and a path goes with a text source only."""

import pytest

from weft.config.data import DataConfig
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
