"""The figures of the paper's evaluation, predicted: which job stands behind each row.

    megascale   Ulysses attention, whole experts over the node by all-gather and reduce-scatter,
                overlapped orders, forward pairs fused, kernels of its own for rows, BF16 gradients
    megatron    tensor parallelism in attention and experts, one operator after the other, row
                movement by the framework, FP32 gradients
    unfused     the pairs of Figure 16 one operator after the other, row movement by the framework

Readings of what the paper does not say, each with its reason:

    chunks      megascale one layer a chunk (4 at 15 stages); megatron one chunk, because the
                activations of interleaved micro-batches do not fit beside its routed tokens
    Figure 7    16,384 tokens: then the ring reaches 3/4 of the link, as NCCL does, and what is
                left of Figure 16 for row movement is in proportion to rows; at 8,192 it is not
    Figure 16   8,192 tokens; the first expert product is FC1 and FC3 together, as weft runs it
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

from weft.compose.plan import Plan, Update, sizes
from weft.compose.price import BYTES
from weft.compose.recipe import arithmetic, shape
from weft.compose.step import Step
from weft.config.presets import preset
from weft.graph.dims import Sizes
from weft.graph.program import Program
from weft.model.families import Shape
from weft.parallel.layout import Attention, Dispatch, FeedForward, Layout
from weft.parallel.sync import Sync, Wire
from weft.planner.activation import elements
from weft.planner.cost import Rates, imbalanced, seconds
from weft.planner.memory import memory
from weft.planner.pipeline import in_flight
from weft.planner.play import Fused, fused
from weft.planner.row import Key, Row
from weft.planner.simulate import (
    Job,
    Regime,
    Simulated,
    Studio,
    asked_of,
    fused_seconds,
    prices,
)
from weft.planner.work import Passing, Sending, Way, Work, work

TABLE_2 = (
    "internal-352b",
    "mixtral-8x7b",
    "mixtral-8x22b",
    "hunyuan-large",
    "phi-3.5-moe",
    "deepseekmoe",
)
SEQUENCE, NODE, STAGES, CHUNKS = 8192, 8, 15, 4
MEGASCALE = Regime(fused=True)
PLAIN = Regime(fused=False)
FIG14 = Regime(fused=False, own_rows=False)
MEGATRON = Regime(fused=False, own_rows=False)
GATHERED = ("y_2", "y_6")
BUCKET = 10**9  # elements: a bucket a layer and residence
Found = Callable[[str], Rates]
STRATEGIES: Mapping[str, tuple[Attention, FeedForward]] = {
    "tp+tp": (Attention.TP, FeedForward.TP),
    "sp+tp": (Attention.SP, FeedForward.TP),
    "tp+ep": (Attention.TP, FeedForward.EP),
    "sp+ep": (Attention.SP, FeedForward.EP),
}


@cache
def model(name: str) -> Shape:
    """The shape of a model of Table 2."""
    return shape(preset(name))


def plan(
    name: str,
    *,
    dp: int,
    batch: int,
    stages: int = 1,
    chunks: int = 1,
    strategy: str = "sp+ep",
    order: str = "overlapped",
    dispatch: Dispatch = Dispatch.ALL_GATHER,
    remat: str | tuple[str, ...] = "none",
    wire: Wire = Wire.BF16,
) -> Plan:
    """One node's layout of the paper for a model, `dp` of them, `batch` sequences a step."""
    attention, ffn = STRATEGIES[strategy]
    return Plan(
        shape=model(name),
        arithmetic=arithmetic(preset(name)),
        layout=Layout(
            pp=stages,
            dp=dp,
            node=NODE,
            sp=NODE,
            ep=NODE if ffn is FeedForward.EP else 1,
            dispatch=dispatch,
            attention=attention,
            ffn=ffn,
            pipeline="interleaved" if chunks > 1 else "1f1b",
            chunks=chunks,
            layers=even(model(name).layers, stages * chunks),
        ),
        rank=0,
        sequence=SEQUENCE,
        micro_batch=1,
        micro_batches=batch,
        precision="bfloat16",
        order=order,
        update=Update(beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0),
        remat=remat,
        sync=Sync(gradients=wire, bucket=BUCKET),
    )


