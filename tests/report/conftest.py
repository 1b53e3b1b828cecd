"""A run's folder as it would have been written, without the run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.conftest import RECIPE

from weft.config.load import build, dump
from weft.report.run import Run, read_run

Folder = Callable[..., Path]

LAST = 12
BEGAN = 1_000_000.0  # seconds of the clock: any


def line(step: int, **changes: object) -> dict[str, object]:
    """One step's record: two layers of four experts, the last of the second dead until step 6."""
    dead = step < 6
    return {
        "step": step,
        "loss": 5.0 / step,
        "tokens": 128 * step,
        "tokens_per_s": 1000.0 + step,
        "step_ms": 100.0,
        "grad_norm": 2.0 / step,
        "lr": 0.01,
        "expert_load_max": 2.0,
        "expert_load_min": 0.0 if dead else 0.5,
        "dead_experts": int(dead),
        "expert_load": [[1.0] * 4, [2.0, 1.0, 1.0, 0.0] if dead else [0.5, 1.5, 1.0, 1.0]],
        "expert_load_entropy": [1.0, 0.9],
        "expert_load_violation": [0.0, 1.0],
        "mfu": None,
        "exposed_comm_ms": 10.0,
        "starved_ms": 1.0,
        "peak_bytes": 2**30,
        "skipped": step == 3,
        "time": BEGAN + step,
        **changes,
    }


def writer(place: Path) -> Folder:
    """Makes the folder of a run of twelve steps, with the steps and events that are asked for."""

    def make(*, last: int = LAST, events: tuple[str, ...] = ("start",), **changes: object) -> Path:
        header = {"run": "tiny", "layout": "sp2 ep2", "world": 2, "routed_layers": [1, 2]}
        header |= {"parameters": 2_000_000, "active_parameters": 500_000, "not_measured": {}}
        lines: list[object] = [{"header": header}]
        lines += [line(step, **changes) for step in range(1, last + 1)]
        lines += [{"step": last, "validation_loss": 1.5}] if last else []
        told = [{"time": BEGAN + last, "event": e, "step": 4, "error": "why"} for e in events]
        for event in told:
            event |= {"folder": "step-00000004", "seconds": 0.5}
        run_dir = place / "run"
        run_dir.mkdir()
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        (run_dir / "events.jsonl").write_text("".join(json.dumps(x) + "\n" for x in told))
        config = build(RECIPE, (f"train.steps={LAST}", f"data.path={place}"))
        (run_dir / "config.toml").write_text(dump(config))
        (run_dir / "summary.json").write_text('{"trigram_loss": 1.75}')
        (run_dir / "sample.txt").write_text("def <script>alert(1)</script> & so on")
        return run_dir

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return writer(tmp_path)


@pytest.fixture
def whole(folder: Folder) -> Run:
    return read_run(folder(events=("start", "checkpoint", "resume", "end")))
