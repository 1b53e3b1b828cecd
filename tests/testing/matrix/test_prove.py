"""A row is proved, cannot exist, or is sabotaged and fails with its culprit."""

import os
import re
from dataclasses import replace

import pytest

from weft.testing.findings import Length
from weft.testing.matrix.prove import Matrix, prepare, prove_all, prove_row, side_by_side
from weft.testing.matrix.table import row
from weft.testing.sabotage import SABOTAGES

SHORT = Length(float64=2, float32=1)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return prepare(tmp_path_factory.mktemp("matrix"), ("moe", "staged"), length=SHORT)


@pytest.mark.parametrize("line", ["sp2 ep2", "cp2 dp2 ep4 all_gather zero2"])
def test_a_row_is_proved(matrix: Matrix, line: str) -> None:
    verdict = prove_row(matrix, row(line))
    assert verdict.faults == ()
    assert len(verdict.checks) == 11
    assert verdict.ranks == (2 if line == "sp2 ep2" else 4)


def test_a_row_that_cannot_exist_says_why_and_is_a_fault_where_it_should(matrix: Matrix) -> None:
    missing = prove_row(matrix, row("sp3"))
    assert "must divide model.heads (8)" in missing.impossible
    assert [fault.name for fault in missing.faults] == ["exists"]
    known = replace(row("sp3"), exists=False)
    assert prove_row(matrix, known).faults == ()
    wrong = prove_row(matrix, replace(row("sp2"), exists=False))
    assert [fault.name for fault in wrong.faults] == ["refused"]


CULPRITS = {
    "nodes": ("dp4 node2", "grads64", r"layers\.2\.\S+ \(on rank 1\) is off by"),
    "doubled": ("dp2 ep2", "grads64", r"layers\.\d\.experts\.\d+\.down \(on rank \d\) is off by"),
    "balance": ("dp2", "loss64", r"balance loss of step 1 is off by 1,"),
    "chunks": ("staged: pp2 interleaved v2", "start", r"rank 1: layers\.1\.\S+ does not start"),
    "scale": ("sp2 ep2 fp8", "fp8", r"in eight bits \(on rank \d\) is off by"),
    "drop": ("sp2 ep2", "grads64", r"experts\.\d+\.\w+ \(on rank \d\) is off by"),
}


@pytest.mark.parametrize("fault", CULPRITS)
def test_a_sabotaged_row_fails_and_names_the_culprit(matrix: Matrix, fault: str) -> None:
    line, check, culprit = CULPRITS[fault]
    found = prove_row(replace(matrix, sabotage=SABOTAGES[fault]), row(line))
    faults = {each.name: each.fault for each in found.faults}
    assert re.search(culprit, faults[check]), faults


def test_rows_over_gloo_come_after_stacked_ones(matrix: Matrix) -> None:
    rows = (replace(row("dp2"), processes=True), row("sp2"))
    verdicts = list(prove_all(matrix, rows))
    assert [verdict.row.processes for verdict in verdicts] == [False, True]
    assert not any(verdict.faults for verdict in verdicts)


def test_children_answer_side_by_side() -> None:
    answers = list(side_by_side(lambda n: (n, os.getpid()), range(5), at_once=2))
    assert sorted(n for n, _ in answers) == list(range(5))
    assert len({pid for _, pid in answers} | {os.getpid()}) == 6


def test_a_child_that_dies_is_no_answer() -> None:
    with pytest.raises(EOFError):
        list(side_by_side(os._exit, [3], at_once=1))
