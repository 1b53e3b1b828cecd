"""`weft bench ceilings|executor|comm|calibrate|step|moe-layer|attention`: how fast this is."""

import os
from pathlib import Path
from typing import Annotated

import typer

from weft.cli.arguments import Overrides, Recipe
from weft.cli.settled import settle
from weft.config.load import load
from weft.errors import ConfigError
from weft.planner.machine import machine as find_machine
from weft.planner.machine import nearest

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)

JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="append the figures to this file, one JSON object a line"),
]


@app.command("executor")
def bench_executor(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="how often to measure")] = 30,
    json: JsonFile = None,
) -> None:
    """Host time that the executor adds to each task, and on CUDA to each lane crossing."""
    from weft.bench import executor  # torch takes seconds to import
    from weft.bench.record import append, entry
    from weft.runtime.backends import pick_device, prepare

    where = pick_device(device, 0)
    prepare(where, threads=1, neighbours=1)
    found = executor.measure(where, repeats=repeats)
    print(executor.render(found))
    if json is not None:
        append(json, entry("executor", where, executor.record(found)))


@app.command("ceilings")
def bench_ceilings(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    json: JsonFile = None,
) -> None:
    """What a device reaches at best, measured and stored: `weft bench step` divides by it."""
    from dataclasses import asdict

    import torch  # takes seconds to import

    from weft.bench import ceilings
    from weft.bench.record import append, entry
    from weft.runtime.backends import pick_device, prepare

    where = pick_device(device, 0)
    prepare(where, threads=None, neighbours=1)
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    found = ceilings.measure(where, dtype)
    print(found.text())
    if json is not None:
        append(json, entry("ceilings", where, asdict(found)))


@app.command("comm")
def bench_comm(
    ranks: Annotated[int, typer.Option(min=2, help="how many take part, on this machine")] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="how often to measure")] = 20,
    json: JsonFile = None,
) -> None:
    """Collectives by size over each wire of this machine, and the sum of gradients."""
    from weft.bench import comm  # torch takes seconds to import
    from weft.runtime.backends import pick_device

    work = comm.work_on(pick_device(device, ranks - 1), repeats=repeats)
    comm.measure_here(comm.Order(ranks=ranks, device=device, work=work, file=json, say=print))


@app.command("calibrate")
def bench_calibrate(
    out: Annotated[Path, typer.Argument(help="the machine file to write, NAME.toml")],
    nproc: Annotated[int, typer.Option(min=1, help="ranks, a device each")] = 1,
    machine: Annotated[
        str, typer.Option(help="a known machine whose numbers on paper are kept; none: nobody's")
    ] = "none",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Fill a machine file: products, attention, passes, collectives and host time, as weft runs
    them; `weft plan` and `weft simulate` take it as --machine.
    """
    known = None if machine == "none" else machine
    if known is not None:
        find_machine(known)
    if out.suffix != ".toml" or not out.parent.is_dir():
        raise ConfigError(
            f"weft bench calibrate {out}: expected a .toml file in a folder that exists; "
            "try machine.toml"
        )
    from weft.bench import ranks  # torch takes seconds to import

    ranks.calibrate_here(ranks.Calibration(known=known, device=device, file=out, say=print), nproc)


@app.command("step")
def bench_step(
    recipe: Recipe,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="steps to time after the warm-up")] = 20,
    documents: Annotated[int, typer.Option(min=1, help="documents in each sequence")] = 1,
    json: JsonFile = None,
) -> None:
    """Time of every operator and of the whole step of a recipe, on random tokens."""
    _measure("step", recipe, overrides, steps, documents, json)


@app.command("moe-layer")
def bench_moe_layer(
    recipe: Recipe,
    overrides: Overrides = None,
    repeats: Annotated[int, typer.Option(min=1, help="how often to measure")] = 20,
    json: JsonFile = None,
) -> None:
    """The experts of one layer alone, from routing to combination: time, rate, what is kept."""
    _measure("moe-layer", recipe, overrides, repeats, 1, json)


@app.command("attention")
def bench_attention(
    recipe: Recipe,
    overrides: Overrides = None,
    repeats: Annotated[int, typer.Option(min=1, help="how often to measure")] = 20,
    documents: Annotated[int, typer.Option(min=1, help="documents in each sequence")] = 1,
    json: JsonFile = None,
) -> None:
    """The attention half of one layer alone, norms and projections included."""
    _measure("attention", recipe, overrides, repeats, documents, json)


def _measure(
    what: str,
    recipe: str,
    overrides: list[str] | None,
    steps: int,
    documents: int,
    file: Path | None,
) -> None:
    config = load(recipe, overrides or ())
    from weft.bench import ranks  # after the recipe is found good: torch takes seconds to import
    from weft.runtime.backends import accelerator, pick_device
    from weft.trainer.launch import check_processes

    config = settle(config, nearest(accelerator(pick_device(config.train.device, 0))))

    order = ranks.Order(
        what=what, config=config, steps=steps, documents=documents, file=file, say=print
    )
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        ranks.measure_here(order)
        return
    world = check_processes(config, int(os.environ["WORLD_SIZE"]))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    ranks.measure_rank(int(os.environ["RANK"]), world, "env://", order, local_rank=local)
