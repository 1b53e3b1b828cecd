"""A step as a sequence: every key is written before it is read, and dies with its last reader."""

from collections import Counter

import pytest
import torch

from weft.compose.first import usual_of
from weft.compose.instance import Instance, static_key
from weft.compose.step import Step, evaluation_step, named_order, training_step
from weft.errors import LayoutError
from weft.model.families import Kind
from weft.parallel.layout import Dispatch, Layout
from weft.runtime.state import allocate
from weft.schedule.action import Ordered
from weft.schedule.layer import serial
from weft.testing import models

LAYOUTS = (Layout(), Layout(dp=2, sp=2, ep=4), Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER))
FAMILY = pytest.mark.parametrize("family", models.FAMILIES)
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.name)


def step_of(family: str, layout: Layout | None = None, **fields) -> Step:
    return training_step(models.plan(models.FAMILIES[family], layout, **fields))


def given(step: Step) -> set[str]:
    """The keys that a stage puts into the environment of a step."""
    plan = step.plan
    names = ["tokens", "targets", "positions", "segments"]
    if plan.replay:
        layers = range(plan.shape.layers)
        names += [f"forced.{i}" for i in layers if plan.shape.kind(i) is not Kind.DENSE]
    micro = range(plan.local_micro_batches)
    return {"divisor", "rates", *(f"m{m}.{name}" for m in micro for name in names)}


def walk(step: Step, environment: set[str]) -> set[str]:
    """The keys that are left after every instance has read, dropped and written its own."""
    for at, instance in enumerate(step.instances):
        missing = set(instance.reads.values()) - environment
        assert not missing, f"instance {at} ({instance.template}) reads {missing}"
        environment = environment - set(instance.drops)
        again = environment & set(instance.writes.values())
        assert not again, f"instance {at} ({instance.template}) writes {again} again"
        environment |= set(instance.writes.values())
    return environment


def named(step: Step, template: str) -> list[Instance]:
    return [i for i in step.instances if i.template == template]


@FAMILY
@LAYOUT
def test_no_key_survives_a_step_but_its_results_and_the_divisor(family, layout):
    step = step_of(family, layout)
    assert walk(step, given(step)) == {*step.results, "divisor"}


@FAMILY
def test_no_key_survives_a_replayed_step(family):
    step = step_of(family, replay=True)
    assert walk(step, given(step)) == {*step.results, "divisor"}


@FAMILY
def test_no_key_survives_an_evaluation(family):
    step = evaluation_step(models.plan(models.FAMILIES[family]))
    first = {key for key in given(step) if key.startswith("m0.") or key == "divisor"}
    assert walk(step, first) == {"divisor"}


def test_recorded_choices_are_results_of_every_routed_layer():
    step = training_step(models.plan(models.deepseek_like()), record_routing=True)
    assert walk(step, given(step)) == {*step.results, "divisor"}
    choices = [name for name in step.results if ".experts." in name]
    assert choices == [f"m{m}.experts.{i}" for m in range(4) for i in (1, 2)]


@FAMILY
def test_every_input_of_a_template_comes_from_somewhere(family):
    step = step_of(family)
    for instance in step.instances:
        program = step.templates[instance.template].program
        assert {*instance.statics, *instance.reads} == set(program.inputs)
        assert set(instance.writes) <= {*program.outputs, *program.kept}


@FAMILY
@LAYOUT
def test_every_static_tensor_is_allocated(family, layout):
    step = step_of(family, layout)
    statics = allocate(step, device=torch.device("cpu")).statics
    wanted = {key for instance in step.instances for key in instance.statics.values()}
    assert wanted <= statics.keys()


@FAMILY
def test_every_gradient_is_accumulated_once_a_micro_batch(family):
    step = step_of(family)
    uses = Counter(
        key for i in step.instances for key in i.statics.values() if key.startswith("grad:")
    )
    tied = step.plan.shape.tied
    expected = {f"grad:{p.name}": step.plan.local_micro_batches for p in step.parameters}
    if tied:
        expected["grad:embed"] *= 2
    assert uses == expected


def test_a_tied_head_reads_and_accumulates_the_embedding():
    (head, *_) = named(step_of("qwen3"), "head")
    assert head.statics["w.embed"] == "param:embed"
    assert head.statics["acc.w.embed"] == "grad:embed"
    assert "w.head" not in head.statics


