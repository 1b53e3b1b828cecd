"""What the executor itself costs: a layer's real schedule with bodies that do nothing.

The schedule is that of one routed layer, forward and backward, of two sequence-parallel and
expert-parallel ranks, in the overlapped order: real slots, frees, posts and waits. Whatever time is
left is the host time that weft adds to each task. On CUDA the posts and waits go over real streams
and events, and a lane crossing is timed by itself too.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weft.bench.spread import Spread, spread
from weft.comm.handle import Finished
from weft.compose.plan import Arithmetic, Plan, Update
from weft.compose.step import Step, training_step
from weft.graph.opset import Lane
from weft.model.families import Shape
from weft.parallel.layout import Layout
from weft.runtime.closures import Body
from weft.runtime.executor import BoundStep, Environment, bind
from weft.runtime.lanes import CudaLanes, HostLanes, Lanes
from weft.schedule.action import is_collective

TASK_BAR_US = 1.0  # a body of the smallest useful size takes tens of microseconds
CROSSING_BAR_US = 8.0  # what two kernel launches cost, at about 4 us each
_WARM_UP = 20
_RUNS = 50  # a timed stretch: milliseconds, far above the clock's resolution
_CROSSINGS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Overhead:
    """Host microseconds a task, over all actions of the schedule; and a lane crossing, on CUDA."""

    device: str
    tasks: int
    collectives: int
    closures: int
    task_us: Spread
    crossing_us: Spread | None
    drained_crossing_us: Spread | None


def measure(device: torch.device, *, repeats: int = 30) -> Overhead:
    """The executor's overhead on a device."""
    step = layer_step()
    bound, environment = idle(step, device, _lanes(device))
    tasks = [t for i in step.instances for t in step.templates[i.template].program.tasks]
    times = [_stretch(bound, environment, device) for _ in range(repeats)]
    cuda = device.type == "cuda"
    crossings = [_crossings(device) for _ in range(repeats)] if cuda else []
    return Overhead(
        device=device.type,
        tasks=len(tasks),
        collectives=sum(is_collective(t) for t in tasks),
        closures=sum(len(i.template.closures) for i in bound.instances),
        task_us=spread(times).scaled(1e6 / len(tasks)),
        crossing_us=spread([issued for issued, _ in crossings]).scaled(1e6) if cuda else None,
        drained_crossing_us=spread([done for _, done in crossings]).scaled(1e6) if cuda else None,
    )


def layer_step() -> Step:
    """The forward and the backward of one routed layer, as a step of two instances."""
    whole = training_step(_plan())
    names = ("moe.forward", "moe.backward")
    return replace(
        whole,
        templates={name: whole.templates[name] for name in names},
        instances=tuple(i for i in whole.instances if i.template in names),
    )


def _plan() -> Plan:
    """The layout decides the schedule, the sizes do not: they are only legal ones."""
    shape = Shape(
        vocab=512, hidden=64, layers=1, heads=4, kv_heads=2, head_dim=16, ffn_hidden=128,
        experts=8, top_k=2, shared_experts=0, dense_layers=0, dense_ffn_hidden=0,
        qk_norm=False, tied=False, init_std=0.02,
    )  # fmt: skip
    arithmetic = Arithmetic(
        norm_eps=1e-5, rope_theta=1e4, score="softmax", renormalise=True, scaling=1.0,
        aux_coef=0.01, z_coef=0.0,
    )  # fmt: skip
    return Plan(
        shape=shape,
        arithmetic=arithmetic,
        layout=Layout(sp=2, ep=2),
        rank=0,
        sequence=64,
        micro_batch=1,
        micro_batches=1,
        precision="float32",
        order="overlapped",
        update=Update(beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0),
    )


def idle(step: Step, device: torch.device, lanes: Lanes) -> tuple[BoundStep, Environment]:
    """A step bound to bodies that do nothing, and an environment with everything it reads."""
    token = torch.zeros(1, device=device)
    bodies = idle_bodies(step, token)
    statics = {key: token for i in step.instances for key in i.statics.values()}
    written = {key for i in step.instances for key in i.writes.values()}
    read = {key for i in step.instances for key in i.reads.values()}
    bound = bind(step, bodies=bodies, statics=statics, lanes=lanes)
    return bound, dict.fromkeys(read - written, token)


def idle_bodies(step: Step, token: Tensor) -> Mapping[str, Body]:
    """For each body of a step one that returns at once, and as many results."""
    found: dict[str, Body] = {}
    for ordered in step.templates.values():
        for task in ordered.program.tasks:
            arrived = task.lane is Lane.COMM
            one = Finished(token) if arrived else token
            found[task.body] = _returning(
                one if len(task.outputs) == 1 else (one,) * len(task.outputs)
            )
    return found


def _returning(result: object) -> Callable[..., object]:
    def body(*_inputs: object, **_attributes: object) -> object:
        return result

    return body


def _lanes(device: torch.device) -> Lanes:
    return CudaLanes(device) if device.type == "cuda" else HostLanes()


def _stretch(bound: BoundStep, environment: Environment, device: torch.device) -> float:
    """Host seconds of one run, over a stretch of them; the device starts idle each time."""
    for _ in range(_WARM_UP):
        bound.run(environment.copy())
    _synchronize(device)
    begun = time.perf_counter()
    for _ in range(_RUNS):
        bound.run(environment.copy())
    seconds = time.perf_counter() - begun
    _synchronize(device)
    return seconds / _RUNS


def _crossings(device: torch.device) -> tuple[float, float]:
    """Seconds a crossing: until the host has issued it, and until the device has done it."""
    arrived = Finished(torch.zeros(1, device=device))
    post = CudaLanes(device).posting(lambda _x: arrived, "ep")
    for _ in range(_WARM_UP):
        post(None).wait()
    _synchronize(device)
    begun = time.perf_counter()
    for _ in range(_CROSSINGS):
        post(None).wait()
    issued = time.perf_counter() - begun
    _synchronize(device)
    done = time.perf_counter() - begun
    return issued / _CROSSINGS, done / _CROSSINGS


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def render(overhead: Overhead) -> str:
    """The figures against their bars, as text."""
    lines = [
        f"one routed layer, forward and backward, sp 2 x ep 2, overlapped order, {overhead.device}",
        (
            f"  {overhead.tasks} tasks, {overhead.collectives} of them collectives, "
            f"in {overhead.closures} closures"
        ),
        _line("host time a task", overhead.task_us, None if overhead.crossing_us else TASK_BAR_US),
    ]
    if overhead.crossing_us is not None and overhead.drained_crossing_us is not None:
        lines.append(_line("lane crossing, issued", overhead.crossing_us, CROSSING_BAR_US))
        lines.append(_line("lane crossing, done", overhead.drained_crossing_us, None))
    return "\n".join(lines)


def _line(name: str, figure: Spread, bar: float | None) -> str:
    verdict = ""
    if bar is not None:
        verdict = f"   bar {bar:g}: {'met' if figure.median <= bar else 'NOT met'}"
    return f"  {name:<22} {figure.text(3)} us, median (min to p90) of {figure.repeats}{verdict}"


def record(overhead: Overhead) -> dict[str, object]:
    """The figures as JSON."""
    crossing, drained = overhead.crossing_us, overhead.drained_crossing_us
    return {
        "device": overhead.device,
        "tasks": overhead.tasks,
        "collectives": overhead.collectives,
        "closures": overhead.closures,
        "task_us": overhead.task_us.record(),
        "crossing_us": crossing.record() if crossing else None,
        "drained_crossing_us": drained.record() if drained else None,
    }
