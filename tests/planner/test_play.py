from itertools import pairwise

from weft.compose.plan import Plan
from weft.compose.step import training_step
from weft.graph.program import Program, Task
from weft.parallel.layout import Dispatch, Layout
from weft.planner.play import COMPUTE, fused, label, play
from weft.schedule.action import Ordered
from weft.schedule.layer import overlapped, serial
from weft.testing import models


def planned(dispatch: Dispatch = Dispatch.ALL_GATHER) -> Plan:
    return models.plan(models.large_mixtral(), Layout(sp=2, ep=2, dispatch=dispatch))


def program(name: str, dispatch: Dispatch = Dispatch.ALL_GATHER) -> Program:
    return training_step(planned(dispatch)).templates[name].program


def seconds(task: Task) -> float:
    return 3.0 if task.lane == "comm" else 1.0


def busy(ordered: Ordered) -> float:
    return sum(seconds(task) for task in ordered.program.tasks)


def test_a_serial_order_takes_the_sum_of_its_tasks_and_exposes_every_collective():
    ordered = serial(program("moe.backward"))
    played = play(ordered, seconds)
    wire = sum(seconds(t) for t in ordered.program.tasks if t.lane == "comm")
    assert played.seconds == busy(ordered)
    assert sum(played.exposed.values()) == wire


def test_an_overlapped_order_is_shorter_and_never_below_its_compute():
    backward = program("moe.backward")
    ordered = overlapped(backward, seconds)
    played = play(ordered, seconds)
    compute = sum(seconds(t) for t in backward.tasks if t.lane != "comm")
    assert compute <= played.seconds < busy(ordered)
    assert played.seconds == compute + sum(played.exposed.values())


def test_bars_of_a_lane_do_not_overlap_and_every_task_has_one():
    ordered = overlapped(program("moe.backward"), seconds)
    played = play(ordered, seconds, share=0.2)
    assert {bar.task.name for bar in played.bars} == {t.name for t in ordered.program.tasks}
    for lane in {bar.lane for bar in played.bars}:
        bars = sorted((bar.start, bar.stop) for bar in played.bars if bar.lane == lane)
        assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(bars)), lane


def test_compute_beside_a_collective_is_slower_by_its_share():
    ordered = overlapped(program("moe.backward"), seconds)
    free, held = play(ordered, seconds), play(ordered, seconds, share=0.5)

    def time(played, name):
        return next(b.stop - b.start for b in played.bars if b.task.name == name)

    stretched = [
        t.name
        for t in ordered.program.tasks
        if t.lane == "compute" and time(held, t.name) > time(free, t.name) + 1e-9
    ]
    assert stretched
    assert all(time(held, name) <= 2 * time(free, name) + 1e-9 for name in stretched)
    assert held.seconds >= free.seconds


def test_a_share_changes_nothing_where_nothing_is_beside():
    ordered = serial(program("moe.forward"))
    assert play(ordered, seconds, share=0.9).seconds == play(ordered, seconds).seconds


def test_the_four_pairs_of_the_forward_are_found_and_what_rides_with_them():
    pairs = {
        (pair.product.body, label(pair.message)): [t.body for t in pair.passes]
        for pair in fused(program("moe.forward"))
    }
    assert pairs == {
        ("qkv_project", "sp qkv"): ["pack_heads"],
        ("project", "sp attention"): ["join_heads"],
        ("expert_up", "ep tokens"): ["permute"],
        ("expert_down", "ep outputs"): ["gather_sum"],
    }


def test_all_to_all_dispatch_has_its_pairs_too():
    found = {pair.product.body for pair in fused(program("moe.forward", Dispatch.ALL_TO_ALL))}
    assert {"qkv_project", "project", "expert_up", "expert_down"} == found


def test_no_product_is_in_two_launches():
    for name in ("moe.forward", "moe.backward"):
        products = [pair.product.name for pair in fused(program(name))]
        assert len(products) == len(set(products))


def test_a_lane_of_compute_is_named():
    played = play(serial(program("head")), seconds)
    assert {bar.lane for bar in played.bars} == {COMPUTE}
