"""Two schedules are compared as files and as recipes."""

from pathlib import Path

import pytest

from weft.cli import show
from weft.cli.diff import diff_schedule, text_of
from weft.compose.recipe import plan
from weft.compose.step import training_step
from weft.config.load import dump, load
from weft.errors import ConfigError, ProgramError

LAYOUT = ["parallel.sp=2", "parallel.ep=2"]


def save(recipe: Path, path: Path, *overrides: str) -> Path:
    step = training_step(plan(load(recipe, [*LAYOUT, *overrides]), 0))
    path.write_text(
        "\n\n".join(map(show.render_actions, step.templates.values())), encoding="utf-8"
    )
    return path


def test_a_schedule_equals_itself(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = save(recipe_file, recipe_file.with_suffix(".txt"))
    diff_schedule(str(saved), str(saved))
    assert capsys.readouterr().out == "the same schedule\n"


def test_two_orders_differ_and_the_exit_code_says_so(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = save(recipe_file, recipe_file.with_suffix(".one"))
    two = save(recipe_file, recipe_file.with_suffix(".two"), "overlap.order=serial")
    with pytest.raises(SystemExit, match="1"):
        diff_schedule(str(one), str(two))
    assert "moe.backward:" in capsys.readouterr().out


def test_a_recipe_stands_for_its_schedule(recipe_file: Path) -> None:
    assert "moe.forward: " in text_of(str(recipe_file))


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="weft show schedule RECIPE --actions writes one"):
        text_of("nowhere.txt")


def test_a_saved_schedule_is_what_runs(recipe_file: Path) -> None:
    """Saved from one order and loaded over another, it is the order of the step."""
    saved = save(recipe_file, recipe_file.with_suffix(".txt"), "overlap.order=paper")
    wanted = training_step(plan(load(recipe_file, [*LAYOUT, "overlap.order=paper"]), 0))
    config = load(recipe_file, [*LAYOUT, "overlap.order=overlapped", f"overlap.schedule={saved}"])
    found = training_step(plan(config, 0))
    for name, ordered in wanted.templates.items():
        assert found.templates[name].actions == ordered.actions
    assert f'schedule = "{saved}"' in dump(config)


def test_a_saved_schedule_of_another_program_is_refused(recipe_file: Path) -> None:
    saved = save(recipe_file, recipe_file.with_suffix(".txt"), "overlap.remat=selective")
    config = load(recipe_file, [*LAYOUT, f"overlap.schedule={saved}"])
    with pytest.raises(ProgramError, match="moe.forward, action"):
        training_step(plan(config, 0))


def test_a_schedule_that_cannot_be_read_is_refused(recipe_file: Path) -> None:
    config = load(recipe_file, ["overlap.schedule=nowhere.txt"])
    with pytest.raises(ConfigError, match=r"overlap.schedule = \"nowhere.txt\": cannot be read"):
        plan(config, 0)
