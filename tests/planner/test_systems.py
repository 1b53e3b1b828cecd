from weft.planner.constants import constants
from weft.planner.cost import Rates
from weft.planner.machine import machine
from weft.planner.simulate import Studio
from weft.planner.systems import NODE, STRATEGIES, TABLE_2, model, plan, system

STUDIO = Studio()


def test_the_paper_s_system_is_faster_than_the_baseline():
    rates = Rates(machine=machine("H800"), constants=constants())
    times = {
        of: STUDIO.simulate(system("mixtral-8x7b", of, stages=1, dp=4, batch=64), rates).seconds
        for of in ("megatron", "megascale")
    }
    assert times["megascale"] < times["megatron"]


def test_every_model_has_every_strategy_on_one_node():
    for name in TABLE_2:
        for strategy in STRATEGIES:
            made = plan(name, dp=2, batch=2, strategy=strategy)
            assert made.layout.world == 2 * NODE
            assert sum(made.layout.layers) == model(name).layers


def test_the_systems_differ_in_what_the_paper_says():
    asked = {"stages": 15, "dp": 2, "batch": 720}
    ours = system("internal-352b", "megascale", chunks=4, **asked)
    theirs = system("internal-352b", "megatron", **asked)
    assert (ours.plan.layout.ep, theirs.plan.layout.ep) == (NODE, 1)
    assert (ours.regime.fused, theirs.regime.fused) == (True, False)
    assert ours.ranks == theirs.ranks == 240
