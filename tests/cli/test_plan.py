import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from weft.cli.main import app
from weft.errors import ConfigError

RECIPE = str(Path(__file__).parents[2] / "recipes" / "h200-mixtral-2layer.toml")


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_a_plan_is_printed_and_its_recipe_is_one_that_simulates(tmp_path: Path):
    out, drawn = tmp_path / "plan.toml", tmp_path / "memory.png"
    asked = ("plan", "--model", "tiny-mixtral", "--cluster", "1x2xH200", "--batch", "8")
    result = invoke(*asked, "--seq", "64", "--out", str(out), "--picture", str(drawn))
    assert result.exit_code == 0, result.output
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert "why the others lost" in result.output
    assert invoke("simulate", str(out)).exit_code == 0


def test_a_cluster_that_is_too_small_is_refused():
    asked = ("plan", "--model", "internal-352b", "--cluster", "1x1xH800", "--batch", "8")
    result = invoke(*asked)
    assert isinstance(result.exception, ConfigError)
    assert "try more nodes" in str(result.exception)


def test_a_recipe_is_simulated_and_traced(tmp_path: Path):
    trace = tmp_path / "trace.json"
    result = invoke("simulate", RECIPE, "--machine", "H200", "--trace", str(trace))
    assert result.exit_code == 0, result.output
    assert "exposed" in result.output
    assert trace.stat().st_size > 1000
    both = tmp_path / "both.png"
    again = invoke("simulate", RECIPE, "--over", str(trace), "--picture", str(both))
    assert again.exit_code == 0, again.output
    assert both.read_bytes().startswith(b"\x89PNG")


def test_a_recipe_is_simulated_with_the_attention_that_it_asks_for():
    def took(attention: str) -> float:
        made = invoke("simulate", RECIPE, "--set", f"kernels.attention={attention}")
        assert made.exit_code == 0, made.output
        (line,) = (x for x in made.output.splitlines() if x.startswith("step"))
        return float(re.search(r"[\d.]+", line)[0])

    assert took("cudnn") < 0.97 * took("repeatable")


def test_the_scale_up_ratio_is_explained_and_nothing_else():
    assert "H800" in invoke("explain", "R").output
    result = invoke("explain", "Q")
    assert isinstance(result.exception, ConfigError)


@pytest.mark.parametrize("command", ["plan", "simulate", "explain"])
def test_each_command_has_help(command: str):
    assert invoke(command, "--help").exit_code == 0
