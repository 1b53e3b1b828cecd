"""`weft trace` writes what ran here, or what would at nominal prices, in one format."""

import json
from pathlib import Path

import pytest

from weft.cli.trace import trace

LAYOUT = ["parallel.sp=2", "parallel.ep=2"]


def rows(path: Path) -> set[tuple[int, str]]:
    events = json.loads(path.read_text())["traceEvents"]
    return {(e["pid"], e["args"]["name"]) for e in events if e["name"] == "thread_name"}


def test_a_simulated_step_has_the_lanes_of_every_rank(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trace.json"
    trace(str(recipe_file), LAYOUT, out=out, simulated=True)
    for rank in (0, 1):
        assert {(rank, "segment"), (rank, "compute"), (rank, "comm sp")} <= rows(out)
    assert f"{out}: " in (shown := capsys.readouterr().out)
    assert "nominal prices" in shown


def test_a_measured_step_has_the_same_lanes(recipe_file: Path, tmp_path: Path) -> None:
    real, priced = tmp_path / "real.json", tmp_path / "priced.json"
    trace(str(recipe_file), [], out=real, steps=1)
    trace(str(recipe_file), [], out=priced, simulated=True)
    assert rows(real) == rows(priced)
