"""`weft slurm RECIPE --nodes N`: the job script of a run, shown or handed to sbatch.

One task is one rank. Five minutes before its time is over Slurm sends SIGTERM to the ranks; they
save and leave with exit code 75, and the job puts itself back into the queue. A rank that fails
takes the others with it, so that no node stays held.
"""

import shlex
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from weft.cli.arguments import Overrides, Recipe
from weft.config.load import load
from weft.config.run import RunConfig
from weft.errors import ConfigError, WeftError

SAVE_SECONDS = 300  # before the end of the job: more than a step and a save take
SCRIPT = """\
#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
{devices}#SBATCH --time={time}
#SBATCH --signal=TERM@{seconds}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={logs}/slurm-%j.txt

srun --kill-on-bad-exit=1 --output={logs}/slurm-%j-rank-%t.txt --open-mode=append \\
    {command}
code=$?
# 75: stopped on request and saved; 143: stopped on request
if [ $code -eq 75 ] || [ $code -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""


def slurm(
    recipe: Recipe,
    nodes: Annotated[int, typer.Option(min=1, help="the nodes of the job")],
    time: Annotated[str, typer.Option(help="the time limit, as Slurm takes it")] = "24:00:00",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the script only")] = False,
    overrides: Overrides = None,
) -> None:
    """Submit a run to Slurm, or show the job script."""
    config = load(recipe, overrides or ())
    text = script(config, recipe, overrides or (), nodes=nodes, time=time)
    if dry_run:
        print(text, end="")
        return
    Path(config.train.run_dir, "logs").mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(["sbatch"], input=text, text=True, check=False)
    except FileNotFoundError:
        raise WeftError(
            "sbatch: not found on this machine; expected a login node of Slurm; try --dry-run"
        ) from None
    raise typer.Exit(done.returncode)


def script(
    config: RunConfig, recipe: str, overrides: list[str] | tuple[str, ...], *, nodes: int, time: str
) -> str:
    """The job script of a run.

    Raises:
        ConfigError: the ranks of the layout do not divide over the nodes.
    """
    ranks = config.parallel.ranks
    if ranks % nodes:
        legal = max(n for n in range(1, nodes + 1) if ranks % n == 0)
        raise ConfigError(
            f"--nodes {nodes}: the layout has {ranks} ranks, which do not divide over them; "
            f"try --nodes {legal}"
        )
    command = ["weft", "train", str(Path(recipe).resolve())]
    for override in overrides:
        command += ["--set", override]
    devices = "" if config.train.device == "cpu" else "#SBATCH --gpus-per-task=1\n"
    return SCRIPT.format(
        name=config.name,
        nodes=nodes,
        tasks=ranks // nodes,
        devices=devices,
        time=time,
        seconds=SAVE_SECONDS,
        logs=Path(config.train.run_dir, "logs").resolve(),
        command=shlex.join(command),
    )
