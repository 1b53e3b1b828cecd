from weft.model.families import LAYERS, Kind
from weft.testing.models import FAMILIES


def test_every_kind_has_a_layer_function():
    assert LAYERS.keys() == set(Kind)


def test_without_shared_experts_every_layer_is_routed():
    shape = FAMILIES["mixtral"].shape
    assert {shape.kind(i) for i in range(shape.layers)} == {Kind.MOE}


def test_dense_layers_lead():
    shape = FAMILIES["deepseek"].shape
    assert [shape.kind(i) for i in range(3)] == [Kind.DENSE, Kind.SHARED_MOE, Kind.SHARED_MOE]


def test_columns_follow_the_heads():
    shape = FAMILIES["mixtral"].shape
    assert shape.attention_columns == 4 * 6
    assert shape.qkv_columns == (4 + 2 * 2) * 6


def test_shared_experts_are_one_wide_feed_forward():
    shape = FAMILIES["deepseek"].shape
    assert shape.shared_hidden == 2 * shape.ffn_hidden
