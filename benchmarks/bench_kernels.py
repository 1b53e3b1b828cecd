"""One GPU: every fast body beside its reference, at the sizes of a training step.

    python benchmarks/bench_kernels.py FILE [--only swiglu permute_up_swiglu ...] [--tiles]

FILE gets one JSON object a body, shape and variant; a table comes at the end. The floor is what a
copy moves in the time of the bytes that must be read and written, or what a large product reaches
for the operations that must be done, whichever is longer. Inputs are random; each variant is timed
in turn in one process. A fused operator stands beside its parts, each by its fastest body.

    --tiles   instead, tile shapes of the experts' weight gradient
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from weft.bench import record
from weft.bench.spread import Spread, spread
from weft.graph.fused import FUSED, lookup
from weft.graph.opset import FIRST
from weft.ops.fused import in_sequence
from weft.ops.registry import cuda_bodies, reference_bodies

COPY_RATE, PRODUCT_RATE = 4.2e12, 736e12  # measured on an H200 (docs/log.md)
ROUNDS, WARM_UP = 15, 4
DEVICE = torch.device("cuda")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One layer and its tokens."""

    tokens: int
    hidden: int
    ffn: int
    experts: int
    top_k: int
    heads: int
    kv_heads: int
    channels: int = 128
    vocab: int = 32768

    @property
    def rows(self) -> int:
        return self.tokens * self.top_k


