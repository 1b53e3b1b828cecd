"""The models of the matrix have what a layout could break."""

from pathlib import Path

import pytest

from weft.testing.matrix.model import EXPERTS, MICRO_BATCHES, MODELS, recipe

LOSSES = ("aux_coef", "z_coef", "device_coef", "sequence_coef", "global_coef", "bias_rate")


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_every_loss_of_load(tmp_path: Path, model: str) -> None:
    made = recipe(tmp_path, model).model
    assert all(getattr(made, name) > 0 for name in LOSSES)
    assert made.experts == EXPERTS
    assert made.dense_layers < made.layers


def test_overrides_come_last(tmp_path: Path) -> None:
    assert recipe(tmp_path, "deep", "model.layers=5").model.layers == 5


def test_a_step_has_a_micro_batch_for_every_replica(tmp_path: Path) -> None:
    train = recipe(tmp_path, "moe").train
    assert train.global_batch == MICRO_BATCHES * train.micro_batch
