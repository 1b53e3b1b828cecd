"""How much communication each order leaves exposed, in simulation at nominal prices.

    scripts/bench orders [--layers 24] [--micro-batches 3]
    scripts/bench orders --machine H800 [--layers 24] [--micro-batches 3]
    scripts/bench orders --split [--machine H200]

For each model, way to its experts and keep-set: microseconds of exposed communication a layer, of
its forward and of its backward, for a rank of sp 8 ep 8 and one sequence of 8192. `across` posts
the first collective of a backward in the segment before; `merge` runs a micro-batch's backward
beside the next one's forward, and its figure is that of such a pair of layers.

With a machine whole steps are played at its prices, the order by hand beside the one that is found.

`--split` asks instead what pairs in chunks gain, for all models of the paper's Table 2: a layer's
time and its exposed communication, nominal and at the prices of a machine, where every kernel and
every message costs its start as well.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from weft.compose.order import named_order
from weft.compose.plan import Plan, Update, sizes
from weft.compose.price import Nominal, Pricing, nominal_pricing
from weft.compose.recipe import arithmetic, shape
from weft.compose.step import Step, training_step
from weft.compose.timeline import place_step
from weft.config.presets import preset
from weft.parallel.layout import Dispatch, Layout
from weft.planner.cost import Rates, pricing, rates
from weft.planner.machine import machine
from weft.planner.systems import TABLE_2
from weft.planner.whole import play_step
from weft.schedule.action import is_collective
from weft.schedule.decompose import BACKWARD, FORWARD
from weft.schedule.render import place

MODELS = ("mixtral-8x7b", "qwen3-30b-a3b", "deepseekmoe")
VARIANTS = {
    "serial": {"order": "serial"},
    "overlapped": {"order": "overlapped"},
    "paper": {"order": "paper"},
    "auto": {"order": "auto"},
    "auto across": {"order": "auto", "across": True},
    "auto merge": {"order": "auto", "across": True, "merge": True},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposed:
    """Microseconds a layer: exposed communication, and all that runs in a pair of its passes."""

    forward: float
    backward: float
    pair: float
    wire: float


def plan(model: str, dispatch: Dispatch, layers: int, micro_batches: int) -> Plan:
    config = preset(model)
    return Plan(
        shape=replace(shape(config), layers=layers),
        arithmetic=arithmetic(config),
        layout=Layout(sp=8, ep=8, dispatch=dispatch),
        rank=0,
        sequence=8192,
        micro_batch=1,
        micro_batches=micro_batches,
        precision="bfloat16",
        order="serial",
        update=Update(beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0),
    )


def exposed(step: Step) -> Exposed:
    """Averages over the layers of a step; pairs are those of the middle of a step."""
    found = {"forward": 0.0, "backward": 0.0, "pair": 0.0}
    pairs = 0
    for placed in place_step(step, Nominal()):
        kind = _kind(placed.template)
        if kind:
            pairs += kind == "pair"
            found[kind] += sum(stop - start for start, stop in placed.timeline.exposed)
    passes = step.plan.shape.layers * step.plan.local_micro_batches
    forward, backward = (found[k] / (passes - pairs) * 1e6 for k in ("forward", "backward"))
    pair = found["pair"] / pairs * 1e6 if pairs else forward + backward
    return Exposed(forward=forward, backward=backward, pair=pair, wire=_wire(step))


def _kind(template: str) -> str:
    """Whether a template is a layer's forward, its backward, or one of either."""
    parts = template.split("+")
    if parts[0].startswith(("embedding", "head", "update")):
        return ""
    if any(part.endswith(".forward") for part in parts):
        return "pair" if len(parts) > 1 else "forward"
    return "backward"


def _wire(step: Step) -> float:
    """All communication of a layer's forward and backward."""
    n, pricing = sizes(step.plan), nominal_pricing()
    layers = [o.program for name, o in step.templates.items() if _kind(name)]
    return 1e6 * sum(pricing(t, p, n) for p in layers for t in p.tasks if is_collective(t))


