"""One training step on a CPU, against Hugging Face's Mixtral from the same weights.

    scripts/bench cpu_step [--rounds 15] [--minutes 8] [--threads 2] [--json FILE]

A step is forward, backward, clipping at 1.0 and AdamW, in FP32, on one micro-batch of 8 random
sequences of 256 tokens, one document each; no balance loss and no z loss, in any of them. The first
steps must have equal losses, or nothing is reported. Each variant lives in a process of its own,
set up as its library sets it up; they take turns, in another order each round. A turn is one step
that is not timed and one that is, while the others sleep; it waits until the rest of the machine is
idle, but not for ever.

    weft          the executor: explicit backward, gradients added into flat buckets, fused AdamW
    weft eager    the same forward bodies under torch autograd, torch.optim.AdamW(fused=True)
    hf <name>     transformers' MixtralForCausalLM, SDPA, each experts implementation that fits, the
                  same AdamW
    hf <name> +   the same in a process set up as weft sets up its own (`runtime.backends.prepare`)
    floor         the matrix products and the attention of such a step alone, into memory that is
                  already there

The floor is the canary too: a round in which it is slow was disturbed by something else.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import starmap
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from weft.bench import record
from weft.bench.rig import Rig, assemble
from weft.bench.spread import Spread, spread
from weft.config.load import build, dump
from weft.config.run import RunConfig
from weft.ops.attention import attention_cpu, attention_cpu_dgrad
from weft.runtime import backends
from weft.runtime.eager import Oracle
from weft.runtime.stage import Rates
from weft.trainer.session import Place, connect

RECIPE: Mapping[str, Any] = {
    "name": "cpu-step",
    "model": {
        "family": "mixtral",
        "vocab": 2048,
        "hidden": 256,
        "layers": 4,
        "heads": 8,
        "kv_heads": 4,
        "head_dim": 32,
        "ffn_hidden": 512,
        "experts": 8,
        "top_k": 2,
        "aux_coef": 0.0,
    },
    "data": {"sequence": 256},
    "optim": {"lr": 1e-4, "warmup_steps": 0},
    "train": {
        "steps": 1000,
        "global_batch": 8,
        "micro_batch": 8,
        "precision": "float32",
        "device": "cpu",
        "eval_every": 1000,
        "checkpoint_every": 1000,
    },
}

# Of transformers' implementations, `deepgemm` and `sonicmoe` need a GPU.
EXPERTS = ("eager", "batched_mm", "grouped_mm")
AGREEING_STEPS = 4
CLOSE = 1e-4  # relative, of FP32 losses after a few updates: sums in other orders, no other model
MEMORY_SHARE = 0.5  # of what is free: a variant that needs more would measure the swap
CALM = 1.1  # a round is calm whose floor took at most so many times its least
HF_BAR = 1.05
IDLE_SHARE = 0.95  # of the cores, over LOOK_SECONDS, before a turn: Linux says so in /proc/stat
LOOK_SECONDS = 0.3
PATIENCE_SECONDS = 10.0  # before a turn is taken on a busy machine
PREPARED = " +"

Step = Callable[[], float]  # makes a step and returns the loss before its update


# ---- weft ---------------------------------------------------------------------------------------


def executor_step(rig: Rig) -> Step:
    optim, done = rig.config.optim, 0

    def step() -> float:
        nonlocal done
        done += 1
        rates = Rates(lr=optim.lr, weight_decay=optim.weight_decay, step=done)
        made = rig.stage.train(rig.batches, divisor=float(rig.tokens), rates=rates)
        assert float(made["verdict"][1]) == 0, "the step was refused"
        return float(made["stats"][0])

    return step


def eager_step(rig: Rig) -> Step:
    statics = rig.stage.state.statics
    weights = {
        p.name: nn.Parameter(statics[f"param:{p.name}"].clone()) for p in rig.stage.step.parameters
    }
    biases = {k.removeprefix("state:"): v for k, v in statics.items() if k.startswith("state:")}
    oracle = Oracle(plan=rig.plan, bodies=rig.bodies, weights={**weights, **biases})
    (batch,) = rig.batches
    return autograd_step(
        lambda: oracle.losses(batch, float(rig.tokens)).sum(), list(weights.values()), rig.config
    )


# ---- Hugging Face -------------------------------------------------------------------------------


def hf_step(rig: Rig, experts: str) -> Step:
    model = hf_model(rig, experts)
    (batch,) = rig.batches
    shape = (rig.plan.micro_batch, rig.plan.sequence)
    tokens, targets = batch.tokens.view(shape), batch.targets.view(shape)

    def loss() -> Tensor:  # the targets are shifted already
        return model(input_ids=tokens, labels=targets, shift_labels=targets, use_cache=False).loss

    return autograd_step(loss, list(model.parameters()), rig.config)


def hf_model(rig: Rig, experts: str) -> nn.Module:
    shape, arithmetic = rig.plan.shape, rig.plan.arithmetic
    config = transformers.MixtralConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn_hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        max_position_embeddings=rig.plan.sequence,
        rms_norm_eps=arithmetic.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": arithmetic.rope_theta},
        sliding_window=None,
        output_router_logits=False,
    )
    model = transformers.MixtralForCausalLM(config)
    model.set_attn_implementation("sdpa")
    model.set_experts_implementation(experts)
    copy_weights(rig, model)
    return model.train()


@torch.no_grad()
def copy_weights(rig: Rig, model: nn.Module) -> None:
    """Gives the model weft's weights, every one of them."""
    shape = rig.plan.shape
    named = {
        k.removeprefix("param:"): v
        for k, v in rig.stage.state.statics.items()
        if k.startswith("param:")
    }
    sizes = [shape.heads * shape.head_dim, *[shape.kv_heads * shape.head_dim] * 2]
    wanted = {
        "model.embed_tokens.weight": named["embed"],
        "model.norm.weight": named["norm"],
        "lm_head.weight": named["head"],
    }
    for i in range(shape.layers):
        here, there = f"layers.{i}", f"model.layers.{i}"
        for letter, part in zip("qkv", named[f"{here}.qkv"].split(sizes), strict=True):
            wanted[f"{there}.self_attn.{letter}_proj.weight"] = part
        wanted[f"{there}.self_attn.o_proj.weight"] = named[f"{here}.out"]
        wanted[f"{there}.input_layernorm.weight"] = named[f"{here}.norm1"]
        wanted[f"{there}.post_attention_layernorm.weight"] = named[f"{here}.norm2"]
        wanted[f"{there}.mlp.gate.weight"] = named[f"{here}.router"]
        wanted[f"{there}.mlp.experts.gate_up_proj"] = named[f"{here}.up"]
        wanted[f"{there}.mlp.experts.down_proj"] = named[f"{here}.down"]
    parameters = dict(model.named_parameters())
    assert parameters.keys() == wanted.keys(), parameters.keys() ^ wanted.keys()
    for name, parameter in parameters.items():
        parameter.copy_(wanted[name])


