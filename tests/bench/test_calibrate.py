"""A machine file is filled from the bodies of steps."""

from dataclasses import replace

import pytest
import torch

from weft.bench import calibrate as room
from weft.bench.calibrate import LARGE, OTHERWISE, SPREAD, Order, calibrate, singles, spreads
from weft.bench.ceilings import Ceilings
from weft.compose.recipe import plan
from weft.compose.step import training_step
from weft.planner.machine import machine


def test_a_calibrated_machine_keeps_the_numbers_on_paper(place, monkeypatch) -> None:
    known = Ceilings(
        device="cpu", dtype="float32", torch=torch.__version__,
        product=1e11, attention=5e10, attention_dgrad=4e10, copy=1e10,
    )  # fmt: skip
    monkeypatch.setattr(room, "stored", lambda *_: known)
    said: list[str] = []
    base = machine("H200")
    *_, found = calibrate(place, Order(base=base, say=said.append))
    assert found.name == "H200"
    assert found.device.peak_flops == base.device.peak_flops
    assert found.device.copy == pytest.approx(1e10 / base.device.memory_bandwidth)
    assert found.link == base.link
    assert "swiglu" in found.measured.passes
    assert "zero gradients" in found.measured.passes
    assert found.measured.messages == ()  # one rank has nobody to send to
    *_, alone = calibrate(place, Order(base=None, say=said.append))
    assert alone.device.peak_flops == known.product
    assert len(said) == 2 * sum(len(many) for many in singles(cuda=False))


def test_attention_is_measured_by_both_bodies_at_both_lengths_where_there_are_both(monkeypatch):
    def lengths() -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for config in (c for many in singles(cuda=True) for c in many):
            found.setdefault(config.kernels.attention, set()).add(config.data.sequence)
        return found

    assert OTHERWISE.keys() < {tree["name"] for tree in LARGE}
    monkeypatch.setattr(room, "alternatives", lambda: {"attention": {"cudnn": {}}})
    assert lengths() == {"repeatable": {4096, 8192}, "cudnn": {4096, 8192}}
    monkeypatch.setattr(room, "alternatives", lambda: {"attention": {}})
    assert lengths() == {"repeatable": {4096, 8192}}
    assert {c.kernels.attention for many in singles(cuda=False) for c in many} == {"repeatable"}


def test_layouts_of_all_ranks_are_run_over_the_stacks() -> None:
    alone = [c for many in singles(cuda=True) for c in many]
    assert {c.name for c in alone} == {tree["name"] for tree in LARGE}
    assert len(alone) > len(LARGE)  # some at two sizes
    together = list(spreads(2, cuda=True))
    assert [c.parallel.ranks for c in together] == [2] * len(SPREAD)
    assert list(spreads(1, cuda=True)) == []
    assert {c.overlap.order for c in (*alone, *together)} == {"serial"}


def test_every_body_of_a_layout_of_two_ranks_is_run_by_some_recipe() -> None:
    """What the planner may price in a layout of two ranks, some recipe runs."""
    alone = [c for many in singles(cuda=True) for c in many]
    run = {body for c in (*alone, *spreads(2, cuda=True)) for body in _bodies(plan(c, 0))}
    folded = plan(next(spreads(2, cuda=True)), 0)
    assert _bodies(replace(folded, remat="selective")) <= run
    folded = replace(folded, layout=replace(folded.layout, sp=1, dp=2), micro_batches=8)
    assert _bodies(folded) <= run


def _bodies(made) -> set[str]:
    step = training_step(made)
    return {t.body for o in step.templates.values() for t in o.program.tasks}
