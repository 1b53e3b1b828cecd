from pathlib import Path

from weft.planner.memory import Memory
from weft.planner.picture import draw_figures, draw_memory, draw_timelines
from weft.planner.row import Key, Row
from weft.telemetry.trace import COMPUTE, Span

PNG = b"\x89PNG"


def rows() -> list[Row]:
    made = []
    for config in ("strong", "weak"):
        for system in ("megascale", "megatron"):
            for gpus in (480, 960):
                key = Key("fig12", system, "internal-352b", "H800", gpus, config, "ktok_s")
                made.append(Row(key=key, unit="k tokens/s", predicted=gpus * 1.0))
    told = Key("table3", "megascale", "internal-352b", "H800", 480, "strong", "ktok_s")
    made.append(Row(key=told, unit="k tokens/s", predicted=480.0, published=500.0))
    bars = Key("fig7", "megascale", "mixtral-8x7b", "H800", 8, "all_gather", "time_us")
    made.append(Row(key=bars, unit="us", predicted=700.0, published=768.0))
    return made


def test_every_figure_is_drawn(tmp_path: Path):
    drawn = list(draw_figures(rows(), tmp_path / "plots"))
    assert {path.name for path in drawn} == {"fig12.png", "published.png", "fig7.png"}
    assert all(path.read_bytes().startswith(PNG) for path in drawn)


def test_memory_is_drawn_by_part(tmp_path: Path):
    held = Memory(
        weights=2**30, gradients=2**31, optimizer=2**31, activations=2**32, dispatch=1, workspace=1
    )
    path = draw_memory({"plan": held}, tmp_path / "memory.png", room=80e9)
    assert path.read_bytes().startswith(PNG)


def test_two_timelines_lie_one_over_the_other(tmp_path: Path):
    lanes = [
        Span(rank=0, lane=lane, name=name, start=start, stop=start + 0.5, detail={})
        for lane, name, start in ((COMPUTE, "add", 0.0), ("comm ep", "all_gather rows", 0.2),
                                  (COMPUTE, "wait ep", 0.5))
    ]  # fmt: skip
    traces = {"simulated": lanes, "measured": lanes}
    path = draw_timelines(traces, tmp_path / "both.png", seconds=1.0)
    assert path.read_bytes().startswith(PNG)
