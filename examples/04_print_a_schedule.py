"""The backward of a layer on its lanes, twice: one operator after the other, and overlapped.

No torch and no accelerator: a schedule is plain data, priced operator by operator for a nominal
one. Letters are what computes, digits what travels; `^` marks communication that nothing hides.

    python examples/04_print_a_schedule.py
"""

from collections.abc import Callable

from weft.compose.plan import sizes
from weft.compose.price import Nominal, price
from weft.compose.recipe import plan
from weft.compose.step import training_step
from weft.config.load import build
from weft.config.run import RunConfig
from weft.graph.program import Task
from weft.schedule.action import Ordered
from weft.schedule.render import place, render_seconds, render_timeline

RECIPE = {
    "name": "mixtral",
    "model": {"preset": "mixtral-8x7b"},
    "parallel": {"sp": 8, "ep": 8},
    "data": {"sequence": 8192},
    "optim": {"lr": 3e-4, "warmup_steps": 100},
    "train": {
        "steps": 1000,
        "global_batch": 8,
        "micro_batch": 1,
        "precision": "bfloat16",
        "eval_every": 100,
        "checkpoint_every": 100,
    },
}


def backward(config: RunConfig) -> tuple[Ordered, Callable[[Task], float]]:
    """The backward of one expert layer in the order that a recipe asks for, and what tasks cost."""
    at = plan(config, 0)
    ordered = training_step(at).templates["moe.backward"]
    nominal = Nominal()
    return ordered, lambda task: price(task, ordered.program, sizes(at), nominal)


if __name__ == "__main__":
    seconds = {}
    for order in ("serial", "overlapped"):
        ordered, cost = backward(build(RECIPE, [f"overlap.order={order}"]))
        seconds[order] = place(ordered, cost).seconds
        print(f"---- {order}\n\n{render_timeline(ordered, cost)}\n")
    saved = 1 - seconds["overlapped"] / seconds["serial"]
    before, after = (render_seconds(seconds[order]) for order in ("serial", "overlapped"))
    print(f"overlap takes the backward of a layer from {before} to {after}: {saved:.0%} less.")
    print("The bits are the same: sums keep their order, only the clock changes.")
