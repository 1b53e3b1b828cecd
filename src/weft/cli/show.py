"""`weft show layer|program|schedule|pipeline|memory|layout RECIPE`: the score, without torch."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated

import typer

from weft.cli.arguments import Overrides, Recipe
from weft.cli.settled import load_settled
from weft.compose import segment
from weft.compose.first import usual_of
from weft.compose.keep import activations, held_bytes, kept_bytes, rematerialised
from weft.compose.plan import Plan, sizes
from weft.compose.price import Nominal, nominal_pricing, price
from weft.compose.recipe import plan as make_plan
from weft.compose.segment import Segment as SegmentOf
from weft.compose.stage import Chunk, chunks_of
from weft.compose.stages import slots_of
from weft.compose.step import Step, owned_parameters, training_step
from weft.compose.templates import layer_weights
from weft.compose.volume import volumes
from weft.errors import ConfigError
from weft.graph.render import render_program
from weft.model import layer
from weft.model.count import active, token_flops, total
from weft.model.families import LAYERS
from weft.parallel.zero import Bucket
from weft.schedule.pipeline import order_of
from weft.schedule.render import render_actions, render_seconds, render_timeline
from weft.schedule.stages import render as render_stages
from weft.schedule.stages import simulate, units

app = typer.Typer(
    help="Print the layer, its program, its schedule or its layout.", no_args_is_help=True
)

Segment = Annotated[
    str, typer.Option(help="a segment of the step, as in moe.backward; all of them if left out")
]
RankOption = Annotated[int, typer.Option(help="the rank to look from")]


@app.command("layer")
def show_layer(recipe: Recipe, overrides: Overrides = None) -> None:
    """The layer functions this model uses, as they are written."""
    plan = make_plan(load_settled(recipe, overrides), 0)
    kinds = dict.fromkeys(plan.shape.kind(i) for i in range(plan.shape.layers))
    functions = [layer.attention_half, *(LAYERS[kind] for kind in kinds)]
    print("\n\n".join(inspect.getsource(f).rstrip() for f in functions))


@app.command("program")
def show_program(
    recipe: Recipe, overrides: Overrides = None, segment: Segment = "", rank: RankOption = 0
) -> None:
    """Every operator of each segment, lowered to this layout."""
    step = _step(recipe, overrides, rank)
    print("\n\n".join(render_program(step.templates[n].program) for n in _segments(step, segment)))


@app.command("schedule")
def show_schedule(
    recipe: Recipe,
    overrides: Overrides = None,
    segment: Segment = "",
    rank: RankOption = 0,
    actions: Annotated[
        bool, typer.Option("--actions", help="list every action instead of drawing lanes")
    ] = False,
) -> None:
    """The order of each segment on its lanes, at nominal prices."""
    step = _step(recipe, overrides, rank)
    n, nominal = sizes(step.plan), Nominal()
    texts = []
    for name in _segments(step, segment):
        ordered = step.templates[name]
        cost = partial(price, program=ordered.program, n=n, nominal=nominal)
        texts.append(render_actions(ordered) if actions else render_timeline(ordered, cost))
    print("\n\n".join(texts))


@app.command("memory")
def show_memory(recipe: Recipe, overrides: Overrides = None) -> None:
    """What a layer keeps for its backward, by value and policy, for one micro-batch."""
    plan = make_plan(load_settled(recipe, overrides), 0)
    weights = layer_weights(owned_parameters(plan)[0])
    layers = {kind: segment.layer(plan, kind, names) for kind, names in weights.items()}
    policies = dict.fromkeys(("none", "selective", "full", plan.remat))
    kept = {policy: rematerialised(replace(plan, remat=policy), layers) for policy in policies}
    texts = [_memory_lines(plan, layers[kind], [k[kind] for k in kept.values()], list(kept))
             for kind in layers]  # fmt: skip
    print("\n\n".join("\n".join(lines) for lines in texts))


def _memory_lines(
    plan: Plan, plain: SegmentOf, layers: list[SegmentOf], policies: list[str | tuple[str, ...]]
) -> Iterable[str]:
    every = kept_bytes(plan, plain.forward, activations(plain.forward))
    held = [held_bytes(plan, layer) for layer in layers]
    names = sorted({n for column in held for n in column}, key=lambda n: (-_most(held, n), n))
    titles = [policy if isinstance(policy, str) else "as named" for policy in policies]
    yield f"{plain.forward.name.partition('.')[0]}: MiB a layer and micro-batch"
    yield ""
    yield f"{'':<12}" + "".join(f"{title:>11}" for title in titles)
    for name in names:
        yield f"{name:<12}" + "".join(_mebibytes(column.get(name)) for column in held)
    totals = [sum(column.values()) for column in held]
    yield f"{'together':<12}" + "".join(map(_mebibytes, totals))
    yield _saving("against none", totals, totals[0])
    yield _saving("against all", totals, sum(every.values()))
    yield f"all: every activation once, {sum(every.values()) / 2**20:.1f} MiB"


def _most(columns: list[Mapping[str, int]], name: str) -> int:
    return max(column.get(name, 0) for column in columns)


def _mebibytes(count: int | None) -> str:
    return f"{'':>11}" if count is None else f"{count / 2**20:>11.2f}"


def _saving(title: str, totals: list[int], whole: int) -> str:
    return f"{title:<12}" + "".join(f"{total / whole - 1:>11.1%}" for total in totals)


@app.command("volume")
def show_volume(recipe: Recipe, overrides: Overrides = None) -> None:
    """What one layer's forward brings a rank: the paper's formula, the count, and its bytes."""
    print("\n".join(_volume_lines(make_plan(load_settled(recipe, overrides), 0))))


def _volume_lines(plan: Plan) -> Iterable[str]:
    yield f"{plan.layout.name()}: one layer and micro-batch, forward, to each rank, even routing"
    yield f"{'':<11}{'axis':<6}{'formula':<38}{'elements':>16}{'bytes (bf16)':>16}"
    for line in volumes(plan):
        v = line.volume
        head = f"{v.operator:<11}{v.axis:<6}"
        yield f"{head}{'printed  ' + v.printed_text:<38}{float(v.printed):>16,.0f}"
        yield (
            f"{'':<17}{'derived  ' + v.derived_text:<38}{float(v.derived):>16,.0f}"
            f"{line.derived_bytes:>16,.0f}"
        )
        yield f"{'':<17}{'program  ' + ', '.join(v.labels):<38}{'':>16}{line.counted_bytes:>16,.0f}"


@app.command("pipeline")
def show_pipeline(recipe: Recipe, overrides: Overrides = None) -> None:
    """What each stage of the pipeline holds, and what it does when: in units, and as priced."""
    plan = make_plan(load_settled(recipe, overrides), 0)
    pipeline = plan.schedule
    orders = [order_of(pipeline, rank) for rank in range(pipeline.stages)]
    ideal = simulate(pipeline, orders, units(pipeline))
    priced = slots_of(plan, nominal_pricing())
    seconds = max(slot.stop for slot in priced)
    shortest = min(slot.stop - slot.start for slot in priced)
    cells = min(round(seconds / shortest), round(max(slot.stop for slot in ideal)) * 2)
    print("\n".join(_stage_lines(plan)))
    print(f"\nin units of a forward\n{render_stages(pipeline, ideal)}")
    print(f"\nat nominal prices, {render_seconds(seconds)} before the update")
    print(render_stages(pipeline, priced, columns=cells))


def _stage_lines(plan: Plan) -> Iterable[str]:
    for rank in range(plan.layout.pp):
        chunks = chunks_of(replace(plan, rank=rank * plan.layout.stage))
        yield f"rank {rank:<3} " + "; ".join(_chunk_text(chunk) for chunk in chunks)


def _chunk_text(chunk: Chunk) -> str:
    first, last = chunk.layers[0], chunk.layers[-1]
    layers = f"layer {first}" if first == last else f"layers {first} to {last}"
    ends = ("embedding",) * chunk.first, ("head",) * chunk.last
    return ", ".join((*ends[0], layers, *ends[1]))


@app.command("layout")
def show_layout(recipe: Recipe, overrides: Overrides = None) -> None:
    """Where everything lives: ranks, heads, experts, tokens, and bytes of state on each rank."""
    config = load_settled(recipe, overrides)
    print("\n".join(_layout_lines(make_plan(config, 0), config.train.global_batch)))


def _layout_lines(plan: Plan, global_batch: int) -> Iterable[str]:
    shape, layout, n = plan.shape, plan.layout, sizes(plan)
    flops = token_flops(shape, sequence=plan.sequence)
    stages = f"pp {layout.pp} x " if layout.pp > 1 else ""
    degrees = (
        f"{stages}dp {layout.dp} x sp {layout.sp}; ep {layout.ep}, expert replicas {layout.edp}"
    )
    counts = f"{total(shape).all / 1e6:,.2f} M parameters, {active(shape).all / 1e6:,.2f} M active"
    batches = f"micro-batches: {plan.micro_batches} of {plan.micro_batch}"
    heads = f"{n.J} of {shape.heads} query heads, {n.K} of {shape.kv_heads} key/value heads"
    yield f"layout      {layout.name()}: world {layout.world} = {degrees}"
    yield f"model       {counts}, {flops / 1e6:,.1f} MFLOP a token"
    yield f"step        {global_batch} sequences of {plan.sequence}; {batches}"
    yield f"each rank   {plan.local_micro_batches} micro-batches, {n.T} of {n.N} tokens of each"
    yield f"attention   {heads} on each rank"
    yield f"experts     {n.L} of {shape.experts} on each rank, top-{shape.top_k}"
    room = f", room for {plan.bounded_rows}" if plan.bounded_rows else ""
    yield f"rows        {n.R} on each rank when balanced, at most {n.bounds['R']}{room}"
    yield ""
    yield "rank  dp  sp  ep  experts        owns of the optimizer state"
    for rank in range(layout.world):
        yield _rank_line(plan, rank)


def _rank_line(plan: Plan, rank: int) -> str:
    layout, local = plan.layout, plan.local_experts
    first = layout.ep_rank(rank) * local
    owned: tuple[Bucket, ...] = owned_parameters(replace(plan, rank=rank))[1]
    elements = sum(bucket.shard for bucket in owned)
    width = 8 if plan.precision == "float64" else 4
    return (
        f"{rank:>4}  {layout.dp_rank(rank):>2}  {layout.sp_rank(rank):>2}  "
        f"{layout.ep_rank(rank):>2}  "
        f"{first:>4} to {first + local - 1:<6} {3 * width * elements / 2**20:,.1f} MiB"
    )


def _step(recipe: str, overrides: list[str] | None, rank: int) -> Step:
    config = load_settled(recipe, overrides)
    if not 0 <= rank < config.parallel.ranks:
        raise ConfigError(
            f"--rank {rank}: the layout has ranks 0 to {config.parallel.ranks - 1}; try --rank 0"
        )
    return training_step(make_plan(config, rank))


def _segments(step: Step, wanted: str) -> list[str]:
    """The one that is wanted, or those of layers and ends of a model; of one that some micro-batch
    runs by other bodies in the same order, the usual one.
    """
    if not wanted:
        usual = (name for name in step.templates if name == usual_of(name))
        return [name for name in usual if not name.startswith(("update", "reduce."))]
    if wanted not in step.templates:
        raise ConfigError(f"--segment {wanted}: expected one of {', '.join(step.templates)}")
    return [wanted]
