from collections import Counter
from math import prod

import pytest

from weft.model.count import total
from weft.model.families import Shape
from weft.model.params import Cut, Init, Parameter, Residence, parameters
from weft.testing.models import FAMILIES, VARIANTS

ALL = {**FAMILIES, **VARIANTS}
SHAPES = pytest.mark.parametrize("shape", [m.shape for m in ALL.values()], ids=list(ALL))


def by_name(shape: Shape, **split: int) -> dict[str, Parameter]:
    return {p.name: p for p in parameters(shape, **split)}


@SHAPES
def test_logical_ranges_cover_each_physical_parameter_once(shape):
    for parameter in parameters(shape):
        edges = [0, *(part.stop for part in parameter.parts)]
        assert [part.start for part in parameter.parts] == edges[:-1], parameter.name
        assert edges[-1] == parameter.numel == prod(parameter.shape), parameter.name


@SHAPES
def test_logical_names_are_unique(shape):
    names = [part.name for p in parameters(shape) for part in p.parts]
    assert len(names) == len(set(names))


@SHAPES
def test_parameters_add_up_to_the_count(shape):
    assert sum(p.numel for p in parameters(shape)) == total(shape).all


@SHAPES
@pytest.mark.parametrize("ep", [2, 4, 8])
def test_expert_parallel_ranks_cut_the_experts_and_nothing_else(shape, ep):
    whole = {part.name: part.shape for p in parameters(shape) for part in p.parts}
    held: dict[str, int] = {}
    for rank in range(ep):
        for parameter in parameters(shape, ep=ep, ep_rank=rank):
            for part in parameter.parts:
                assert part.shape == whole[part.name]
                held[part.name] = held.get(part.name, 0) + 1
    assert held.keys() == whole.keys()
    assert all(n == (1 if ".experts." in name else ep) for name, n in held.items())


@SHAPES
def test_experts_and_nothing_else_live_with_their_replicas(shape):
    for parameter in parameters(shape):
        is_expert = ".experts." in parameter.parts[0].name
        assert (parameter.residence is Residence.EXPERT) == is_expert


@SHAPES
def test_norms_start_at_one_biases_at_zero_and_neither_decays(shape):
    for parameter in parameters(shape):
        is_bias = parameter.name.endswith(("bias", "offset"))
        is_norm = "norm" in parameter.name and not is_bias
        assert (parameter.init is Init.ONES) == is_norm
        assert (parameter.init is Init.ZEROS) == is_bias
        assert parameter.decays != (is_norm or is_bias or parameter.name.endswith("sinks"))


@SHAPES
def test_what_writes_into_the_residual_stream_starts_smaller(shape):
    scaled = {p.name.rpartition(".")[2] for p in parameters(shape) if p.init is Init.SCALED}
    assert scaled == {
        p.name.rpartition(".")[2] for p in parameters(shape) if p.name.endswith(("out", "down"))
    }


def test_gate_and_up_of_an_expert_lie_next_to_each_other():
    up = by_name(FAMILIES["mixtral"].shape, ep=4, ep_rank=1)["layers.0.up"]
    assert [part.name for part in up.parts] == [
        f"layers.0.experts.{e}.{half}" for e in (2, 3) for half in ("gate", "up")
    ]


def test_qkv_is_queries_then_keys_then_values():
    shape = FAMILIES["mixtral"].shape
    qkv = by_name(shape)["layers.0.qkv"]
    rows = [part.shape[0] // shape.head_dim for part in qkv.parts]
    assert rows == [shape.heads, shape.kv_heads, shape.kv_heads]


def test_a_tied_head_is_no_parameter():
    assert "head" not in by_name(FAMILIES["qwen3"].shape)
    assert "head" in by_name(FAMILIES["mixtral"].shape)


def test_only_layers_of_a_kind_have_its_parameters():
    names = by_name(FAMILIES["deepseek"].shape)
    assert "layers.0.dense_up" in names
    assert "layers.0.router" not in names
    assert "layers.1.shared_up" in names
    assert names["layers.1.shared_up"].parts[0].name == "layers.1.shared.gate"


def test_parameters_of_a_layer_know_its_kind():
    shape = FAMILIES["deepseek"].shape
    for name, parameter in by_name(shape).items():
        expected = shape.kind(int(name.split(".")[1])) if name.startswith("layers.") else None
        assert parameter.kind == expected


def held_elements(shape: Shape, cut: Cut) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for parameter in parameters(shape, attention=cut, ffn=cut):
        for part in parameter.parts:
            found.setdefault(part.name, []).extend(i for run in part.runs() for i in run)
    return found


@SHAPES
@pytest.mark.parametrize("degree", [2, 4])
def test_slices_cover_what_is_cut_once_and_the_rest_on_every_rank(shape, degree):
    whole = {part.name: part.shape for p in parameters(shape) for part in p.parts}
    ranks = [held_elements(shape, Cut(rank=r, degree=degree)) for r in range(degree)]
    for name, size in whole.items():
        counts = Counter(i for rank in ranks for i in rank[name])
        assert counts.keys() == set(range(prod(size))), name
        assert len(set(counts.values())) == 1, name
        last = name.rpartition(".")[2]
        shares_heads = name.endswith((".k", ".v")) and degree > shape.kv_heads
        sliced = ("q", "k", "v", "out", "gate", "up", "down", "q_bias", "k_bias", "v_bias")
        is_cut = last in sliced and not shares_heads
        assert counts[0] == (1 if is_cut else degree), name


@SHAPES
@pytest.mark.parametrize("degree", [2, 4])
def test_parts_of_a_slice_lie_end_to_end(shape, degree):
    cut = Cut(rank=degree - 1, degree=degree)
    for parameter in parameters(shape, attention=cut, ffn=cut):
        edges = [0, *(part.stop for part in parameter.parts)]
        assert [part.start for part in parameter.parts] == edges[:-1], parameter.name
        assert edges[-1] == parameter.numel == prod(parameter.shape), parameter.name
        for part in parameter.parts:
            assert sum(map(len, part.runs())) == part.stop - part.start


def test_columns_are_one_run_a_row_and_rows_are_one():
    by = {p.name: p for p in parameters(FAMILIES["mixtral"].shape, ffn=Cut(rank=1, degree=2))}
    up, down = by["layers.0.up"].parts[0], by["layers.0.down"].parts[0]
    assert list(up.runs()) == [range(10 * 28, 20 * 28)]
    assert list(down.runs()) == [range(20 * row + 10, 20 * row + 20) for row in range(28)]
    assert down.label == "layers.0.experts.0.down[0:28, 10:20]"
