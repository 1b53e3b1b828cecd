"""The figures of the paper's evaluation, predicted: which job stands behind each row.

Readings of what the paper does not say, each with its reason:

    Figure 7    16,384 tokens: then the ring reaches 3/4 of the link, as NCCL does, and what is
                left of Figure 16 for row movement is in proportion to rows; at 8,192 it is not
    Figure 15   dense parameters and experts in turn, every step in one width, as in A.1
    Figure 16   8,192 tokens; the first expert product is FC1 and FC3 together, as weft runs it
    Figure 17   without rematerialisation every tensor of the paper's table is kept, since module
                boundaries do not free them; beside what is kept stand two bytes for each expert
                parameter of the rank, as gradients in BF16 have them outside the FP32 sums (both
                published bars have 5.6 GB that no tensor of the table accounts for); the
                embedding is cut over the node, as Megatron has it; as few stages as leave room
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from weft.compose.plan import Plan, sizes
from weft.compose.price import BYTES
from weft.compose.replicas import is_end
from weft.compose.step import Step
from weft.graph.dims import Sizes
from weft.graph.program import Program
from weft.parallel.layout import Dispatch
from weft.parallel.sync import Wire
from weft.planner.activation import elements, kept
from weft.planner.cost import Rates, imbalanced, seconds
from weft.planner.memory import memory
from weft.planner.pipeline import in_flight
from weft.planner.play import Fused, fused
from weft.planner.row import Key, Row
from weft.planner.simulate import (
    Job,
    Simulated,
    Studio,
    asked_of,
    fused_seconds,
    prices,
)
from weft.planner.systems import (
    CHUNKS,
    MEGASCALE,
    NODE,
    PLAIN,
    STAGES,
    STRATEGIES,
    TABLE_2,
    UNFUSED,
    model,
    plan,
    system,
)
from weft.planner.work import Passing, Sending, Way, Work, work

Found = Callable[[str], Rates]


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
    """Strong and weak scaling as time, throughput and MFU."""
    cases = [("strong", g, BATCH) for g in scope.strong] + [
        ("weak", g, g * 3 // 4) for g in scope.weak
    ]
    for config, gpus, batch in cases:
        for of, step in _scaling(found, studio, gpus, batch).items():
            key = Key("fig12", of, "internal-352b", "H800", gpus, config, "iter_s")
            yield Row(key=key, unit="s", predicted=step.seconds)
            rate = step.tokens_per_s / 1e3
            yield Row(key=replace(key, metric="ktok_s"), unit="k tokens/s", predicted=rate)
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
            took[strategy] = studio.simulate(Job(plan=made, regime=UNFUSED), found("H800")).seconds
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
            apart = prices(every, rates, UNFUSED)
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
            strategy: _sync_seconds(
                studio, plan(name, dp=8, batch=8, strategy=strategy, wire=Wire.FP32), rates
            )
            for strategy in ("tp+ep", "sp+ep")
        }
        for strategy, time in took.items():
            key = Key("fig15", "megascale", name, "H800", NODE * 8, strategy, "sync_ms")
            yield Row(key=key, unit="ms", predicted=time * 1e3)
        more = 100 * (took["sp+ep"] / took["tp+ep"] - 1)
        key = Key("fig15", "megascale", name, "H800", NODE * 8, "sp+ep", "increase_pct")
        yield Row(key=key, unit="%", predicted=more)


def _sync_seconds(studio: Studio, made: Plan, found: Rates) -> float:
    """Dense parameters, then experts: of each the slower of what crosses inside and between nodes,
    since its chunks are on both wires at once (paper, Fig 5 and A.1).
    """
    step = studio.compose(made, found)
    lanes: dict[tuple[str, bool], float] = {}
    for name in (one.template for one in step.instances if is_end(one.template)):
        for kind in studio.asked(step.templates[name].program, sizes(step.plan)).values():
            if isinstance(kind, Sending) and kind.axis != "world":
                key = kind.axis.split("_")[0], kind.axis.endswith("_inter")
                lanes[key] = lanes.get(key, 0.0) + seconds(kind, found)
    axes = {axis for axis, _ in lanes}
    return sum(max(lanes.get((axis, far), 0.0) for far in (True, False)) for axis in axes)


def figure17(found: Found, studio: Studio, scope: Scope) -> Iterator[Row]:
    """Memory and MFU with and without rematerialisation on 128 GPUs."""
    rates = found("H800")
    for name in scope.models:
        stages = _stages_that_fit(name, studio, rates)
        for config, remat in (("no remat", "none"), ("remat", "selective")):
            made = _on_128(name, stages, remat)
            parts = _held(studio.compose(made, rates), made, rates)
            done = studio.simulate(Job(plan=made, regime=MEGASCALE), rates)
            key = Key("fig17", "megascale", name, "H800", 128, config, "mfu_pct")
            for metric, size in {**parts, "total_gb": sum(parts.values())}.items():
                yield Row(key=replace(key, metric=metric), unit="GB", predicted=size / 1e9)
            yield Row(key=key, unit="%", predicted=_mfu(done, rates))


def _on_128(name: str, stages: int, remat: str) -> Plan:
    return plan(name, dp=128 // NODE // stages, batch=BATCH, stages=stages, remat=remat)


def _stages_that_fit(name: str, studio: Studio, found: Rates) -> int:
    """The fewest from two up that leave room without rematerialisation; else the most there are."""
    layers, replicas = model(name).layers, 128 // NODE
    possible = [n for n in range(2, replicas + 1) if layers % n == replicas % n == 0]
    for stages in possible:
        made = _on_128(name, stages, "none")
        held = _held(studio.compose(made, found), made, found)
        if sum(held.values()) <= found.machine.device.memory_bytes:
            return stages
    return possible[-1]


def _held(step: Step, made: Plan, found: Rates) -> Mapping[str, float]:
    """Bytes of the first stage, by the parts of Figure 17."""
    program = _forward_program(step)
    listed = elements(program, made) if made.remat == "none" else kept(program, made)
    layers = in_flight(made.schedule, 0) * (made.shape.layers // made.layout.pp)
    routed = sum(b.numel for b in step.buckets if b.axis == "edp")
    activations = BYTES["act"] * (sum(listed.values()) * layers + routed)
    held = memory(step, made)
    cut = sum(b.numel for b in step.buckets if b.name.startswith("embed")) * (1 - 1 / NODE)
    state = held.weights + held.gradients + held.optimizer - (BYTES["act"] + BYTES["acc"]) * cut
    return {
        "activations_gb": activations,
        "param_grad_opt_gb": state,
        "others_gb": activations * found.constants.fragments,
    }


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
