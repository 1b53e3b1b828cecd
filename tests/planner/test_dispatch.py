"""The way that tokens take is the one whose layer the machine prices lowest, and it says why."""

from dataclasses import replace

import pytest
from tests.config.test_run import tree

from weft.compose.recipe import plan as plan_of
from weft.config.run import RunConfig
from weft.parallel.layout import Dispatch
from weft.planner.cost import Rates, rates
from weft.planner.dispatch import settle, taking, text
from weft.planner.machine import machine
from weft.planner.simulate import Job, Studio

LARGE = {"hidden": 4096, "ffn_hidden": 8192, "head_dim": 128, "heads": 32, "kv_heads": 8}
H200 = rates(machine("H200"))


def recipe(**branches: dict[str, object]) -> RunConfig:
    given = {"parallel": {"sp": 4, "ep": 4, "dispatch": "auto"}, **branches}
    return RunConfig.model_validate(tree(**given))


def with_link(bandwidth: float) -> Rates:
    """An unmeasured machine whose links have that many bytes a second."""
    slow = machine("H800")
    link = replace(slow.link, bandwidth=bandwidth)
    measured = replace(slow.measured, messages=())
    return rates(replace(slow, link=link, measured=measured))


@pytest.mark.parametrize("way", Dispatch)
def test_a_recipe_that_names_a_way_is_left_as_it_is(way: Dispatch) -> None:
    named = recipe(parallel={"sp": 4, "ep": 4, "dispatch": way.value})
    assert settle(named, H200).config == named
    assert text(settle(named, H200)) == ""


def test_the_shortest_layer_is_chosen_and_the_others_are_told() -> None:
    found = settle(recipe(), H200)
    seconds = [way.seconds for way in found.ways]
    assert seconds == sorted(seconds)
    assert len(found.ways) == len(Dispatch)
    assert found.config.parallel.dispatch == found.ways[0].dispatch
    assert text(found).startswith(f'parallel.dispatch = "auto": {found.ways[0].dispatch}, ')
    assert all(f"{way.exposed * 1e6:,.0f} us exposed" in text(found) for way in found.ways)


def test_a_price_is_that_of_the_layer_in_the_step_of_the_planner() -> None:
    found = settle(recipe(), H200)
    for way in found.ways:
        plan = plan_of(taking(recipe(), Dispatch(way.dispatch)), 0)
        step = Studio().simulate(Job(plan=plan), H200)
        halves = [step.segments[f"moe.{part}"] for part in ("forward", "backward")]
        assert way.seconds == pytest.approx(sum(half.seconds for half in halves))
        assert way.exposed == pytest.approx(sum(sum(half.exposed.values()) for half in halves))


def test_the_choice_follows_the_machine() -> None:
    """Every expert is chosen: rows are more than tokens, and count where links are slow."""
    model = {**LARGE, "experts": 4, "top_k": 4}
    asked = recipe(model=model, data={"sequence": 2048})
    slow = settle(asked, with_link(1e9)).ways
    times = {way.dispatch: way.seconds for way in slow}
    assert times["all_gather"] < times["all_to_all"]
    one = recipe(model={**LARGE, "experts": 8, "top_k": 1}, data={"sequence": 2048})
    assert settle(one, with_link(1e9)).config.parallel.dispatch != "all_gather"


def test_what_a_rule_forbids_is_no_way_and_says_so() -> None:
    found = settle(recipe(model={"capacity": 1.0}), H200)
    last = found.ways[-1]
    assert last.dispatch == "deduplicated"
    assert last.refused.startswith("model.capacity = 1.0: must be 0 where whole tokens travel")
    assert last.refused in text(found)


def test_one_rank_an_expert_group_has_no_choice() -> None:
    found = settle(recipe(parallel={"sp": 2, "dispatch": "auto"}), H200)
    assert (found.config.parallel.dispatch, found.ways) == ("all_to_all", ())


@pytest.mark.parametrize(
    "branches",
    [
        {"overlap": {"merge": True, "across": True}},
        {"overlap": {"remat": "full"}, "compression": {"dispatch": "fp8"}},
        {"parallel": {"pp": 2, "sp": 2, "ep": 2, "pipeline": "zero_bubble", "dispatch": "auto"}},
        {"model": {"dense_at": (1,), "dense_ffn_hidden": 64},
         "parallel": {"pp": 2, "sp": 2, "ep": 2, "dispatch": "auto"}},
    ],
)  # fmt: skip
def test_every_layout_with_experts_apart_can_be_settled(branches: dict) -> None:
    found = settle(recipe(**branches), H200)
    assert found.config.parallel.dispatch in tuple(Dispatch)
    assert all(way.refused or way.seconds > way.exposed > 0 for way in found.ways)