def even(layers: int, parts: int) -> tuple[int, ...]:
    """Layers cut evenly, as the paper does it."""
    return (layers // parts,) * parts


def system(name: str, of: str, *, stages: int, dp: int, batch: int, chunks: int = 1) -> Job:
    """A job of one of the two systems."""
    if of == "megatron":  # its sequence parallelism gathers inputs again in the backward
        tensor = plan(
            name,
            dp=dp,
            batch=batch,
            stages=stages,
            strategy="tp+tp",
            order="serial",
            remat=GATHERED,
            wire=Wire.FP32,
        )
        return Job(plan=tensor, regime=MEGATRON)
    paper = plan(name, dp=dp, batch=batch, stages=stages, chunks=chunks, remat="selective")
    return Job(plan=paper, regime=MEGASCALE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """Which rows of the figures: all of them, or those that the published ones need."""

    strong: tuple[int, ...] = (240, 480, 720, 960, 1440)
    weak: tuple[int, ...] = (480, 720, 960, 1440)
    machines: tuple[str, ...] = ("H800", "A100", "H20")
    models: tuple[str, ...] = TABLE_2


PUBLISHED = Scope(
    strong=(480, 1440), weak=(), machines=("H800",), models=("internal-352b", "mixtral-8x7b")
)


def rows(found: Found, studio: Studio, scope: Scope | None = None) -> Iterator[Row]:
    """Every row of every figure."""
    for figure in FIGURES.values():
        yield from figure(found, studio, scope or Scope())


# ---- scaling -------------------------------------------------------------------------------------

BATCH = 720


def _scaling(found: Found, studio: Studio, gpus: int, batch: int) -> dict[str, Simulated]:
    dp = gpus // (STAGES * NODE)
    shared = {"stages": STAGES, "dp": dp, "batch": batch}
    return {
        of: studio.simulate(system("internal-352b", of, chunks=CHUNKS, **shared), found("H800"))
        for of in ("megatron", "megascale")
    }


def table3(found: Found, studio: Studio, scope: Scope) -> Iterator[Row]:
    """Strong scaling of the 352B model."""
    for gpus in scope.strong:
        done = _scaling(found, studio, gpus, BATCH)
        for of, step in done.items():
            key = Key("table3", of, "internal-352b", "H800", gpus, "strong", "iter_s")
            yield Row(key=key, unit="s", predicted=step.seconds)
            rate = Row(
                key=replace(key, metric="ktok_s"),
                unit="k tokens/s",
                predicted=step.tokens_per_s / 1e3,
            )
            yield rate
        gain = done["megatron"].seconds / done["megascale"].seconds
        key = Key("table3", "megascale", "internal-352b", "H800", gpus, "strong", "speedup")
        yield Row(key=key, unit="x", predicted=gain)


def figure12(found: Found, studio: Studio, scope: Scope) -> Iterator[Row]:
    """Strong and weak scaling as throughput and MFU."""
    cases = [("strong", g, BATCH) for g in scope.strong] + [
        ("weak", g, g * 3 // 4) for g in scope.weak
    ]
    for config, gpus, batch in cases:
        for of, step in _scaling(found, studio, gpus, batch).items():
            key = Key("fig12", of, "internal-352b", "H800", gpus, config, "ktok_s")
            yield Row(key=key, unit="k tokens/s", predicted=step.tokens_per_s / 1e3)
            yield Row(
                key=replace(key, metric="mfu_pct"), unit="%", predicted=_mfu(step, found("H800"))
            )


def _mfu(step: Simulated, found: Rates) -> float:
    return 100 * step.flops / found.machine.device.peak_flops


# ---- ablations -----------------------------------------------------------------------------------


def table5(found: Found, studio: Studio, _scope: Scope) -> Iterator[Row]:
    """What each part adds, on 240 GPUs, inside one code base."""
    cases = (
        ("tp+tp", "tp+tp", "serial", PLAIN),
        ("sp+ep", "sp+ep", "serial", PLAIN),
        ("+inter", "sp+ep", "overlapped", PLAIN),
        ("+intra", "sp+ep", "overlapped", MEGASCALE),
    )
    first = 0.0
    for config, strategy, order, regime in cases:
        made = plan(
            "internal-352b",
            dp=2,
            batch=BATCH,
            stages=STAGES,
            chunks=CHUNKS,
            strategy=strategy,
            order=order,
            remat="selective",
        )
        job = Job(plan=made, regime=regime)
        took = studio.simulate(job, found("H800")).seconds
        first = first or took
        key = Key("table5", "megascale", "internal-352b", "H800", 240, config, "throughput")
        yield Row(key=key, unit="x of tp+tp", predicted=first / took)


def figure13(found: Found, studio: Studio, scope: Scope) -> Iterator[Row]:
    """Where the time of Mixtral-8x7B goes, by GPU and system."""
    for machine in scope.machines:
        for of in ("megatron", "megascale"):
            job = system("mixtral-8x7b", of, stages=1, dp=4, batch=64)
            step = studio.simulate(job, found(machine))
            parts = {
                "exposed_comm_s": sum(step.exposed.values()),
                "fa_gemm_s": step.products,
                "others_s": step.others + step.bubble,
                "iter_s": step.seconds,
                "mfu_pct": _mfu(step, found(machine)),
            }
            for metric, value in parts.items():
                key = Key("fig13", of, "mixtral-8x7b", machine, 32, "dp4 gbs64", metric)
                yield Row(key=key, unit="%" if metric == "mfu_pct" else "s", predicted=value)


CUT = {"internal-352b": 4, "mixtral-8x22b": 4, "hunyuan-large": 4}  # layers that fit one node
CUT_ELSE = 8


def figure14(found: Found, studio: Studio, scope: Scope) -> Iterator[Row]:
    """Four parallel strategies on one node, nothing else switched on."""
    for name in scope.models:
        took: dict[str, float] = {}
        for strategy in STRATEGIES:
            made = plan(name, dp=1, batch=32, strategy=strategy, order="serial")
            cut = CUT.get(name, CUT_ELSE)
            one = replace(made.layout, layers=(cut,))
            made = replace(made, shape=replace(made.shape, layers=cut), layout=one)
            took[strategy] = studio.simulate(Job(plan=made, regime=FIG14), found("H800")).seconds
        for strategy, time in took.items():
            key = Key("fig14", "megascale", name, "H800", NODE, strategy, "mfu")
            yield Row(key=key, unit="x of sp+ep", predicted=took["sp+ep"] / time)


# ---- collectives and pairs -----------------------------------------------------------------------


def figure7(found: Found, studio: Studio, _scope: Scope) -> Iterator[Row]:
    """Dispatch by all-to-all, which grows with the choices of a token, and by all-gather."""
    rates = found("H800")

    def key(config: str) -> Key:
        return Key("fig7", "megascale", "mixtral-8x7b", "H800", NODE, config, "time_us")

    made = replace(plan("mixtral-8x7b", dp=1, batch=2, order="serial"), micro_batch=2)
    made = replace(made, micro_batches=1)
    for label, config in (("tokens", "all_gather"), ("outputs", "reduce_scatter")):
        sent = _collective(studio, made, rates, label)
        yield Row(key=key(config), unit="us", predicted=seconds(sent, rates) * 1e6)
    for k in range(1, 9):
        ragged = replace(
            made,
            shape=replace(made.shape, top_k=k),
            layout=replace(made.layout, dispatch=Dispatch.ALL_TO_ALL),
        )
        sent = _collective(studio, ragged, rates, "rows")
        yield Row(key=key(f"all_to_all k={k}"), unit="us", predicted=seconds(sent, rates) * 1e6)


def _collective(studio: Studio, made: Plan, found: Rates, label: str) -> Sending:
    step = studio.compose(made, found)
    program = _forward_program(step)
    task = next(t for t in program.tasks if t.attributes.get("label") == label)
    sent = work(task, program, sizes(step.plan))
    assert isinstance(sent, Sending), f"{sent=}"
    return sent


PAIRS: Mapping[str, tuple[str, str]] = {
    "QKVProj+A2A": ("qkv_project", "qkv"),
    "A2A+OutProj": ("project", "attention"),
    "AG+Scatter+GroupedGEMM": ("expert_up", "tokens"),
    "GroupedGEMM+Gather+RS": ("expert_down", "outputs"),
}


def figure16(found: Found, studio: Studio, scope: Scope) -> Iterator[Row]:
    """The four fused pairs of the forward, and the same one operator after the other."""
    rates = found("H800")
    for name in scope.models:
        made = plan(name, dp=1, batch=1, order="serial")
        step = studio.compose(made, rates)
        program = _forward_program(step)
        n = imbalanced(sizes(step.plan), rates.constants.imbalance)
        asked = asked_of(program, n)
        every = {**asked, **_all_rows(asked_of(program, _undropped(n)), n)}
        pairs = {
            (pair.product.body, str(pair.message.attributes["label"])): pair
            for pair in fused(program)
        }
        for config, which in PAIRS.items():
            pair: Fused = pairs[which]
            members = (pair.product, pair.message, *pair.passes)
            apart = prices(every, rates, MEGATRON)
            together = fused_seconds(pair, asked, rates, NODE)
            plain = sum(apart[t.name] for t in members)
            plain -= apart[pair.product.name] * (1 - pair.part)
            key = Key("fig16", "unfused", name, "H800", NODE, config, "time_ms")
            yield Row(key=key, unit="ms", predicted=plain * 1e3)
            yield Row(key=replace(key, system="megascale"), unit="ms", predicted=together * 1e3)


def _undropped(n: Sizes) -> Sizes:
    """Every choice of every gathered token as a row: before what is not local is dropped."""
    return replace(n, numbers={**n.numbers, "R": n.U * n.k})


def _all_rows(every: Mapping[str, Work], n: Sizes) -> Mapping[str, Work]:
    """Row movement by the framework: all rows are moved and what is not local is dropped behind;
    before a sum, a buffer of all rows is filled with zeros.
    """
    fill = BYTES["act"] * n.U * n.k * n.D
    moved = {k: w for k, w in every.items() if isinstance(w, Passing) and w.way != Way.STREAM}
    return {
        name: replace(w, moved=w.moved + fill) if w.way is Way.SUMS else w
        for name, w in moved.items()
    }


def figure15(found: Found, studio: Studio, scope: Scope) -> Iterator[Row]:
    """Keeping replicas in step: attention replicated over the node against cut over it."""
    rates = found("H800")
    for name in scope.models:
        took = {
            strategy: _sync_seconds(studio, plan(name, dp=8, batch=8, strategy=strategy), rates)
            for strategy in ("tp+ep", "sp+ep")
        }
        for strategy, time in took.items():
            key = Key("fig15", "megascale", name, "H800", NODE * 8, strategy, "sync_ms")
            yield Row(key=key, unit="ms", predicted=time * 1e3)
        more = 100 * (took["sp+ep"] / took["tp+ep"] - 1)
        key = Key("fig15", "megascale", name, "H800", NODE * 8, "sp+ep", "increase_pct")
        yield Row(key=key, unit="%", predicted=more)


def _sync_seconds(studio: Studio, made: Plan, found: Rates) -> float:
    """What crosses between nodes, which hides what crosses inside them (paper, Fig 5)."""
    step = studio.compose(made, found)
    program = step.templates["update"].program
    lanes = {"intra": 0.0, "inter": 0.0}
    for kind in studio.asked(program, sizes(step.plan)).values():
        if isinstance(kind, Sending) and kind.axis != "world":
            lanes["inter" if kind.axis.endswith("_inter") else "intra"] += seconds(kind, found)
    return max(lanes.values())


def figure17(found: Found, studio: Studio, scope: Scope) -> Iterator[Row]:
    """Memory and MFU with and without rematerialisation: two stages, eight replicas, 128 GPUs.

    Without it every tensor of the paper's table is kept: module boundaries do not free them. What
    lies beside weft's own allocations (the paper's "others") is not predicted.
    """
    rates = found("H800")
    for name in scope.models:
        for config, remat in (("no remat", "none"), ("remat", "selective")):
            made = plan(name, dp=8, batch=BATCH, stages=2, remat=remat)
            step = studio.compose(made, rates)
            held = memory(step, made)
            kept_ = held.activations
            if remat == "none":
                program = _forward_program(step)
                kept_ = sum(elements(program, made).values()) * BYTES["act"]
                kept_ *= in_flight(made.schedule, 0) * (made.shape.layers // 2)
            activations = kept_ + held.dispatch + held.workspace
            state = held.weights + held.gradients + held.optimizer
            done = studio.simulate(Job(plan=made, regime=MEGASCALE), rates)
            key = Key("fig17", "megascale", name, "H800", 128, config, "activations_gb")
            yield Row(key=key, unit="GB", predicted=activations / 1e9)
            yield Row(
                key=replace(key, metric="param_grad_opt_gb"), unit="GB", predicted=state / 1e9
            )
            total = (activations + state) / 1e9
            yield Row(key=replace(key, metric="total_gb"), unit="GB", predicted=total)
            yield Row(key=replace(key, metric="mfu_pct"), unit="%", predicted=_mfu(done, rates))


def _forward_program(step: Step) -> Program:
    return next(t.program for n, t in step.templates.items() if n.endswith("moe.forward"))


FIGURES: Mapping[str, Callable[[Found, Studio, Scope], Iterator[Row]]] = {
    "table3": table3,
    "fig12": figure12,
    "table5": table5,
    "fig7": figure7,
    "fig13": figure13,
    "fig14": figure14,
    "fig15": figure15,
    "fig16": figure16,
    "fig17": figure17,
}
