"""A run's numbers are positive, and its choices closed."""

from typing import Any

import pytest

from weft.config.train import TrainConfig
from weft.errors import ConfigError

LEGAL: dict[str, Any] = {
    "steps": 10,
    "global_batch": 4,
    "micro_batch": 2,
    "eval_every": 5,
    "checkpoint_every": 5,
}


@pytest.mark.parametrize(
    "key", ["steps", "global_batch", "micro_batch", "eval_every", "log_every", "threads"]
)
def test_a_count_of_zero_is_refused(key: str) -> None:
    with pytest.raises(
        ConfigError, match=f"train.{key} = 0: .*nearest legal value: train.{key} = 1"
    ):
        TrainConfig.model_validate({**LEGAL, key: 0})


def test_a_run_may_write_no_checkpoints_but_not_fewer() -> None:
    assert TrainConfig.model_validate({**LEGAL, "checkpoint_every": 0}).checkpoint_every == 0
    with pytest.raises(ConfigError, match="nearest legal value: train.checkpoint_every = 0"):
        TrainConfig.model_validate({**LEGAL, "checkpoint_every": -1})


@pytest.mark.parametrize(
    ("key", "found", "meant"),
    [
        ("precision", "bf16", "bfloat16"),
        ("precision", "fp32", "float32"),
        ("precision", "fp64", "float64"),
        ("device", "cuda:0", "cuda"),
    ],
)
def test_a_choice_is_told_the_one_that_was_meant(key: str, found: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f'nearest legal value: train.{key} = "{meant}"$'):
        TrainConfig.model_validate({**LEGAL, key: found})


def test_a_seed_fills_63_bits_and_no_more() -> None:
    assert TrainConfig(**LEGAL, seed=2**63 - 1).seed == 2**63 - 1
    with pytest.raises(ConfigError, match="train.seed"):
        TrainConfig(**LEGAL, seed=2**63)


def test_an_empty_run_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="train.run_dir"):
        TrainConfig(**LEGAL, run_dir="")


@pytest.mark.parametrize("keep", [0, 1])
def test_fewer_than_two_checkpoints_are_refused(keep: int) -> None:
    with pytest.raises(ConfigError, match=r"must be at least 2; nearest .*: train.keep = 2"):
        TrainConfig.model_validate({**LEGAL, "keep": keep})