def lines(layers: int, micro_batches: int) -> Iterator[str]:
    titles = "".join(f"{name:>13}" for name in VARIANTS)
    for dispatch in Dispatch:
        for remat in ("none", "selective"):
            yield f"{dispatch.value}, remat {remat}: us exposed a layer, forward + backward = both"
            yield f"{'':<15}{'wire':>6}{titles}"
            for model in MODELS:
                base = replace(plan(model, dispatch, layers, micro_batches), remat=remat)
                found = {n: exposed(training_step(replace(base, **v))) for n, v in VARIANTS.items()}
                yield f"{model:<15}{found['serial'].wire:>6.0f}" + "".join(
                    f"{_cell(name, value):>13}" for name, value in found.items()
                )
            yield ""


def steps_on(found: Rates, layers: int, micro_batches: int) -> Iterator[str]:
    """A step of each model of Table 2 by hand and by search: milliseconds, and what is exposed."""
    names = ("serial", "paper", "overlapped", "auto")
    yield f"{found.machine.name}, n = 8, all-gather, selective: ms a step (exposed)"
    yield f"{'':<15}" + "".join(f"{name:>17}" for name in names) + f"{'auto to hand':>14}"
    for model in TABLE_2:
        base = replace(plan(model, Dispatch.ALL_GATHER, layers, micro_batches), remat="selective")
        took = {}
        for name in names:
            made = replace(base, order=name)
            took[name] = play_step(training_step(made, named_order(made, pricing(found))), found)
        cells = (
            f"{w.seconds * 1e3:.1f} ({sum(w.exposed.values()) * 1e3:.1f})" for w in took.values()
        )
        gain = took["auto"].seconds / took["paper"].seconds - 1
        yield f"{model:<15}" + "".join(f"{cell:>17}" for cell in cells) + f"{gain:>14.1%}"


def _cell(name: str, value: Exposed) -> str:
    if "merge" in name:
        return f"{value.pair:.0f}"
    return f"{value.forward:.0f}+{value.backward:.0f}={value.forward + value.backward:.0f}"


# ---- chunks --------------------------------------------------------------------------------------

CUTS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "whole": ((), 2),
    "qkv, out": (("qkv", "out"), 2),
    "dispatch, combine": (("dispatch", "combine"), 2),
    "forward": (tuple(FORWARD), 2),
    "forward in 4": (tuple(FORWARD), 4),
    "both": ((*FORWARD, *BACKWARD), 2),
}


def split_lines(on: str) -> Iterator[str]:
    """A table for each way to the experts and each way of pricing."""
    known = pricing(rates(machine(on)))
    for dispatch in (Dispatch.ALL_GATHER, Dispatch.ALL_TO_ALL):
        for title, asked in (("nominal", nominal_pricing()), (on, known)):
            yield f"{dispatch.value}, {title}: us of a layer (exposed), forward and backward"
            yield f"{'':<15}" + "".join(f"{name:>19}" for name in CUTS)
            for model in TABLE_2:
                base = replace(
                    plan(model, dispatch, 1, 1), order="auto", remat="selective", across=True
                )
                cells = [
                    _split_cell(replace(base, split=pairs, chunks=chunks), asked)
                    for pairs, chunks in CUTS.values()
                ]
                for way, row in zip(("forward", "backward"), zip(*cells, strict=True), strict=True):
                    name = model if way == "forward" else ""
                    yield f"{name:<15}" + "".join(f"{cell:>19}" for cell in row)
            yield ""


def _split_cell(asked: Plan, prices: Pricing) -> tuple[str, str]:
    """Time and exposed communication of a layer's forward and of its backward."""
    n = sizes(asked)
    total = {"forward": [0.0, 0.0], "backward": [0.0, 0.0]}
    for name, ordered in training_step(asked, named_order(asked, prices)).templates.items():
        kind = _kind(name)
        if kind:
            line = place(ordered, lambda task, p=ordered.program: prices(task, p, n))
            total[kind][0] += 1e6 * line.seconds
            total[kind][1] += 1e6 * sum(stop - start for start, stop in line.exposed)
    forward, backward = (f"{time:.0f} ({exposed:.0f})" for time, exposed in total.values())
    return forward, backward


def told(options: argparse.Namespace) -> Iterator[str]:
    """The lines that were asked for."""
    if options.split:
        return split_lines(options.machine or "H200")
    if options.machine is None:
        return lines(options.layers, options.micro_batches)
    return steps_on(rates(machine(options.machine)), options.layers, options.micro_batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--split", action="store_true", help="layers with pairs in chunks")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--micro-batches", type=int, default=3)
    parser.add_argument("--machine", help="whole steps, or chunks, at its prices")
    options = parser.parse_args()
    for line in told(options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
