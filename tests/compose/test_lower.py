from dataclasses import replace

import pytest

from weft.compose.plan import Plan
from weft.compose.step import training_step
from weft.graph.program import Program, Task
from weft.parallel.layout import Dispatch, Layout
from weft.testing import models


def forward(plan: Plan, kind: str = "moe") -> Program:
    return training_step(plan).templates[f"{kind}.forward"].program


def bodies(program: Program) -> list[str]:
    return [task.body for task in program.tasks]


def find(program: Program, body: str) -> Task:
    return next(task for task in program.tasks if task.body == body)


def planned(family: str = "mixtral", layout: Layout | None = None, **changes) -> Plan:
    return replace(models.plan(models.FAMILIES[family], layout), **changes)


def communicates(program: Program) -> set[str]:
    return {task.group for task in program.tasks if "axis" in task.attributes}


def test_one_rank_communicates_nothing():
    assert communicates(forward(planned())) == set()


def test_data_parallel_ranks_communicate_nothing_in_a_layer():
    assert communicates(forward(planned(layout=Layout(dp=4)))) == set()


@pytest.mark.parametrize(
    ("layout", "axes"),
    [
        (Layout(sp=2), {"sp"}),
        (Layout(dp=2, ep=2), {"ep"}),
        (Layout(sp=2, ep=2), {"sp", "ep"}),
        (Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER), {"sp", "ep"}),
    ],
    ids=lambda value: value.name() if isinstance(value, Layout) else None,
)
def test_each_axis_communicates_where_it_is_cut(layout, axes):
    assert communicates(forward(planned(layout=layout))) == axes


def test_dispatch_is_lowered_by_the_layout():
    gathered = bodies(forward(planned(layout=Layout(ep=2, dp=2, dispatch=Dispatch.ALL_GATHER))))
    exchanged = bodies(forward(planned(layout=Layout(ep=2, dp=2))))
    assert {"all_gather", "reduce_scatter"} <= set(gathered)
    assert "all_to_all_rows" in exchanged
    assert "all_gather" not in exchanged


def test_a_gathering_rank_keeps_its_own_experts():
    layout = Layout(dp=2, sp=2, ep=4, dispatch=Dispatch.ALL_GATHER)
    plan = replace(planned(layout=layout), rank=3)
    assert dict(find(forward(plan), "plan_local").attributes) == {"first": 6, "local": 2}


def test_qk_norm_is_one_operator_with_the_rotation():
    assert "norm_rotate" in bodies(forward(planned("qwen3")))
    assert "rotate" in bodies(forward(planned("mixtral")))


def test_forced_choices_replace_the_selection():
    program = forward(planned(replay=True))
    assert "select_experts" not in bodies(program)
    assert find(program, "replay_experts").inputs[-1] == "forced"


def test_a_router_has_the_rule_of_its_family():
    rule = dict(find(forward(planned("deepseek"), "shared_moe"), "select_experts").attributes)
    assert rule == {"top_k": 2, "score": "sigmoid", "renormalise": True, "scaling": 1.5}


def test_balance_losses_are_those_of_a_micro_batch_whatever_the_layout():
    for layout in (Layout(), Layout(sp=2, ep=2), Layout(dp=2)):
        losses = find(forward(planned(layout=layout)), "router_losses").attributes
        assert losses["sequence"] == models.SEQUENCE
        assert losses["scale"] == 1 / 4


def test_the_load_that_balances_is_that_of_the_whole_micro_batch():
    program = forward(planned(layout=Layout(sp=2)))
    assert find(program, "router_losses").inputs[1] == find(program, "sum_load").outputs[0]
    assert find(program, "add_load").inputs[0] == find(program, "count_load").outputs[0]


def test_a_rotary_table_is_computed_in_the_dtype_of_sums():
    step = training_step(planned(precision="bfloat16"))
    table = find(step.templates["embedding.forward"].program, "rope_table")
    assert table.attributes["dtype"] == "float32"
