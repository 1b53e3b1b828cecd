"""The optimizer's numbers stay inside the ranges where AdamW means something."""

import pytest

from weft.config.optim import OptimConfig
from weft.errors import ConfigError


@pytest.mark.parametrize(
    "fields",
    [
        {"lr": 0.0},
        {"lr": -1e-3},
        {"min_lr_ratio": 1.5},
        {"warmup_steps": -1},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"eps": 0.0},
        {"weight_decay": -0.1},
        {"clip_norm": 0.0},
    ],
    ids=str,
)
def test_a_number_outside_its_range_is_refused_with_one_inside(fields: dict[str, float]) -> None:
    legal = {"lr": 1e-3, "warmup_steps": 1}
    key = next(iter(fields))
    with pytest.raises(ConfigError, match=f"nearest legal value: optim.{key} = ") as caught:
        OptimConfig.model_validate({**legal, **fields})
    advised = float(str(caught.value).rpartition("= ")[2])
    OptimConfig.model_validate({**legal, key: int(advised) if key == "warmup_steps" else advised})


def test_a_schedule_without_warmup_or_decay_is_legal() -> None:
    assert OptimConfig(lr=1e-3, warmup_steps=0, min_lr_ratio=1.0, weight_decay=0.0).eps == 1e-8
