"""`weft plan`, `weft simulate`, `weft explain`: what a layout costs before a GPU is asked."""

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.arguments import Overrides, Recipe
from weft.cli.settled import load_settled
from weft.compose.recipe import arithmetic, shape
from weft.compose.recipe import plan as plan_of_recipe
from weft.compose.step import Step, training_step
from weft.config.load import build, dump
from weft.config.presets import preset
from weft.errors import ConfigError
from weft.planner import report
from weft.planner.cluster import cluster
from weft.planner.cost import Rates, rates
from weft.planner.machine import machine, names
from weft.planner.memory import memory
from weft.planner.recipe import tree_of
from weft.planner.search import Wanted, search
from weft.planner.simulate import Job, Simulated, Studio
from weft.planner.trace import read_trace, spans
from weft.planner.whole import Whole, play_step
from weft.telemetry.trace import write_trace


def plan(
    model: Annotated[str, typer.Option(help="a preset, as in internal-352b")],
    on: Annotated[str, typer.Option("--cluster", help="nodes x ranks x machine")],
    batch: Annotated[int, typer.Option(min=1, help="sequences of one step")],
    seq: Annotated[int, typer.Option(min=1, help="positions of a sequence")] = 8192,
    imbalance: Annotated[
        float, typer.Option(min=1.0, help="rows of the fullest rank over the mean, for memory")
    ] = 1.5,
    out: Annotated[Path | None, typer.Option(help="write the best plan as a recipe")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="draw the memory of the best plans by part as PNG")
    ] = None,
) -> None:
    """Search layout, dispatch, rematerialisation, micro-batch and pipeline for a cluster."""
    asked = preset(model.lower())  # papers write their names with capitals
    wanted = Wanted(
        name=model,
        shape=shape(asked),
        arithmetic=arithmetic(asked),
        cluster=cluster(on),
        batch=batch,
        sequence=seq,
        imbalance=imbalance,
    )
    found = search(wanted, rates(wanted.cluster.machine))
    print(report.plan_text(found))
    if not found.best:
        raise ConfigError(
            f"no layout of {model} fits into {on} with {batch} sequences; try more nodes"
        )
    if out is not None:
        recipe = build(tree_of(found.best[0].choice, wanted))
        out.write_text(dump(recipe), encoding="utf-8")
        print(f"\nwritten: {out}; weft train {out} runs it")
    if picture is not None:
        from weft.planner.picture import draw_memory  # matplotlib takes a second to import

        held = {best.choice.text(): best.memory for best in found.best}
        print(f"drawn: {draw_memory(held, picture, room=wanted.room)}")


def simulate(
    recipe: Recipe,
    overrides: Overrides = None,
    on: Annotated[str, typer.Option("--machine", help="a machine, or its .toml file")] = "H200",
    imbalance: Annotated[
        float, typer.Option(min=1.0, help="rows of the fullest rank over the mean, for memory")
    ] = 1.0,
    trace: Annotated[Path | None, typer.Option(help="write the step as a Perfetto trace")] = None,
    over: Annotated[
        Path | None, typer.Option(help="a trace that weft trace measured, to draw beside it")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="draw the lanes of rank 0 as PNG")] = None,
) -> None:
    """One step of a recipe at the prices of a machine: time, memory, exposed communication."""
    priced = machine(on)
    config = load_settled(recipe, overrides, priced)
    found = rates(priced, attention=config.kernels.attention)
    job = Job(plan=plan_of_recipe(config, 0))
    done, step = played(job, found)
    held = memory(step, job.plan, imbalance=imbalance)
    print(f"{config.name} on {job.ranks} x {found.machine.name}")
    print("\n".join((*report.step_lines(done, found.machine), report.memory_line(held))))
    lanes = list(done.spans if isinstance(done, Whole) else spans(done))
    if trace is not None:
        about = {"recipe": config.name, "machine": found.machine.name, "times": "simulated"}
        write_trace(trace, lanes, about)
        print(f"trace    {trace}")
    if picture is not None:
        from weft.planner.picture import draw_timelines  # matplotlib takes a second to import

        drawn = {f"simulated, {found.machine.name}": [s for s in lanes if s.rank == 0]}
        if over is not None:
            drawn["measured"] = [s for s in read_trace(over) if s.rank == 0]
        longest = max(s.stop for own in drawn.values() for s in own)
        print(f"drawn    {draw_timelines(drawn, picture, seconds=longest)}")


def played(job: Job, found: Rates) -> tuple[Simulated | Whole, Step]:
    """One stage as its executor runs it, task by task; a pipeline by the segments of its stages."""
    if job.plan.layout.pp == 1:
        step = training_step(job.plan)
        return play_step(step, found), step
    studio = Studio()
    return studio.simulate(job, found), studio.compose(job.plan, found)


def explain(
    what: Annotated[str, typer.Argument(help="R: the scale-up ratio")],
    model: Annotated[str, typer.Option(help="a preset")] = "internal-352b",
) -> None:
    """Explain a quantity of the paper: R, whether links are fast enough for a model's experts."""
    if what != "R":
        raise ConfigError(f"weft explain {what}: nothing of that name; try weft explain R")
    print(report.ratio_text(shape(preset(model)), [machine(name) for name in names()]))
