"""What is shown is what would run."""

from pathlib import Path

import pytest

from weft.cli import show
from weft.compose.first import usual_of
from weft.compose.recipe import plan
from weft.compose.step import training_step
from weft.config.load import load
from weft.errors import ConfigError, LayoutError
from weft.model.count import total
from weft.schedule.render import parse

LAYOUT = ["parallel.sp=2", "parallel.ep=2"]


@pytest.mark.parametrize(
    ("overrides", "layers"),
    [
        ([], ["attention_half", "moe_layer"]),
        (["model.shared_experts=1"], ["attention_half", "shared_moe_layer"]),
        (
            ["model.dense_layers=1", "model.dense_ffn_hidden=8"],
            ["attention_half", "dense_layer", "moe_layer"],
        ),
    ],
)
def test_the_layers_of_the_model_are_shown_and_no_others(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], layers: list[str]
) -> None:
    show.show_layer(str(recipe_file), overrides)
    shown = capsys.readouterr().out
    defined = [line[4:].partition("(")[0] for line in shown.splitlines() if line.startswith("def ")]
    assert defined == layers


def test_every_segment_is_shown_unless_one_is_asked_for(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show.show_program(str(recipe_file), LAYOUT)
    everything = capsys.readouterr().out
    for segment in training_step(plan(load(recipe_file, LAYOUT), 0)).templates:
        if not segment.startswith(("update", "reduce.")):
            assert (f"\n{segment}: " in f"\n{everything}") is (segment == usual_of(segment)), (
                segment
            )
    show.show_program(str(recipe_file), LAYOUT, segment="moe.forward")
    one = capsys.readouterr().out
    assert one.strip() in everything
    assert "all_to_all" in one
    show.show_program(str(recipe_file), LAYOUT, segment="moe.backward@first")
    assert "expert_up.wgrad_first(" in capsys.readouterr().out


def test_the_actions_shown_are_those_that_run(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show.show_schedule(str(recipe_file), LAYOUT, segment="moe.backward", rank=1, actions=True)
    ordered = training_step(plan(load(recipe_file, LAYOUT), 1)).templates["moe.backward"]
    assert parse(capsys.readouterr().out, ordered.program) == ordered


def test_lanes_are_drawn_for_each_group(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show.show_schedule(str(recipe_file), LAYOUT, segment="moe.forward")
    shown = capsys.readouterr().out
    for lane in ("compute", "comm sp", "comm ep"):
        assert lane in shown


def test_the_layout_says_where_everything_lives(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["parallel.dp=2", "parallel.sp=2", "parallel.ep=2"]
    show.show_layout(str(recipe_file), overrides)
    lines = capsys.readouterr().out.splitlines()
    assert "world 4 = dp 2 x sp 2; ep 2, expert replicas 2" in lines[0]
    at = plan(load(recipe_file, overrides), 0)
    assert f"{total(at.shape).all / 1e6:,.2f} M parameters" in lines[1]
    ranks = [line.split() for line in lines[-4:]]
    assert [rank[:4] for rank in ranks] == [
        ["0", "0", "0", "0"],
        ["1", "0", "1", "1"],
        ["2", "1", "0", "0"],
        ["3", "1", "1", "1"],
    ]
    assert [" ".join(rank[4:7]) for rank in ranks] == ["0 to 1", "2 to 3"] * 2


def test_a_bound_on_rows_is_shown_beside_what_there_can_be(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gathered = ["parallel.sp=2", "parallel.ep=2", "parallel.dispatch=all_gather"]
    for overrides, shown in ((gathered, False), ([*gathered, "parallel.row_bound=1.25"], True)):
        show.show_layout(str(recipe_file), overrides)
        room = plan(load(recipe_file, overrides), 0).bounded_rows
        assert (f", room for {room}\n" in capsys.readouterr().out) is shown


def test_what_is_not_there_is_refused(recipe_file: Path) -> None:
    with pytest.raises(ConfigError, match="--segment moe.sideways: expected one of"):
        show.show_program(str(recipe_file), segment="moe.sideways")
    for rank in (-1, 1):
        with pytest.raises(ConfigError, match=f"--rank {rank}: the layout has ranks 0 to 0"):
            show.show_schedule(str(recipe_file), rank=rank)
    with pytest.raises(LayoutError, match="nearest legal value"):
        show.show_layout(str(recipe_file), ["parallel.sp=3"])


def test_memory_shows_each_policy_and_what_it_saves(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show.show_memory(str(recipe_file), [*LAYOUT, "parallel.dispatch=all_gather"])
    lines = {line[:12].strip(): line[12:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines[""] == ["none", "selective", "full"]
    none, selective, full = map(float, lines["together"])
    assert none > selective > full
    assert lines["against none"][0] == "0.0%"
    assert lines["s_2"] == lines["s_2"][:1], "kept by default alone"


def test_memory_shows_a_policy_by_name(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show.show_memory(str(recipe_file), [*LAYOUT, 'overlap.remat=["s_2"]'])
    assert "as named" in capsys.readouterr().out


def test_a_volume_is_shown_as_printed_as_derived_and_as_programmed(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show.show_volume(str(recipe_file), LAYOUT)
    shown = capsys.readouterr().out
    assert "printed  2 b s h (n-1)/n (2 + 2/m) / n" in shown
    assert "derived  b s h (n-1)/n (2 + 2/m) / n" in shown
    assert "program  rows, outputs" in shown


def test_a_pipeline_is_shown_in_units_and_priced(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show.show_pipeline(str(recipe_file), ["parallel.pp=2"])
    shown = capsys.readouterr().out
    assert "rank 0   embedding, layer 0\nrank 1   layer 1, head\n" in shown
    assert shown.count("1f1b: 2 stages") == 2
    assert "rank 0   F0 F1 " in shown
