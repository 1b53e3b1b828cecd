"""`weft verify` as a user runs it: it says what it proved, and cannot be talked into success."""

import re
from pathlib import Path

import pytest
from tests.system.conftest import Command

from weft.testing import verify


def test_every_layout_of_a_recipe_is_proved(weft: Command, recipe_file: Path) -> None:
    answer = weft("verify", str(recipe_file), "--quick")
    assert answer.code == 0, answer.stdout + answer.stderr
    lines = answer.stdout.splitlines()
    assert [line.split()[-1] for line in lines if "gloo" in line] == ["ok"] * 6
    assert re.match(r"6 layouts, 0 skipped, \d+ checks hold, ", lines[-1])
    assert "changed to be quick: train.global_batch 4 -> 8" in answer.stdout
    for label in ("counts", "weights", "experts", "rows", "tokens", "qkv"):
        assert any(line.split()[2:3] == [label] for line in lines), label


def test_a_sabotaged_proof_fails_and_names_the_culprit(
    weft: Command, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "QUICK_LAYOUTS", verify.QUICK_LAYOUTS[:2])  # the command is forked
    one_layer = ("--set", "model.layers=1")
    answer = weft("verify", str(recipe_file), "--quick", "--sabotage", "experts", *one_layer)
    assert answer.code == 1, answer.stdout + answer.stderr
    culprit = "start: rank 1: layers.0.experts.2.gate does not start as on one rank"
    lines = answer.stdout.splitlines()
    assert any(line.startswith(f"  FAIL sp2 ep2 all_gather, {culprit}") for line in lines)
    assert culprit in lines[-1]


def test_an_unknown_fault_is_refused(weft: Command, recipe_file: Path) -> None:
    assert weft("verify", str(recipe_file), "--sabotage", "sleep").code == 2
