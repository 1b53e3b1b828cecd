"""A block is cut out of the layer's own program, and both its directions run."""

import json
from dataclasses import replace

import pytest

from weft.bench import block
from weft.bench.block import BLOCKS, cut, measure
from weft.bench.rig import rigged
from weft.compose.plan import sizes
from weft.compose.recipe import plan
from weft.compose.step import training_step
from weft.errors import ConfigError


@pytest.fixture
def layer(recipe):
    return training_step(plan(recipe(), 0)).templates["moe.forward"].program


def test_the_two_blocks_and_the_residual_sum_are_the_layer(layer) -> None:
    attention, experts = (cut(layer, name).forward.tasks for name in BLOCKS)
    assert [*attention, *experts, layer.tasks[-1]] == list(layer.tasks)
    assert layer.tasks[-1].op.name == "add"


def test_a_block_of_experts_reads_its_tokens_and_gives_its_sum(layer) -> None:
    found = cut(layer, "moe-layer")
    assert found.forward.tasks[0].op.name == "router_logits"
    (gradient,) = (name for name in found.backward.inputs if name.startswith("d."))
    assert found.backward.values[gradient].dims == "T D"


@pytest.mark.parametrize("name", BLOCKS)
def test_both_directions_are_timed(name, recipe, place, ceilings) -> None:
    with rigged(recipe(), place) as rig:
        found = measure(rig, name, ceilings, repeats=2)
        n = sizes(rig.plan)
    assert found.forward.ms.repeats == (4 if name == "moe-layer" else 2)
    assert found.backward.ms.repeats == 2
    assert found.backward.flops > 1.9 * found.forward.flops > 0
    assert found.forward.floor_ms > 0
    assert found.tokens == n.T
    assert name in block.render(found)
    assert json.loads(json.dumps(block.record(found)))["kept"] == found.kept


def test_a_backward_is_timed_adding_and_writing_where_it_can(recipe, place, ceilings) -> None:
    with rigged(recipe(), place) as rig:
        attention, experts = (measure(rig, name, ceilings, repeats=2) for name in BLOCKS)
        n, wide = sizes(rig.plan), replace(ceilings, product=1e30)
        bound = measure(rig, "moe-layer", wide, repeats=1)
    assert attention.first is None
    assert "first" not in block.render(attention)
    assert experts.first.ms.repeats == 2
    assert experts.first.flops == experts.backward.flops
    assert {"backward", "first"} <= block.record(experts).keys()
    read = 4 * n.L * 3 * n.F * n.D / ceilings.copy * 1e3  # what writing does not read, in ms
    assert bound.backward.floor_ms - bound.first.floor_ms == pytest.approx(read)


def test_experts_keep_their_tokens_and_what_their_products_made(recipe, place, ceilings) -> None:
    with rigged(recipe(), place) as rig:
        found = measure(rig, "moe-layer", ceilings, repeats=1)
        n = sizes(rig.plan)
    assert n.T * n.D * 4 in found.kept.values()
    assert n.R * 2 * n.F * 4 in found.kept.values()


def test_fused_operators_keep_neither_rows_nor_activations(recipe, place, ceilings) -> None:
    with rigged(recipe("kernels.fuse=all"), place) as rig:
        found = measure(rig, "moe-layer", ceilings, repeats=1)
    with rigged(recipe(), place) as rig:
        plain = measure(rig, "moe-layer", ceilings, repeats=1)
        n = sizes(rig.plan)
    assert plain.kept_bytes - found.kept_bytes == n.R * (n.D + n.F) * 4
    assert (found.forward.flops, found.backward.flops) == (
        plain.forward.flops,
        plain.backward.flops,
    )


def test_what_a_recipe_names_is_made_again(recipe, place, ceilings) -> None:
    kept = []
    for again in ("[]", '["logits"]'):
        with rigged(recipe("kernels.fuse=all", f"overlap.remat={again}"), place) as rig:
            found = measure(rig, "moe-layer", ceilings, repeats=1)
            n = sizes(rig.plan)
        kept.append(found.kept)
    plain, light = kept
    assert plain.keys() - light.keys() == {"logits"}
    assert sum(plain.values()) - sum(light.values()) == n.T * n.E * 4


def test_a_policy_of_whole_layers_is_refused(recipe, place, ceilings) -> None:
    with (
        rigged(recipe("overlap.remat=selective"), place) as rig,
        pytest.raises(ConfigError, match=r"overlap.remat = 'selective'.*try overlap.remat="),
    ):
        measure(rig, "moe-layer", ceilings, repeats=1)