def autograd_step(
    loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], config: RunConfig
) -> Callable[[], float]:
    """What everybody writes: zero, forward, backward, clip, update."""
    optim = config.optim
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    betas = (optim.beta1, optim.beta2)
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, optim.clip_norm)
        optimizer.step()
        return float(value.detach())

    return step


# ---- the floor ----------------------------------------------------------------------------------


def floor_step(rig: Rig) -> Step:
    """Products and attention of a step; what they read and write is there before."""
    shape, rows = rig.plan.shape, rig.tokens
    share = rows * shape.top_k // shape.experts  # every expert gets as much
    expert = [(share, shape.hidden, 2 * shape.ffn_hidden), (share, shape.ffn_hidden, shape.hidden)]
    layer = [
        (rows, shape.hidden, shape.qkv_columns),
        (rows, shape.attention_columns, shape.hidden),
        (rows, shape.hidden, shape.experts),
        *expert * shape.experts,
    ]
    products = list(starmap(product, [*layer * shape.layers, (rows, shape.hidden, shape.vocab)]))
    attend = [attention(rig) for _ in range(shape.layers)]

    def step() -> float:
        for run in (*products, *attend):
            run()
        return 0.0

    return step


def product(rows: int, inner: int, outer: int) -> Callable[[], None]:
    """A linear map forward, and its two gradients."""
    x, w, dy = torch.randn(rows, inner), torch.randn(outer, inner), torch.randn(rows, outer)
    y, dx, dw = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(w)

    def run() -> None:
        torch.mm(x, w.T, out=y)
        torch.mm(dy, w, out=dx)
        torch.mm(dy.T, x, out=dw)

    return run