SHAPES = {
    "Q": Shape(tokens=16384, hidden=2048, ffn=768, experts=128, top_k=8, heads=32, kv_heads=4),
    "M": Shape(tokens=16384, hidden=4096, ffn=14336, experts=8, top_k=2, heads=32, kv_heads=8),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A call of a body: its operands, attributes, and the work that no body can avoid."""

    inputs: tuple[object, ...]
    attrs: Mapping[str, object]
    moved: int
    flops: int = 0

    @property
    def floor_ms(self) -> float:
        return max(self.moved / COPY_RATE, self.flops / PRODUCT_RATE) * 1e3


def rand(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normal random numbers on the device."""
    return torch.randn(*sizes, device=DEVICE, dtype=dtype)


def bytes_of(*tensors: Tensor) -> int:
    """The bytes of some tensors."""
    return sum(x.numel() * x.element_size() for x in tensors)


def trials(s: Shape) -> Iterator[tuple[str, Callable[[], Trial]]]:
    """The bodies that are timed, each with a maker of its call."""
    narrow = 2
    token_bytes, row_bytes = s.tokens * s.hidden * narrow, s.rows * s.hidden * narrow
    chosen = torch.rand(s.tokens, s.experts, device=DEVICE).topk(s.top_k).indices
    order, slot_row, _, ends = reference_bodies()["plan_rows"](chosen, experts=s.experts)
    top = {"top_k": s.top_k}
    acc = partial(rand, dtype=torch.float32)
    rule = {**top, "score": "softmax", "renormalise": True, "scaling": 1.0}

    def call(*inputs: object, moved: int, flops: int = 0, **attrs: object) -> Callable[[], Trial]:
        return lambda: Trial(
            inputs=tuple(x() if callable(x) else x for x in inputs),
            attrs=attrs, moved=moved, flops=flops,
        )  # fmt: skip

    def some(*sizes: int) -> Callable[[], Tensor]:
        return lambda: rand(*sizes)

    def wide(*sizes: int) -> Callable[[], Tensor]:
        return lambda: acc(*sizes)

    hidden, up = (s.tokens, s.hidden), (s.rows, 2 * s.ffn)
    down = s.rows * s.ffn * narrow
    yield "rms_norm", call(some(*hidden), some(s.hidden), eps=1e-5, moved=2 * token_bytes)
    yield (
        "add_rms_norm",
        call(some(*hidden), some(*hidden), some(s.hidden), eps=1e-5, moved=4 * token_bytes),
    )
    rstd = wide(s.tokens)
    yield (
        "rms_norm.dgrad",
        call(some(*hidden), some(*hidden), some(s.hidden), rstd, eps=1e-5, moved=3 * token_bytes),
    )
    yield (
        "rms_norm.wgrad",
        call(wide(s.hidden), some(*hidden), some(*hidden), rstd, eps=1e-5, moved=2 * token_bytes),
    )
    every = s.heads + 2 * s.kv_heads
    turning = s.heads + s.kv_heads
    heads = {"heads": s.heads, "kv_heads": s.kv_heads}
    columns = some(s.tokens, every * s.channels)
    table = wide(s.tokens, s.channels)
    grads = [some(s.tokens, n, s.channels) for n in (s.heads, s.kv_heads, s.kv_heads)]
    norms = (some(s.channels), some(s.channels))
    turned = s.tokens * turning * s.channels * narrow
    whole = s.tokens * every * s.channels * narrow
    yield "rotate", call(columns, table, table, **heads, moved=2 * turned)
    yield "rotate.dgrad", call(*grads, table, table, **heads, moved=2 * whole)
    yield "norm_rotate", call(columns, *norms, table, table, **heads, eps=1e-6, moved=2 * turned)
    inverse = wide(s.tokens, turning)
    yield (
        "norm_rotate.dgrad",
        call(
            *grads, columns, *norms, inverse, table, table, **heads, eps=1e-6,
            moved=2 * whole + turned,
        ),
    )  # fmt: skip
    weights = (wide(s.channels), wide(s.channels))
    yield (
        "norm_rotate.wgrad",
        call(*weights, *grads, columns, inverse, table, table, **heads, eps=1e-6, moved=2 * turned),
    )
    logits = s.tokens * s.experts * 4
    yield "router_logits", call(some(*hidden), some(s.experts, s.hidden), moved=token_bytes)
    yield (
        "router_logits.dgrad",
        call(wide(s.tokens, s.experts), some(s.experts, s.hidden), moved=token_bytes + logits),
    )
    yield (
        "router_logits.wgrad",
        call(
            wide(s.experts, s.hidden), wide(s.tokens, s.experts), some(*hidden),
            moved=token_bytes + logits,
        ),
    )  # fmt: skip
    yield (
        "select_experts",
        call(
            wide(s.tokens, s.experts), torch.zeros(s.experts, device=DEVICE), **rule, moved=logits
        ),
    )
    yield (
        "select_experts.dgrad",
        call(wide(s.tokens, s.top_k), wide(s.tokens, s.experts), chosen, **rule, moved=2 * logits),
    )
    counted = {"experts": s.experts, "first": 0, "stretch": 4096, "rows": s.tokens // 4096}
    yield "count_load", call(chosen, **counted, moved=s.rows * 8)
    yield "plan_rows", call(chosen, experts=s.experts, moved=s.rows * 24)
    yield "permute", call(some(*hidden), order, slot_row, **top, moved=token_bytes + row_bytes)
    yield (
        "gather_sum",
        call(some(s.rows, s.hidden), slot_row, order, **top, moved=token_bytes + row_bytes),
    )
    yield "swiglu", call(some(*up), wide(s.rows), ends, moved=3 * down)
    yield (
        "swiglu.dgrad",
        call(some(s.rows, s.ffn), some(*up), wide(s.rows), ends, moved=5 * down),
    )
    product_flops = 4 * s.rows * s.hidden * s.ffn
    up_weight = (s.experts, 2 * s.ffn, s.hidden)
    yield (
        "expert_up",
        call(some(s.rows, s.hidden), some(*up_weight), ends, moved=0, flops=product_flops),
    )
    yield (
        "expert_up.wgrad",
        call(
            wide(*up_weight), some(*up), some(s.rows, s.hidden), ends,
            moved=8 * s.experts * 2 * s.ffn * s.hidden, flops=product_flops,
        ),
    )  # fmt: skip
    yield (
        "expert_down.wgrad",
        call(
            wide(s.experts, s.hidden, s.ffn), some(s.rows, s.hidden), some(s.rows, s.ffn), ends,
            moved=8 * s.experts * s.ffn * s.hidden, flops=product_flops // 2,
        ),
    )  # fmt: skip
    yield from fused_trials(s, order, slot_row, ends, call=call)
    targets = torch.randint(0, s.vocab, (s.tokens,), device=DEVICE)
    yield (
        "cross_entropy.fused",
        call(
            some(*hidden), some(s.vocab, s.hidden), targets, float(s.tokens), wide(1),
            wide(s.vocab, s.hidden), chunk=4096, moved=0,
            flops=6 * s.tokens * s.hidden * s.vocab,
        ),
    )  # fmt: skip
    elements = 2**29
    yield "square_sum", call(wide(elements), wide(1), moved=4 * elements)
    state = (wide(elements), wide(elements), lambda: acc(elements).square_())
    verdict = torch.tensor([0.5, 0.0], device=DEVICE)
    rates = (1e-3, 0.1, 7)
    yield (
        "adamw",
        call(
            wide(elements), verdict, rates, *state, elements,
            beta1=0.9, beta2=0.95, eps=1e-8, moved=28 * elements,
        ),
    )  # fmt: skip


def both_ways(s: Shape) -> Iterator[tuple[str, Callable[[], Trial]]]:
    """The same; behind a weight gradient that can write the one that does, which reads no sum."""
    for name, make in trials(s):
        yield name, make
        op, _, phase = name.partition(".")
        if phase == "wgrad" and lookup(op).writes:
            yield f"{op}.{FIRST}", lambda make=make: _written(make())


def _written(trial: Trial) -> Trial:
    return replace(trial, moved=trial.moved // 2)


def fused_trials(
    s: Shape, order: Tensor, slot_row: Tensor, ends: Tensor, *, call: Callable
) -> Iterator[tuple[str, Callable[[], Trial]]]:
    """The fused operators of one rank with every expert; bytes are those that none can skip."""
    wide = torch.float32
    tokens, rows = (partial(rand, n, s.hidden) for n in (s.tokens, s.rows))
    u, made = partial(rand, s.rows, 2 * s.ffn), partial(rand, s.rows, s.ffn)
    weights = partial(rand, s.rows, dtype=wide)
    up, down = (s.experts, 2 * s.ffn, s.hidden), (s.experts, s.hidden, s.ffn)
    maps, top = (order, slot_row), {"top_k": s.top_k}
    act_bytes, sum_bytes = s.rows * s.ffn * 2, 8 * s.experts * s.ffn * s.hidden
    flops = 4 * s.rows * s.hidden * s.ffn
    ahead, back = (tokens, *maps), (tokens, order)
    for name, inputs, attrs, moved, work in (
        ("permute_up_swiglu", (*ahead, partial(rand, *up), ends, weights), top, 3 * act_bytes, 1),
        ("up_swiglu", (rows, partial(rand, *up), ends, weights), {}, 3 * act_bytes, 1),
        (
            "swiglu_down_gather.dgrad",
            (*back, partial(rand, *down), ends, u, weights), top, 5 * act_bytes, 2,
        ),
        (
            "swiglu_down.dgrad",
            (rows, partial(rand, *down), ends, u, weights), {}, 5 * act_bytes, 2,
        ),
        (
            "permute_up.wgrad",
            (*ahead, partial(rand, *up, dtype=wide), u, ends), top, 2 * sum_bytes, 1,
        ),
        (
            "down_gather.wgrad",
            (*back, partial(rand, *down, dtype=wide), made, ends), top, sum_bytes, 2,
        ),
    ):  # fmt: skip
        yield name, call(*inputs, **attrs, moved=moved, flops=flops // work)


def timed(run: Callable[[], object]) -> Spread:
    """Milliseconds of one run on the device."""
    times = []
    for _ in range(ROUNDS + WARM_UP):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return spread(times[WARM_UP:])


def variants(name: str) -> Iterator[tuple[str, Callable[..., object]]]:
    """The bodies of an operator: reference, torch's, Triton; or its parts, and the fused one."""
    from weft.kernels.fused.table import fused_bodies  # noqa: PLC0415 - needs a GPU
    from weft.kernels.triton.table import triton_bodies  # noqa: PLC0415 - needs a GPU

    if name in FUSED:
        parts = {**reference_bodies(), **cuda_bodies(), **triton_bodies()}
        yield "parts", in_sequence(FUSED[name], parts)
        yield "fused", fused_bodies()[name].body
    for kind, table in (
        ("reference", reference_bodies()), ("torch", cuda_bodies()), ("triton", triton_bodies()),
    ):  # fmt: skip
        if name in table:
            yield kind, table[name]


def compare(file: Path, only: list[str]) -> Iterator[str]:
    """One line a body and shape."""
    yield f"{'shape':5} {'body':22} {'floor ms':>9}  variants: ms (of the floor)"
    for label, shape in SHAPES.items():
        for name, make in both_ways(shape):
            if only and name.partition(".")[0] not in only:
                continue
            trial = make()
            found = {}
            for kind, body in variants(name):
                if kind == "reference" and name.startswith("expert"):
                    continue  # a loop over experts that reads their ends on the host
                found[kind] = timed(lambda b=body, t=trial: b(*t.inputs, **t.attrs))
                line = {
                    "shape": label, "body": name, "variant": kind,
                    "ms": found[kind].record(), "floor_ms": trial.floor_ms,
                }  # fmt: skip
                record.append(file, record.entry("kernels", DEVICE, line))
            words = "  ".join(
                f"{kind} {one.median:.3f} ({one.median / trial.floor_ms:.2f})"
                for kind, one in found.items()
            )
            yield f"{label:5} {name:22} {trial.floor_ms:9.3f}  {words}"
            del trial
            torch.cuda.empty_cache()


def tiles(file: Path) -> Iterator[str]:
    """The experts' weight gradient, added and written, with tiles of several shapes."""
    from weft.kernels.triton import grouped  # noqa: PLC0415

    ways = {"wgrad": grouped.expert_wgrad_tiled, FIRST: grouped.expert_wgrad_first_tiled}
    for label, shape in SHAPES.items():
        for name, make in both_ways(shape):
            op, _, phase = name.partition(".")
            if op not in ("expert_up", "expert_down") or phase not in ways:
                continue
            trial = make()
            for tile in shapes(grouped.Tile):
                try:
                    took = timed(lambda t=tile, x=trial, way=ways[phase]: way(*x.inputs, t))
                except Exception as error:  # noqa: BLE001 - a tile that does not fit is a result
                    yield f"{label} {name} {tile}: {str(error)[:80]}"
                    continue
                line = {"shape": label, "body": name, "tile": repr(tile), "ms": took.record()}
                record.append(file, record.entry("tiles", DEVICE, line))
                reached = f"{took.median:.3f} ms, {trial.flops / took.median / 1e9:.0f} TFLOP/s"
                yield f"{label} {name} {tile}: {reached}"


def shapes(tile: type) -> Iterator[object]:
    """Tiles that fit a multiprocessor of an H200."""
    for m, n, warps in ((128, 256, 8), (256, 128, 8), (128, 128, 4), (128, 128, 8), (64, 256, 4)):
        for stages in (3, 4):
            for copy_engine, part in ((True, n // 2), (False, 32)):
                yield tile(m=m, n=n, warps=warps, stages=stages, copy_engine=copy_engine, part=part)


def main() -> None:
    parser = argparse.ArgumentParser(description="fast bodies beside their references")
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--tiles", action="store_true")
    chosen = parser.parse_args()
    lines = tiles(chosen.file) if chosen.tiles else compare(chosen.file, chosen.only)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