def test_the_head_adds_to_a_tied_embedding_before_the_embedding_does():
    step = step_of("qwen3")
    users = [i.template for i in step.instances if "grad:embed" in i.statics.values()]
    assert users == ["head", "embedding.backward"] * step.plan.local_micro_batches


def test_micro_batches_run_one_after_the_other_layers_there_and_back():
    step = step_of("deepseek")
    one = [
        "embedding.forward", "dense.forward", "shared_moe.forward", "shared_moe.forward", "head",
        "shared_moe.backward", "shared_moe.backward", "dense.backward", "embedding.backward",
    ]  # fmt: skip
    found = [usual_of(i.template) for i in step.instances if not i.template.startswith("reduce.")]
    assert found == one * 4 + ["update"]


def test_data_parallel_ranks_run_fewer_micro_batches():
    assert len(named(step_of("mixtral", Layout(dp=2)), "head")) == 2


def test_a_backward_reads_what_its_own_forward_kept():
    step = step_of("mixtral")
    forwards = [i for i in step.instances if i.template == "moe.forward"]
    backwards = [i for i in step.instances if usual_of(i.template) == "moe.backward"]
    for forward, backward in zip(forwards[:2], reversed(backwards[:2]), strict=True):
        assert forward.statics["w.qkv"] == backward.statics["w.qkv"]
        for name in step.templates["moe.forward"].program.kept:
            assert backward.reads[name] == forward.writes[name]


def test_a_template_is_shared_by_every_layer_of_its_kind():
    names = {name for name in step_of("mixtral").templates if not name.startswith("reduce.")}
    assert names == {
        "embedding.forward", "head", "update", "moe.forward", "moe.backward", "moe.backward@first",
        "embedding.backward",
    }  # fmt: skip


def test_the_order_of_a_recipe_is_the_order_of_its_templates():
    plan = models.plan(models.mixtral_like(), Layout(sp=2, ep=2), order="serial")
    program = training_step(plan).templates["moe.backward"].program
    assert named_order(plan)(program) == serial(program)


def test_any_order_may_be_given_and_is_asked_for_once_a_template():
    seen: list[str] = []

    def order(program) -> Ordered:
        seen.append(program.name)
        return serial(program)

    step = training_step(models.plan(models.mixtral_like()), order)
    assert seen == list(dict.fromkeys(map(usual_of, step.templates)))


@pytest.mark.parametrize(
    ("name", "at", "key"),
    [
        ("w.qkv", "layers.3", "param:layers.3.qkv"),
        ("w.embed", "", "param:embed"),
        ("acc.w.up", "layers.0", "grad:layers.0.up"),
        ("s.bias", "layers.1", "state:layers.1.router_bias"),
        ("s.past", "layers.1", "state:layers.1.past_load"),
        ("s.biases", "", "balance:biases"),
        ("s.tally", "layers.1", "stats:tally.layers.1"),
        ("s.dropped", "layers.1", "stats:dropped.layers.1"),
        ("s.norm2", "", "stats:norm2"),
        ("s.master.layers.0.edp", "", "master:layers.0.edp"),
        ("s.decay.embed.dense", "", "decay:embed.dense"),
        ("acc.layers.0.dense", "", "gradients:layers.0.dense"),
        ("w.layers.0.dense", "", "bucket:layers.0.dense"),
    ],
)
def test_a_static_input_has_one_key_in_the_run(name, at, key):
    assert static_key(name, at) == key


def test_a_static_input_without_a_rule_is_our_mistake():
    with pytest.raises(AssertionError, match=r"s\.unknown"):
        static_key("s.unknown", "")


@pytest.mark.parametrize("layout", [Layout(dp=3), Layout(dp=3, ep=3)], ids=Layout.name)
def test_a_layout_that_does_not_divide_the_work_is_refused(layout):
    with pytest.raises(
        LayoutError, match=r"dp = 3 does not divide the 4 micro-batches .* try dp = 1"
    ):
        training_step(models.plan(models.mixtral_like(), layout))


def test_a_layout_that_does_not_divide_the_experts_is_refused():
    model = models.mixtral_like().with_shape(experts=6)
    with pytest.raises(LayoutError, match=r"ep = 4 does not divide the 6 experts; try ep = 2"):
        training_step(models.plan(model, Layout(sp=4, ep=4)))
