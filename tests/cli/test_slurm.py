"""The job script asks for what the layout needs, and goes on when its time is over."""

import subprocess
from pathlib import Path

import pytest

from weft.cli.slurm import script, slurm
from weft.config.load import load
from weft.errors import ConfigError, WeftError


def test_the_script_starts_one_task_a_rank_and_requeues(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["parallel.dp=4", "name=a-run"]
    slurm(str(recipe_file), nodes=2, time="1:00:00", dry_run=True, overrides=overrides)
    shown = capsys.readouterr().out
    for line in (
        "#SBATCH --job-name=a-run",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=2",
        "#SBATCH --time=1:00:00",
        "#SBATCH --signal=TERM@300",
    ):
        assert line in shown.splitlines()
    assert f"weft train {recipe_file} --set parallel.dp=4 --set name=a-run" in shown
    assert "--gpus-per-task" not in shown
    checked = subprocess.run(["bash", "-n"], input=shown, text=True, check=False)
    assert checked.returncode == 0


def test_ranks_that_may_have_a_gpu_ask_for_one(recipe_file: Path) -> None:
    config = load(recipe_file, ["train.device=cuda"])
    assert "#SBATCH --gpus-per-task=1" in script(config, "r.toml", (), nodes=1, time="1")


def test_ranks_that_do_not_divide_over_the_nodes_are_refused(recipe_file: Path) -> None:
    with pytest.raises(ConfigError, match="try --nodes 2"):
        slurm(str(recipe_file), nodes=3, dry_run=True, overrides=["parallel.dp=4"])


def test_a_machine_without_slurm_is_told_so(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(WeftError, match="sbatch: not found"):
        slurm(str(recipe_file), nodes=1)
