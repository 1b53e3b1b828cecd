import numpy as np
import pytest

from weft.data.batches import IGNORED
from weft.model.families import Kind
from weft.testing import models

SEEDS = pytest.mark.parametrize("seed", range(20))


def test_every_kind_of_layer_has_a_model():
    found = [m.shape for m in (*models.FAMILIES.values(), *models.VARIANTS.values())]
    kinds = {shape.kind(i) for shape in found for i in range(shape.layers)}
    assert kinds == set(Kind)


def test_every_option_of_the_router_and_the_head_has_a_model():
    found = models.FAMILIES.values()
    assert {m.arithmetic.score for m in found} == {"softmax", "sigmoid"}
    assert {m.shape.tied for m in found} == {m.shape.qk_norm for m in found} == {True, False}


@SEEDS
def test_positions_restart_with_each_document_and_no_document_crosses_a_sample(seed):
    batch = models.micro_batch(61, seed=(seed,))
    starts = np.flatnonzero(batch.positions == 0).tolist()
    assert starts == [0, *batch.ends[:-1]]
    assert batch.ends[-1] == len(batch.tokens) == 32
    assert models.SEQUENCE in batch.ends


@SEEDS
def test_targets_are_tokens_or_ignored(seed):
    batch = models.micro_batch(61, seed=(seed,))
    valid = batch.targets[batch.targets != IGNORED]
    assert 0 < len(valid) <= 32
    assert valid.min() >= 0
    assert valid.max() < 61


def test_steps_and_micro_batches_differ():
    one, two = (models.batches(models.mixtral_like(), step) for step in (1, 2))
    streams = [tuple(batch.tokens) for batch in (*one, *two)]
    assert len(set(streams)) == 2 * models.MICRO_BATCHES


def test_a_changed_shape_leaves_the_model_alone():
    model = models.mixtral_like()
    assert model.with_shape(layers=5).shape.layers == 5
    assert model.shape.layers == 2
