"""One rank of a run, assembled: device, wire, stage, evaluator and feed."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from weft.checkpoint.background import Snapshot
from weft.comm.mesh import Mesh
from weft.comm.transport import LINKS, Transport
from weft.comm.transports.gloo import GlooTransport
from weft.comm.transports.nccl import NcclTransport
from weft.comm.transports.stacked import StackedWorld
from weft.comm.transports.watched import WatchedTransport
from weft.compose.recipe import plan as make_plan
from weft.config.run import RunConfig
from weft.errors import ConfigError
from weft.runtime import backends, state
from weft.runtime.closures import Body
from weft.runtime.stage import Evaluator, Stage, build
from weft.runtime.stage import evaluator as build_evaluator
from weft.trainer import peers
from weft.trainer.feed import Feed, open_feed
from weft.trainer.pulse import Pulse
from weft.trainer.settle import settle
from weft.trainer.stop import Stop

_LANES = ("comm",)  # no step issues on another one, and each opens its own connections


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Which rank this is, of how many, on which device, and where the ranks meet (None: alone).

    `neighbours` counts the ranks that share this machine's cores, this one included.
    """

    rank: int
    world: int
    device: torch.device
    meeting: str | None
    neighbours: int = 1
    timeout_seconds: float = 600.0  # longer than any step; a first step may compile kernels
    stop: Stop = field(default_factory=Stop)
    pulse: Pulse = field(default_factory=Pulse)


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """Everything one rank trains with."""

    config: RunConfig
    place: Place
    transport: Transport
    table: backends.Table
    stage: Stage
    evaluator: Evaluator
    feed: Feed
    snapshot: Snapshot  # what a step waits for before it changes the state
    meet: Callable[[], None]  # a barrier apart from the transport's, for what goes on beside steps

    @property
    def leads(self) -> bool:
        """Whether this rank writes and prints."""
        return self.place.rank == 0

    @property
    def run_dir(self) -> Path:
        return Path(self.config.train.run_dir)


def open_session(config: RunConfig, place: Place) -> Session:
    """Joins the other ranks and builds this one's part."""
    feed = open_feed(config)
    backends.prepare(place.device, threads=config.train.threads, neighbours=place.neighbours)
    transport = WatchedTransport(connect(config, place), place.pulse)
    config = settle(config, transport, place.device, rank=place.rank)
    plan = make_plan(config, place.rank)
    table = backends.choose(place.device, state.precision(plan.precision).act, config.kernels)
    plan = backends.with_fused(plan, table, config.kernels)
    snapshot = Snapshot()
    bodies = dict(backends.bodies(table))
    # whatever changes the state reads the verdict
    bodies["decide"] = _after(snapshot.hold, bodies["decide"])
    built = build(plan, bodies=bodies, transport=transport, device=place.device)
    return Session(
        config=config,
        place=place,
        transport=transport,
        table=table,
        stage=built,
        evaluator=build_evaluator(built, bodies=bodies, device=place.device),
        feed=feed,
        snapshot=snapshot,
        meet=_separate_barrier(place),
    )


def _after(wait: Callable[[], None], body: Body) -> Body:
    """A body that runs once a wait is over."""

    def waited(*inputs: Any, **attributes: Any) -> Any:
        wait()
        return body(*inputs, **attributes)

    return waited


def _separate_barrier(place: Place) -> Callable[[], None]:
    """A barrier of all ranks on the host over connections of its own, used once at once."""
    if place.world == 1:
        return lambda: None
    timeout = datetime.timedelta(seconds=place.timeout_seconds)
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup), f"{group=}"

    def meet() -> None:
        dist.barrier(group)

    meet()
    return meet


def connect(config: RunConfig, place: Place) -> Transport:
    """This rank's transport: NCCL on CUDA, with peer memory beside it, gloo on CPU, none of them
    for a rank alone.
    """
    if place.world > 1:
        check_transport(config.kernels.transport, place.device)
        join(place)
    return open_transport(config, place)


def check_transport(wanted: str, device: torch.device) -> None:
    """Returns when several ranks can have the wire that a recipe asks for.

    Raises:
        ConfigError: they cannot.
    """
    if wanted == "symmetric" and device.type != "cuda":
        raise ConfigError(
            f"kernels.transport = 'symmetric': needs CUDA devices, found {device.type}; try 'auto'"
        )


def join(place: Place) -> None:
    """Meets the other ranks: what every transport of this process stands on."""
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if place.device.type == "cuda" else "gloo",
        init_method=place.meeting,
        rank=place.rank,
        world_size=place.world,
        timeout=datetime.timedelta(seconds=place.timeout_seconds),
    )


def open_transport(config: RunConfig, place: Place) -> Transport:
    """The groups of a layout, in a process that has joined the others."""
    parallel = config.parallel
    mesh = Mesh(pp=parallel.pp, dp=parallel.dp, sp=parallel.sp, ep=parallel.ep, node=parallel.node)
    links = LINKS if parallel.chunks > 1 else LINKS[:2]  # the way round is for chunks
    if place.world == 1:
        return StackedWorld(mesh).transport(0)
    seconds = place.timeout_seconds
    if place.device.type == "cuda":
        nccl = NcclTransport(
            mesh, device=place.device, timeout_seconds=seconds, lanes=_LANES, links=links
        )
        return peers.beside(
            nccl,
            config.kernels.transport,
            place.device,
            timeout_seconds=seconds,
            kernels=backends.peer_kernels(place.device),
        )
    return GlooTransport(mesh, timeout_seconds=place.timeout_seconds, lanes=_LANES, links=links)


def close_session(session: Session) -> None:
    """Leaves the other ranks in order."""
    session.transport.close()
    if session.place.world > 1:
        dist.destroy_process_group()