def attention(rig: Rig) -> Callable[[], None]:
    shape, (batch,) = rig.plan.shape, rig.batches
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    q, k, v = (torch.randn(rig.tokens, count, shape.head_dim) for count in heads)

    def run() -> None:
        a, lse = attention_cpu(q, k, v, batch.segments)
        attention_cpu_dgrad(q, q, k, v, a, lse, batch.segments)

    return run


# ---- processes ----------------------------------------------------------------------------------


def names(config: RunConfig) -> Iterator[str]:
    """The variants that fit this machine."""
    yield from ("weft", "weft eager")
    for experts in EXPERTS:
        needed = batched_bytes(config) if experts == "batched_mm" else 0
        if needed > MEMORY_SHARE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            print(
                f"hf {experts}: left out; it copies an expert for each choice, "
                f"{needed / 2**30:.0f} GiB"
            )
            continue
        yield from (f"hf {experts}", f"hf {experts}{PREPARED}")
    yield "floor"


def batched_bytes(config: RunConfig) -> int:
    """What `batched_mm` keeps for the backward: each choice's own copy of its expert."""
    model = config.model
    choices = config.train.micro_batch * config.data.sequence * model.top_k
    return 4 * choices * 3 * model.hidden * model.ffn_hidden * model.layers


def live(name: str, threads: int, pipe: Connection) -> None:
    """The life of a variant's process: answers a number of steps with their losses and seconds."""
    step = make(name, threads)
    while count := pipe.recv():
        answer = []
        for _ in range(count):
            begun = time.perf_counter()
            loss = step()
            answer.append((loss, time.perf_counter() - begun))
        pipe.send(answer)


def make(name: str, threads: int) -> Step:
    """A variant, in a process set up as its library does."""
    config = recipe(threads)
    place = Place(rank=0, world=1, device=torch.device("cpu"), meeting=None)
    if name.startswith("weft") or name.endswith(PREPARED):
        backends.prepare(place.device, threads=threads, neighbours=1)
    torch.set_num_threads(threads)
    rig = assemble(config, place, connect(config, place))
    match name.removesuffix(PREPARED).split():
        case ["weft"]:
            return executor_step(rig)
        case ["weft", "eager"]:
            return eager_step(rig)
        case ["hf", experts]:
            return hf_step(rig, experts)
        case _:
            return floor_step(rig)


def recipe(threads: int) -> RunConfig:
    return build(RECIPE, [f"train.threads={threads}"])


@contextmanager
def started(wanted: Sequence[str], threads: int) -> Iterator[dict[str, Connection]]:
    """A process for each variant, waiting for its turn."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in wanted:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=live, args=(name, threads, theirs), daemon=True))
        processes[-1].start()
        theirs.close()  # so that a process that dies ends the wait for its answer
    try:
        yield pipes
    finally:
        for process in processes:
            process.kill()


# ---- the measurement ----------------------------------------------------------------------------


def turn(pipe: Connection, steps: int) -> list[tuple[float, float]]:
    pipe.send(steps)
    return pipe.recv()


def agree(pipes: Mapping[str, Connection]) -> dict[str, list[float]]:
    """The first losses of each variant; they must be those of one model."""
    losses = {
        name: [loss for loss, _ in turn(pipe, AGREEING_STEPS)] for name, pipe in pipes.items()
    }
    del losses["floor"]
    for name, found in losses.items():
        for a, b in zip(found, losses["weft"], strict=True):
            assert abs(a - b) <= CLOSE * abs(b), (
                f"{name} has losses {found}, weft has {losses['weft']}"
            )
    return losses


def await_quiet() -> None:
    """Returns when the machine is idle, or when patience has run out."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        before = idle_ticks()
        time.sleep(LOOK_SECONDS)
        idle, total = (b - a for a, b in zip(before, idle_ticks(), strict=True))
        if idle >= IDLE_SHARE * total:
            return


