"""A figure is written down with what is needed to read it later."""

import json
import os
import platform
from datetime import datetime

import pytest
import torch

from weft.bench import record

CPU = torch.device("cpu")


def test_an_entry_says_when_where_and_of_what() -> None:
    line = record.entry("thing", CPU, {"ms": 1.5})
    assert line["bench"] == "thing"
    assert line["ms"] == 1.5
    assert datetime.fromisoformat(line["date"]).tzinfo is not None
    facts = line["machine"]
    assert facts["cores"] == os.cpu_count()
    assert facts["torch"] == torch.__version__
    assert facts["python"] == platform.python_version()
    assert facts["threads"] == torch.get_num_threads()


def test_entries_are_appended_as_lines_in_a_folder_that_is_made(tmp_path) -> None:
    file = tmp_path / "some" / "where.jsonl"
    record.append(file, {"a": 1})
    record.append(file, {"b": None})
    assert [json.loads(x) for x in file.read_text().splitlines()] == [{"a": 1}, {"b": None}]


def test_a_machine_is_a_word_for_a_folder() -> None:
    name = record.name(CPU)
    assert name.startswith("cpu-")
    assert name == name.lower()
    assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_a_program_that_fails_or_is_missing_costs_no_figure(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert record.commit() == "none"
    monkeypatch.undo()
    monkeypatch.setattr(record, "_output", lambda *_asked: "none")
    assert record._gpu(CPU) == {}


def test_clocks_and_driver_are_read_from_the_driver(monkeypatch) -> None:
    asked = []

    def answer(command, folder):
        asked.append(command)
        return "580.1, 1980 MHz, 3201 MHz, 700.00 W"

    monkeypatch.setattr(record, "_output", answer)
    assert record._gpu(torch.device("cuda", 1))["clocks.sm"] == "1980 MHz"
    assert "--id=1" in asked[0]
    assert all(
        word.startswith(("nvidia-smi", "--id", "--query-gpu", "--format")) for word in asked[0]
    )


@pytest.mark.gpu
def test_a_gpu_gives_its_driver() -> None:
    facts = record.machine(torch.device("cuda", 0))
    assert facts["driver_version"]
