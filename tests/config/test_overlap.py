"""Overlap is on unless a recipe says otherwise."""

from pathlib import Path

import pytest

from weft.config.load import dump, load
from weft.config.overlap import OverlapConfig
from weft.errors import ConfigError

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.toml"


def test_overlap_is_the_default() -> None:
    assert OverlapConfig().order == "overlapped"


def test_an_unknown_order_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match='overlap.order = "serial"$'):
        OverlapConfig.model_validate({"order": "sequential"})


@pytest.mark.parametrize("remat", ["none", "selective", "full"])
def test_a_policy_is_taken_by_name(remat: str) -> None:
    assert OverlapConfig.model_validate({"remat": remat}).remat == remat


def test_values_are_taken_as_a_list() -> None:
    assert OverlapConfig.model_validate({"remat": ["y", "s_2"]}).remat == ("y", "s_2")


def test_pairs_are_taken_as_a_list_and_none_is_the_default() -> None:
    assert OverlapConfig.model_validate({"split": ["qkv", "out"]}).split == ("qkv", "out")
    assert (OverlapConfig().split, OverlapConfig().chunks) == ((), 2)


def test_a_list_of_values_is_written_as_it_was_read() -> None:
    config = load(QUICKSTART, ['overlap.remat=["y", "s_2"]'])
    assert 'remat = ["y", "s_2"]' in dump(config)


@pytest.mark.parametrize(
    ("branch", "message"),
    [
        ({"remat": "selectiv"}, 'or a list of values; .* overlap.remat = "selective"$'),
        ({"remat": "auto"}, 'memory = 0: must be given with overlap.remat = "auto"'),
        ({"remat": "full", "memory": 5}, "memory = 5: has no meaning .* overlap.memory = 0$"),
        ({"split": ["qvk", "out"]}, r"found 'qvk'; .* overlap.split = \[.qkv., .out.\]$"),
        ({"split": ["out", "out"]}, r"a pair once; .* overlap.split = \[.out.\]$"),
        ({"split": ["out"], "chunks": 1}, "chunks = 1: must be at least 2"),
    ],
)
def test_what_does_not_go_together_is_refused(branch: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OverlapConfig.model_validate(branch)