def idle_ticks() -> tuple[int, int]:
    """Ticks of all cores so far, idle ones and all of them; none where there is no /proc/stat."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0, 0
    ticks = [int(word) for word in stat.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)  # idle and waiting for disks: proc(5)


def take_turns(
    pipes: Mapping[str, Connection], rounds: int, minutes: float
) -> dict[str, list[float]]:
    """Seconds of each variant's timed steps, round by round, as many as there is time for."""
    times: dict[str, list[float]] = {name: [] for name in pipes}
    order = list(pipes)
    deadline = time.monotonic() + 60 * minutes
    for number in range(rounds):
        if number and time.monotonic() > deadline:
            break
        first = number % len(order)
        for name in (*order[first:], *order[:first]):
            await_quiet()
            _, (_, seconds) = turn(pipes[name], 2)
            times[name].append(seconds)
    return times


def calm(times: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The same without the rounds that something else disturbed."""
    limit = CALM * min(times["floor"])
    quiet = [seconds <= limit for seconds in times["floor"]]
    return {n: [s for s, q in zip(found, quiet, strict=True) if q] for n, found in times.items()}


def ratios(times: Mapping[str, Sequence[float]], name: str) -> Spread:
    """How many times as long as weft another took, round by round."""
    return spread([b / a for a, b in zip(times["weft"], times[name], strict=True)])


def table(times: Mapping[str, Sequence[float]]) -> str:
    lines = [
        (
            f"{'':<18} {'ms, median (min to p90)':<28} {'medians':>9}  "
            "times as long as weft, by rounds (min to p90)"
        )
    ]
    base = statistics.median(times["weft"])
    for name, found in times.items():
        ms, ratio = spread(found).scaled(1e3).text(1), statistics.median(found) / base
        lines.append(f"{name:<18} {ms:<28} {ratio:>8.3f}x  {ratios(times, name).text(3)}")
    return "\n".join(lines)


def verdicts(times: Mapping[str, Sequence[float]]) -> str:
    """The two bars."""
    shipped = [n for n in times if n.startswith("hf ") and not n.endswith(PREPARED)]
    best = min(shipped, key=lambda name: ratios(times, name).median)
    return "\n".join(
        f"bar: {name} takes at least {bar:.2f} times as long: {ratio:.3f}, "
        f"{'met' if ratio >= bar else 'NOT met'}"
        for name, bar in (("weft eager", 1.0), (best, HF_BAR))
        for ratio in (ratios(times, name).median,)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="One training step on a CPU, against Hugging Face's."
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--minutes", type=float, default=8.0, help="then the last round ends it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--json", type=Path, help="default: benchmarks/results/<machine>/cpu_step.jsonl"
    )
    arguments = parser.parse_args()
    device, config = torch.device("cpu"), recipe(arguments.threads)
    with started(list(names(config)), arguments.threads) as pipes:
        losses = agree(pipes)
        times = take_turns(pipes, arguments.rounds, arguments.minutes)
    quiet = calm(times)
    print(
        f"{config.train.global_batch * config.data.sequence} tokens a step, FP32, "
        f"{arguments.threads} threads, transformers {transformers.__version__}, "
        f"torch {torch.__version__}"
    )
    print("first losses agree: " + ", ".join(f"{x:.5f}" for x in losses["weft"]))
    print(f"\nall {len(times['floor'])} rounds\n{table(times)}\n{verdicts(times)}")
    print(f"\n{len(quiet['floor'])} calm rounds\n{table(quiet)}\n{verdicts(quiet)}")
    results = Path(__file__).parent / "results" / record.name(device) / "cpu_step.jsonl"
    figures = {
        "config": dump(config),
        "transformers": transformers.__version__,
        "losses": losses,
        "seconds": times,
        "ratios": {name: ratios(times, name).record() for name in times},
        "calm_ratios": {name: ratios(quiet, name).record() for name in times},
    }
    record.append(arguments.json or results, record.entry("cpu_step", device, figures))


if __name__ == "__main__":
    main()
