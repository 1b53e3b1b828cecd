from dataclasses import replace
from itertools import pairwise

import pytest

from weft.compose import segment
from weft.compose.instance import is_static
from weft.compose.step import owned_parameters, training_step
from weft.graph.program import verify
from weft.model.families import Kind
from weft.model.params import parameters
from weft.parallel.layout import Layout
from weft.parallel.sync import Sync, Wire
from weft.testing import models

PLAN = models.plan(models.mixtral_like())
NAMES = ("norm1", "qkv", "out", "norm2", "router", "up", "down")


def test_every_parameter_has_its_letters():
    for model in models.FAMILIES.values():
        for parameter in parameters(model.shape):
            dims = segment.DIMS[segment.short(parameter)]
            assert len(dims.split()) == len(parameter.shape), parameter.name


def test_a_layers_forward_gives_hidden_state_sums_and_choices():
    program = segment.layer(PLAN, Kind.MOE, NAMES).forward
    hidden, losses, tally, *choices = (program.values[v].dims for v in program.outputs)
    assert (hidden, losses, tally, choices) == ("T D", "2", "E", ["T k"])


def test_a_dense_layer_touches_no_statistics():
    plan = models.plan(models.deepseek_like())
    weights = ("norm1", "qkv", "out", "norm2", "dense_up", "dense_down")
    program = segment.layer(plan, Kind.DENSE, weights).forward
    assert not [name for name in program.inputs if name.startswith("s.")]


def test_evaluation_keeps_nothing_and_goes_back_nowhere():
    made = segment.layer(PLAN, Kind.MOE, NAMES, evaluate=True)
    assert made.backward is None
    assert made.forward.kept == ()


def test_a_head_in_training_gives_the_gradient_at_once():
    made = segment.head(PLAN, "head")
    assert made.backward is None
    assert "d.x" in made.forward.outputs
    assert [t.body for t in made.forward.tasks][1] == "cross_entropy.fused"


def test_a_head_in_evaluation_gives_the_loss_alone():
    program = segment.head(PLAN, "head", evaluate=True).forward
    assert [t.body for t in program.tasks] == ["rms_norm", "cross_entropy"]
    assert len(program.outputs) == 1


def test_the_gradient_of_an_embedding_is_a_sum_over_its_tokens():
    (task,) = segment.embedding(PLAN).backward.tasks
    assert task.body == "embed.wgrad"
    assert set(segment.embedding(PLAN).backward.inputs) == {"d.x", "tokens", "acc.w.embed"}


def test_an_update_squares_every_bucket_before_it_decides():
    _, owned = owned_parameters(PLAN)
    tasks = segment.update(PLAN, owned).tasks
    bodies = [task.body for task in tasks]
    count = len(owned)
    assert bodies[:count] == ["square_sum"] * count
    assert bodies[count : count + 2] == ["sum_statistics", "decide"]
    assert bodies[count + 2] == "balance_router"
    assert bodies[count + 3 :] == ["adamw", "gather_params"] * count


def test_sums_reach_an_update_in_flight_or_lie_in_shards():
    def inputs(order: str, **sync) -> tuple[set[str], tuple[str, ...]]:
        plan = replace(PLAN, order=order, layout=Layout(dp=2), sync=Sync(**sync))
        program = segment.update(plan, owned_parameters(plan)[1])
        return set(program.inputs), program.joins

    held, joins = inputs("overlapped", zero=2)
    assert "s.shard.head.dense" in held
    assert not joins
    assert "shard.head.dense" in inputs("overlapped")[1]
    assert not inputs("serial")[1]
    assert not inputs("overlapped", gradients=Wire.BF16)[1], "the last part of it is a sum"


def test_one_norm_runs_through_all_buckets():
    _, owned = owned_parameters(PLAN)
    tasks = segment.update(PLAN, owned).tasks
    sums = [task for task in tasks if task.body == "square_sum"]
    assert sums[0].inputs[1] == "s.norm2"
    assert all(b.inputs[1] == a.outputs[0] for a, b in pairwise(sums))


def test_every_update_obeys_the_one_verdict():
    _, owned = owned_parameters(PLAN)
    program = segment.update(PLAN, owned)
    verdict = next(t for t in program.tasks if t.body == "decide").outputs[0]
    assert all(t.inputs[1] == verdict for t in program.tasks if t.body == "adamw")


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize("layout", [Layout(), Layout(dp=2, sp=2, ep=4)], ids=Layout.name)
def test_every_template_is_a_program_whose_statics_have_prefixes(family, layout):
    step = training_step(models.plan(models.FAMILIES[family], layout))
    for name, ordered in step.templates.items():
        program = verify(ordered.program)
        assert program.name == name
        kinds = {program.values[v].kind for v in program.inputs if v.startswith("acc.")}
        assert kinds <= {"acc"}
        assert all(is_static(v) for v in program.inputs if v.startswith(("w.", "s.", "acc.")))
