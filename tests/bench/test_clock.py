"""Tasks are timed where they run, and a step is the sum of its tasks."""

import time
from collections import Counter
from dataclasses import replace

import torch

from weft.bench import rig as rigs
from weft.bench.clock import sustained, take
from weft.bench.rig import assemble, rigged
from weft.config.load import build
from weft.planner.calibration import Sample
from weft.planner.whole import ZERO
from weft.planner.work import Passing, Products, Sending, Waiting, Way
from weft.testing.ranks import run_ranks
from weft.trainer.session import Place, open_transport


def test_every_compute_task_of_a_step_is_a_sample(recipe, place) -> None:
    with rigged(recipe("overlap.order=serial"), place) as rig:
        found = take(rig).samples
        step = rig.stage.step
    sampled = Counter(one.body for one in found)
    ran = Counter(
        task.body for i in step.instances for task in step.templates[i.template].program.tasks
    )
    assert sampled["expert_up"] == ran["expert_up"] > 0
    assert sampled[ZERO] == 1
    assert min(one.seconds for one in found) > 0
    assert not any(isinstance(one.asked, Sending | Waiting) for one in found)
    assert set(sampled) - {ZERO} <= set(ran)


def test_samples_say_which_attention_was_asked_for(recipe, place) -> None:
    """No other runs on a CPU, so the recipe is exchanged behind the bodies."""
    with rigged(recipe("overlap.order=serial"), place) as rig:
        assert {one.kernel for one in take(rig).samples} == {"repeatable"}
        asked = rig.config.kernels.model_copy(update={"attention": "cudnn"})
        other = replace(rig, config=rig.config.model_copy(update={"kernels": asked}))
        found = {one.kernel for one in take(other).samples if one.body.startswith("attention")}
    assert found == {"cudnn"}


def test_a_body_that_takes_longer_is_found_to(recipe, place, monkeypatch) -> None:
    def slowed(table):
        found = dict(bodies(table))
        inner = found["swiglu"]
        found["swiglu"] = lambda *a, **k: (_spin(), inner(*a, **k))[1]
        return found

    bodies = rigs.backends.bodies
    with rigged(recipe("overlap.order=serial"), place) as rig:
        quick = _of(take(rig).samples, "swiglu")
    monkeypatch.setattr(rigs.backends, "bodies", slowed)
    with rigged(recipe("overlap.order=serial"), place) as rig:
        slow = _of(take(rig).samples, "swiglu")
    assert slow > quick + 4e-3


def _spin() -> None:
    time.sleep(5e-3)


def _of(found, body: str) -> float:
    return min(one.seconds for one in found if one.body == body)


def test_products_are_stretched_until_their_stack_makes_the_step() -> None:
    asked = Products(rows=8, n=8, k=8, groups=1, phase="", flops=1024, moved=0)
    streams = Passing(body="add", moved=10, way=Way.STREAM)
    found = [
        Sample(body="project", asked=asked, seconds=2.0),
        Sample(body="add", asked=streams, seconds=1.0),
    ]
    assert [one.seconds for one in sustained(found, 4.0)] == [3.0, 1.0]
    assert [one.seconds for one in sustained(found[1:], 4.0)] == [1.0]


def test_host_time_of_every_body_is_positive(recipe, place) -> None:
    with rigged(recipe(), place) as rig:
        found = take(rig)
    assert {"expert_up", "adamw", "gather_params"} <= set(found.issue)
    assert min(min(times) for times in found.issue.values()) > 0
    assert found.between is not None


def test_beside_other_ranks_only_bytes_are_taken() -> None:
    for bodies in run_ranks(2, _taken_of_two):
        assert "swiglu" in bodies
        assert not {"attention", "attention.dgrad"} & set(bodies)


def _taken_of_two(rank: int) -> list[str]:
    config = build(TREE, ("parallel.sp=2", "parallel.ep=2"))
    place = Place(rank=rank, world=2, device=torch.device("cpu"), meeting=None)
    transport = open_transport(config, place)
    found = take(assemble(config, place, transport))
    transport.close()
    return [one.body for one in found.samples]


TREE = {
    "name": "tiny",
    "model": {
        "family": "mixtral", "vocab": 61, "hidden": 32, "layers": 1, "heads": 4, "kv_heads": 2,
        "head_dim": 8, "ffn_hidden": 16, "experts": 4, "top_k": 2,
    },
    "data": {"source": "stdlib", "sequence": 16},
    "optim": {"lr": 1e-3, "warmup_steps": 0},
    "train": {
        "steps": 1, "global_batch": 2, "micro_batch": 2, "precision": "float32", "device": "cpu",
        "eval_every": 1, "checkpoint_every": 0, "threads": 1,
    },
}  # fmt: skip
