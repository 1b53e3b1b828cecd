"""What `weft verify` prints: aligned columns, faults under their row, a last line that sums up."""

from dataclasses import replace
from pathlib import Path

import pytest

from weft.cli import verify
from weft.errors import ConfigError
from weft.parallel.layout import Layout
from weft.testing.findings import EVEN, Findings
from weft.testing.verify import Case, Row
from weft.testing.weigh import Check

KEY = ("sp", "all_to_all", "qkv")
FINDINGS = Findings(
    rank=0,
    started=(),
    fed=(),
    sums={},
    distances={},
    held={},
    flips=(3, 512),
    reordered=(),
    received={EVEN: {KEY: (64, 64)}},
    payload={},
    rounded={},
)
HELD = Row(
    case=Case(layout=Layout(sp=2, ep=2), processes=True),
    checks=tuple(Check(name=name, figure="same") for name in verify.CHECKS),
    findings=(FINDINGS, replace(FINDINGS, rank=1)),
    seconds=1.25,
)
FAULT = Check(name="data", figure="differs", fault="rank 1: a batch is not its share")
BROKEN = replace(HELD, checks=(*HELD.checks[:1], FAULT, *HELD.checks[2:]))
DEAD = replace(HELD, findings=(), checks=(Check(name="runs", figure="no", fault="cut\nwire"),))


@pytest.mark.parametrize("row", [HELD, BROKEN, DEAD])
def test_columns_stand_under_their_names(row: Row) -> None:
    cells = verify._cells(row)
    width = cells.rindex("ok" if row is HELD else "FAIL")
    assert width == verify._CELL * len(verify.CHECKS) + 10 + 7 + 2


def test_scales_that_are_not_there_cannot_be_applied_twice() -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "quickstart.toml"
    with pytest.raises(ConfigError, match=r"--sabotage scale.*compression.dispatch=fp8"):
        verify.verify(recipe, None, verify.Fault.SCALE)


def test_a_fault_is_told_with_layout_and_check() -> None:
    assert list(verify._faults(BROKEN)) == [
        "  FAIL sp2 ep2 all_to_all, data: rank 1: a batch is not its share"
    ]
    assert list(verify._faults(HELD)) == []


def test_flips_are_shown_for_all_ranks() -> None:
    assert "6/1024" in verify._cells(HELD)


def test_the_last_line_sums_up() -> None:
    assert verify._summary([HELD], 2, 3.4) == "1 layouts, 2 skipped, 12 checks hold, 3 s"
    assert verify._summary([HELD, BROKEN, DEAD], 0, 9.0) == (
        "3 layouts, 0 skipped, 2 of 25 checks FAIL, 9 s; first: sp2 ep2 all_to_all, "
        "data: rank 1: a batch is not its share"
    )


def test_a_count_that_was_not_predicted_is_marked() -> None:
    wrong = replace(FINDINGS, received={EVEN: {KEY: (64, 72)}})
    table = "\n".join(verify._byte_table([HELD, DEAD, replace(HELD, findings=(wrong,))]))
    line = next(line for line in table.splitlines() if line.startswith("sp all_to_all qkv"))
    assert line.split()[3:] == ["64", "!72"]
