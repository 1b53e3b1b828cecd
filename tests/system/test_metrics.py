"""What a run writes down of itself and shows: every field, each step once, lines or a bar."""

import json
import math
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.system.conftest import Command, Recipe

from weft.config.load import dump, load
from weft.telemetry import metrics
from weft.testing.kill import Run, finish

STEP_FIELDS = {
    "step": int,
    "loss": float,
    "loss_hex": str,
    "tokens": int,
    "tokens_per_s": float,
    "step_ms": float,
    "grad_norm": float,
    "lr": float,
    "aux_loss": float,
    "z_loss": float,
    "expert_load_max": float,
    "expert_load_min": float,
    "dead_experts": int,
    "dropped": list,
    "expert_load": list,
    "expert_load_entropy": list,
    "expert_load_violation": list,
    "mfu": type(None),  # a CPU has no peak rate that weft knows
    "exposed_comm_ms": float,
    "starved_ms": float,
    "peak_bytes": int,
    "skipped": bool,
    "time": float,
}
LAYOUT = ("parallel.sp=2", "parallel.ep=2")


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_every_step_has_every_field_and_every_null_its_reason(recipe: Recipe) -> None:
    config = recipe("run", *LAYOUT, "train.steps=6", "train.eval_every=3", "model.z_coef=0.001")
    finish(config)
    run_dir = Path(config.train.run_dir)
    header, *records = lines_of(run_dir / metrics.FILE)
    steps = [record for record in records if "loss" in record]
    validations = [record for record in records if "validation_loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in validations] == [3, 6]
    for record in steps:
        assert {k: type(v) for k, v in record.items()} == STEP_FIELDS
        assert record["loss"] == float.fromhex(record["loss_hex"])
        assert record["tokens"] == 4 * 32 * record["step"]
        assert 0 <= record["expert_load_min"] <= 1 <= record["expert_load_max"] <= 4
        assert record["exposed_comm_ms"] > 0  # two ranks on a wire wait for something
        assert record["peak_bytes"] > 1 << 20
    explained = header["header"]["not_measured"]
    nulls = {key for record in steps for key, value in record.items() if value is None}
    assert nulls == set(explained) == {"mfu"}
    assert all(explained.values())
    assert header["header"]["layout"] == "sp2 ep2 all_to_all"
    assert load(run_dir / "config.toml") == config
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["last"] == steps[-1]
    assert summary["validation_loss"] == validations[-1]["validation_loss"]
    assert 0 < summary["trigram_loss"] < math.log(257)


def test_a_resumed_run_has_each_line_once(recipe: Recipe) -> None:
    config = recipe("run", "train.steps=12", "train.eval_every=3", "train.log_every=1")
    path = Path(config.train.run_dir) / metrics.FILE
    for step in (5, 6, 10):
        run = Run(config)
        run.reaches(step)
        run.kill([0])
        run.wait()
        with path.open("a") as file:
            file.write('{"step": 99, "lo')  # a line cut short
    finish(config)
    header, *records = lines_of(path)
    assert header["header"]["resumed_from_step"] in (4, 8, 12)
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))
    assert [r["step"] for r in records if "validation_loss" in r] == [3, 6, 9, 12]


# ---- what a person sees ----


def test_lines_where_nobody_is_looking(weft: Command, recipe_file: Path) -> None:
    settings = ("train.steps=8", "train.log_every=4", "train.eval_every=8", "train.sample_bytes=12")
    overrides = [word for setting in settings for word in ("--set", setting)]
    answer = weft("train", str(recipe_file), *overrides)
    assert (answer.code, answer.stderr) == (0, "")
    assert "\x1b" not in answer.stdout
    assert "\r" not in answer.stdout
    steps = [line for line in answer.stdout.splitlines() if "grad norm" in line]
    assert [line.split()[1] for line in steps] == ["4/8", "8/8"]
    for text in (
        "M parameters",
        "layout one rank on 1 rank(s), cpu, float32, overlapped order",
        "step 8: validation loss",
        "step 8: checkpoint",
        "trigram baseline",
        "a sample, continuing 'def ':",
        "everything is in",
    ):
        assert text in answer.stdout
    again = weft("train", str(recipe_file), *overrides)
    assert "all 8 steps are done already; raise train.steps to go on" in again.stdout
    assert again.code == 0


@pytest.mark.parametrize("layout", [(), LAYOUT], ids=["one rank", "two ranks"])
def test_a_bar_on_a_terminal(recipe: Recipe, tmp_path: Path, layout: tuple[str, ...]) -> None:
    """Two ranks too: the first keeps the terminal."""
    config = recipe("run", *layout, "train.steps=3", "train.eval_every=3")
    path = tmp_path / "tiny.toml"
    path.write_text(dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "weft", "train", str(path)]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = read_terminal(ours, process)
    os.close(ours)
    assert process.returncode == 0, shown
    assert "\x1b[" in shown
    assert "training" in shown
    assert "3/3" in shown
    assert "loss" in shown
    assert "grad norm" not in shown
    assert "step 3: validation loss" in shown


def read_terminal(descriptor: int, process: subprocess.Popen[bytes]) -> str:
    """All that a process writes to its terminal until it ends."""
    shown = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ready, _, _ = select.select([descriptor], [], [], 0.1)
        try:
            shown += os.read(descriptor, 1 << 16) if ready else b""
        except OSError:  # the last process with the other end has gone
            return shown.decode()
        if not ready and process.poll() is not None:
            return shown.decode()
    process.kill()
    raise AssertionError(shown.decode())
