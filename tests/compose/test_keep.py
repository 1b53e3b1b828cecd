"""What a layer keeps, against the two formulas of the paper's section 2.2."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import pytest

from weft.compose import segment
from weft.compose.keep import (
    activations,
    choose,
    held_bytes,
    held_layers,
    kept_bytes,
    rematerialised,
)
from weft.compose.plan import Plan, sizes
from weft.compose.recipe import shape
from weft.compose.segment import Segment
from weft.compose.step import owned_parameters, training_step
from weft.config.presets import PRESETS
from weft.errors import ConfigError
from weft.model.families import Kind
from weft.parallel.layout import Dispatch, Layout
from weft.testing import models

N = 8  # ranks of the paper's node
PAPER = (
    "internal-352b",
    "mixtral-8x7b",
    "mixtral-8x22b",
    "hunyuan-large",
    "phi-3.5-moe",
    "deepseekmoe",
)
MODEL = pytest.mark.parametrize("name", PAPER)
WEIGHTS = ("norm1", "qkv", "out", "norm2", "router", "up", "down")

# Figure 9: the paper's tensors as outputs of our operators, in the order of its table.
TENSORS = {
    "hidden": ("x",),
    "ln1_out": ("rms_norm.y",),
    "qkv": ("qkv_project.qkv",),
    "q_rope, k_rope": ("rotate.q", "rotate.k"),
    "qkv_a2a": ("all_to_all.y",),
    "attn": ("attention.a",),
    "attn_a2a": ("all_to_all_2.y",),
    "attn_out": ("project.y",),
    "ln2_in": ("add_rms_norm.s",),
    "ln2_out": ("add_rms_norm.y",),
    "ln2_out_ag": ("all_gather.y",),
    "ffn_in": ("permute.rows",),
    "fc1_out, fc3_out": ("expert_up.u",),
    "fc2_in": ("swiglu.s",),
    "fc2_out": ("expert_down.d",),
    "fc2_out_rs": ("gather_sum.z",),
    "ffn_out": ("reduce_scatter.y",),
    "hidden of the next layer": ("add.z",),
}
KEPT = ("hidden", "qkv_a2a", "attn", "ln2_in", "fc1_out, fc3_out")
NOT_IN_THE_FORMULA = {  # paper 2.2: needed too
    "lse", "logits", "total_2", "experts", "order", "ends", "slot_row", "row_weights",
}  # fmt: skip


def plan(name: str, dispatch: Dispatch = Dispatch.ALL_GATHER, **changes: int) -> Plan:
    model = replace(shape(PRESETS[name]()), shared_experts=0, **changes)
    made = models.plan(models.mixtral_like(), Layout(sp=N, ep=N, dispatch=dispatch))
    return replace(made, shape=model, sequence=8192, micro_batch=1, precision="bfloat16")


def layer(made: Plan) -> Segment:
    return segment.layer(made, Kind.MOE, WEIGHTS)


def named(made: Segment) -> Mapping[str, str]:
    """Our values by `task.port`."""
    found = {
        f"{task.name}.{port.name}": value
        for task in made.forward.tasks
        for port, value in zip(task.op.outputs, task.outputs, strict=True)
    }
    return {**found, "x": "x"}


def in_units(made: Plan, weights: Mapping[str, int]) -> Fraction:
    """Bytes in units of one hidden state of this rank, b s h / n."""
    n = sizes(made)
    return Fraction(sum(weights.values()), n.T * n.D * 2)


def numbers(made: Plan) -> tuple[Fraction, Fraction, Fraction]:
    s = made.shape
    return Fraction(s.top_k), Fraction(s.ffn_hidden, s.hidden), Fraction(s.heads, s.kv_heads)


@MODEL
def test_every_activation_weighs_the_first_formula(name):
    made = plan(name)
    k, f, m = numbers(made)
    forward = layer(made).forward
    total = in_units(made, kept_bytes(made, forward, activations(forward)))
    assert total == 2 * N + 2 * k + 3 * k * f + 12 + 5 / m


@MODEL
def test_every_activation_is_a_tensor_of_figure_9(name):
    made = layer(plan(name))
    tensors = [value for tensor in TENSORS.values() for value in tensor]
    assert set(activations(made.forward)) == {named(made)[value] for value in tensors}
    assert len(TENSORS) == 18


@MODEL
def test_the_selective_set_weighs_the_second_formula(name):
    made = plan(name)
    k, f, m = numbers(made)
    chosen = choose(made, layer(made), "selective")
    assert chosen.kept >= NOT_IN_THE_FORMULA
    kept = ("x", *(chosen.kept - NOT_IN_THE_FORMULA))
    assert in_units(made, kept_bytes(made, layer(made).forward, kept)) == 2 * k * f + 4 + 2 / m


@MODEL
def test_the_default_weighs_norms_rows_and_gated_rows_more(name):
    made = plan(name)
    k, f, m = numbers(made)
    whole = layer(made)
    kept = ("x", *({*whole.forward.kept} - NOT_IN_THE_FORMULA - {"rstd", "rstd_2"}))
    selective = 2 * k * f + 4 + 2 / m
    assert in_units(made, kept_bytes(made, whole.forward, kept)) == selective + k * f + k + 3


@MODEL
def test_the_selective_set_is_that_of_the_paper_by_name(name):
    made = plan(name)
    whole = layer(made)
    kept = {named(whole)[value] for tensor in KEPT for value in TENSORS[tensor]}
    arrived = {named(whole)[f"split_heads.{port}"] for port in "qkv"}  # views of what arrived
    expected = kept - {named(whole)["all_to_all.y"], "x"} | arrived
    assert choose(made, whole, "selective").kept - NOT_IN_THE_FORMULA == expected


@MODEL
def test_no_product_and_no_attention_runs_again_selectively(name):
    made = replace(plan(name), remat="selective")
    backward = rematerialised(made, {Kind.MOE: layer(made)})[Kind.MOE].backward
    assert backward is not None
    bodies = {task.body for task in backward.tasks if not task.phase}
    assert bodies == {
        "all_gather", "all_to_all", "join_heads", "permute", "rms_norm", "swiglu", "add",
        "reduce_scatter", "reduce_scatter_weights",
    }  # fmt: skip


def test_the_default_saves_a_third_and_the_selective_set_two():
    made = plan("mixtral-8x7b")
    whole = layer(made)
    every = in_units(made, kept_bytes(made, whole.forward, activations(whole.forward)))
    default = in_units(made, held_bytes(made, whole))
    chosen = rematerialised(replace(made, remat="selective"), {Kind.MOE: whole})[Kind.MOE]
    selective = in_units(made, held_bytes(made, chosen))
    assert every == Fraction(217, 4)
    assert float(default) == pytest.approx(30.54, abs=0.01)
    assert float(selective) == pytest.approx(18.54, abs=0.01)


def test_a_full_backward_starts_from_the_input_and_the_routing():
    made = plan("mixtral-8x7b")
    kept = choose(made, layer(made), "full").kept
    assert kept == {"order", "ends", "slot_row", "row_weights", "experts", "total_2"}


def test_with_norms_on_heads_the_projection_is_kept_instead_of_what_travelled():
    model = replace(models.plan(models.qwen3_like(), Layout(sp=2, ep=2)), precision="bfloat16")
    names = (*WEIGHTS, "q_norm", "k_norm")
    chosen = choose(model, segment.layer(model, Kind.MOE, names), "selective")
    assert "qkv" in chosen.kept
    assert {"q_2", "k_2", "v_2"} <= chosen.again


@pytest.mark.parametrize("share", [0.4, 0.6, 0.75, 0.9, 1.0])
def test_auto_fits_its_memory_and_more_memory_costs_no_more(share):
    made = plan("mixtral-8x7b", layers=4)
    whole = layer(made)
    everything = sum(held_bytes(made, whole).values()) * 4
    tight = replace(made, remat="auto", memory=round(share * everything))
    found = rematerialised(tight, {Kind.MOE: whole})[Kind.MOE]
    assert 4 * sum(held_bytes(made, found).values()) <= tight.memory
    roomier = replace(tight, memory=everything)
    assert choose(roomier, whole, "auto").work <= choose(tight, whole, "auto").work


def test_too_little_memory_names_the_least():
    made = replace(plan("mixtral-8x7b", layers=2), remat="auto", memory=1000)
    with pytest.raises(
        ConfigError, match=r"memory = 1000: too little .* overlap.memory = (\d+)$"
    ) as e:
        rematerialised(made, {Kind.MOE: layer(made)})
    enough = replace(made, memory=int(str(e.value).rpartition(" ")[2]))
    rematerialised(enough, {Kind.MOE: layer(made)})


def test_values_may_be_named():
    made = replace(plan("mixtral-8x7b"), remat=("s_2",))
    found = rematerialised(made, {Kind.MOE: layer(made)})[Kind.MOE]
    assert set(layer(made).forward.kept) - set(found.forward.kept) == {"s_2"}


def test_a_name_that_no_layer_knows_is_refused():
    made = replace(plan("mixtral-8x7b"), remat=("s_9",))
    with pytest.raises(ConfigError, match=r"remat: found the value 's_9', .* legal ones: .*s_2"):
        rematerialised(made, {Kind.MOE: layer(made)})


def test_every_kind_of_layer_keeps_less_and_reads_what_it_kept():
    made = models.plan(models.deepseek_like(), Layout(sp=2, ep=2))
    plain = training_step(made).templates
    found = training_step(replace(made, remat="selective")).templates
    for kind in ("dense", "shared_moe"):
        assert len(found[f"{kind}.forward"].program.kept) < len(
            plain[f"{kind}.forward"].program.kept
        )
        kept = found[f"{kind}.forward"].program.kept
        assert set(kept) <= set(found[f"{kind}.backward"].program.inputs)
    assert owned_parameters(made) == owned_parameters(replace(made, remat="selective"))


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, 2),
        ({"merge": True}, 3),
        ({"layout": Layout(pp=2)}, 2),
        ({"layout": Layout(pp=2), "rank": 1}, 1),
    ],
)
def test_layers_are_held_by_micro_batches_in_flight(changes, layers):
    made = replace(models.plan(models.mixtral_like()), **changes)
    assert held_layers(made) == layers
