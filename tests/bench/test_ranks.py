"""However many ranks measure, one speaks."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.multiprocessing.spawn import ProcessRaisedException

from weft.bench.calibrate import SPREAD
from weft.bench.ranks import Calibration, Order, calibrate_here, measure_here
from weft.errors import ConfigError
from weft.planner.machine import machine


def test_one_rank_measures_in_this_process(recipe, tmp_path) -> None:
    said: list[str] = []
    file = tmp_path / "results" / "step.jsonl"
    order = Order(what="step", config=recipe(), steps=1, documents=1, file=file, say=said.append)
    measure_here(order)
    measure_here(order)
    assert len(said) == 2
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert first["recipe"] == second["recipe"] == "tiny"
    assert first["machine"]["threads"] == 1


def test_two_ranks_are_two_processes_and_one_record(recipe, tmp_path, capfd) -> None:
    config = recipe("parallel.sp=2", "parallel.ep=2")
    file = tmp_path / "step.jsonl"
    measure_here(Order(what="step", config=config, steps=1, documents=1, file=file, say=print))
    (line,) = (json.loads(line) for line in file.read_text().splitlines())
    assert line["ranks"] == 2
    assert line["exposed_ms"] > 0
    assert capfd.readouterr().out.count("tokens a step") == 1


def test_a_rank_that_fails_ends_all(recipe) -> None:
    config = recipe("parallel.sp=2", "parallel.ep=2")
    order = Order(what="step", config=config, steps=1, documents=99, file=None, say=print)
    with pytest.raises(ProcessRaisedException, match="larger sample than population"):
        measure_here(order)


def test_half_a_layer_by_a_policy_is_refused_before_processes_start(recipe) -> None:
    config = recipe("parallel.sp=2", "parallel.ep=2", "overlap.remat=selective")
    order = Order(what="moe-layer", config=config, steps=1, documents=1, file=None, say=print)
    with pytest.raises(ConfigError, match=r"overlap.remat = 'selective'"):
        measure_here(order)


def test_a_calibration_leaves_a_machine_file(tmp_path) -> None:
    file, said = tmp_path / "here.toml", list[str]()
    calibrate_here(Calibration(known=None, device="cpu", file=file, say=said.append), 1)
    found = machine(str(file))
    assert found.device.peak_flops > 0
    assert "adamw" in found.measured.passes
    assert "passes" in said[-1]


def test_two_ranks_leave_a_machine_file_after_each_stack(tmp_path) -> None:
    file, said = tmp_path / "here.toml", tmp_path / "said"
    calibrate_here(Calibration(known=None, device="cpu", file=file, say=Appended(said)), 2)
    found = machine(str(file))
    assert found.measured.messages
    assert "adamw" in found.measured.passes
    lines = said.read_text().splitlines()
    assert sum("passes" in line for line in lines) == len(SPREAD) + 1  # both stacks at once
    assert "on 2 rank(s)" in lines[0]  # what takes two comes first
    assert "12 messages" in lines[1]


@dataclass(frozen=True)
class Appended:
    """What is said in another process, line by line."""

    file: Path

    def __call__(self, text: str) -> None:
        with self.file.open("a") as out:
            out.write(text + "\n")
