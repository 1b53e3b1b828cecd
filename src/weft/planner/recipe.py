"""A plan as a recipe that `weft train` runs: the tables of its file."""

from typing import Any

from weft.planner.search import Choice, Wanted


def tree_of(choice: Choice, wanted: Wanted) -> dict[str, Any]:
    """The tables of a recipe; what is not planned (rates, length of the run) is a first guess."""
    parallel: dict[str, Any] = {"dp": choice.dp, "sp": choice.sp, "ep": choice.ep}
    if choice.ep > 1:
        parallel["dispatch"] = choice.dispatch
    if choice.pp > 1:
        parallel["pp"] = choice.pp
    if choice.chunks > 1:
        parallel |= {"chunks": choice.chunks, "pipeline": "interleaved"}
    return {
        "name": f"{wanted.name}-{wanted.cluster.ranks}x{wanted.cluster.machine.name}".lower(),
        "model": {"preset": wanted.name},
        "parallel": parallel,
        "overlap": {"remat": choice.remat},
        "compression": {"gradients": "bf16"} if choice.dp * choice.sp > 1 else {},
        "data": {"source": "stdlib", "sequence": wanted.sequence},
        "optim": {"lr": 3e-4, "warmup_steps": 100},
        "train": {
            "steps": 1000,
            "global_batch": wanted.batch,
            "micro_batch": choice.micro_batch,
            "precision": "bfloat16",
            "eval_every": 100,
            "checkpoint_every": 100,
        },
    }
