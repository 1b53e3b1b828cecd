"""A rank set up to be measured: its stage, and random tokens in place of a corpus.

All that is bound to one state shares its lanes: each stream keeps a pool of memory of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist

from weft.comm.transport import Transport
from weft.compose.plan import OVERFLOW, Plan
from weft.compose.recipe import plan as make_plan
from weft.compose.step import Step
from weft.config.run import RunConfig
from weft.data.batches import MicroBatch
from weft.data.order import micro_batches
from weft.errors import LayoutError
from weft.runtime import backends, stage, state
from weft.runtime.batch import Batch
from weft.runtime.batch import stage as stage_batch
from weft.runtime.closures import Body
from weft.runtime.executor import BoundStep, Environment, bind
from weft.runtime.lanes import Lanes
from weft.runtime.stage import Rates, Stage, lanes_of
from weft.runtime.wire import wired
from weft.trainer.session import Place, connect

_BALANCE = ("balance:biases", "balance:pasts")  # what a step leaves to the next one

Wrap = Callable[[Mapping[str, Body]], Mapping[str, Body]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rig:
    """One rank with everything a step needs."""

    config: RunConfig
    place: Place
    plan: Plan
    bodies: Mapping[str, Body]
    transport: Transport
    lanes: Lanes
    stage: Stage
    batches: tuple[Batch, ...]

    @property
    def tokens(self) -> int:
        """Tokens of a step, over all ranks."""
        return self.config.train.global_batch * self.config.data.sequence

    def environment(self) -> Environment:
        """What one step reads, its sums cleared: a learning rate of zero, which is as much work.

        The same step does the same work each time only while weights stay as they are: routers that
        learn one batch of random tokens over and over come to prefer few experts. What keeps their
        load even moves without a rate: it begins anew.
        """
        for key in _BALANCE:
            self.stage.state.statics[key].zero_()
        rates = Rates(lr=0.0, weight_decay=0.0, step=1)
        return self.stage.environment(self.batches, divisor=float(self.tokens), rates=rates)

    def bound(self, wrap: Wrap, wrap_lanes: Callable[[Lanes], Lanes]) -> BoundStep:
        """The step bound once more to the same state, with wrapped bodies and lanes."""
        return bind(
            self.stage.step,
            bodies=wrap(wired(self.bodies, self.transport, self.plan.sync.gradients)),
            statics=self.stage.state.statics,
            lanes=wrap_lanes(self.lanes),
        )

    def with_step(self, step: Step) -> "Rig":
        """The same rank with another step over the same state."""
        rig = replace(self, plan=step.plan, stage=replace(self.stage, step=step))
        bound = rig.bound(lambda bodies: bodies, lambda lanes: lanes)
        return replace(rig, stage=replace(rig.stage, bound=bound))


@contextmanager
def rigged(config: RunConfig, place: Place, *, documents: int = 1) -> Iterator[Rig]:
    """A rank of a recipe, initialised and fed; leaves the other ranks in order at the end."""
    backends.prepare(place.device, threads=config.train.threads, neighbours=place.neighbours)
    transport = connect(config, place)
    try:
        rig = assemble(config, place, transport, documents=documents)
        yield rig
        _require_room(rig)
    finally:
        transport.close()
        if place.world > 1:
            dist.destroy_process_group()


def assemble(config: RunConfig, place: Place, transport: Transport, *, documents: int = 1) -> Rig:
    """A rank over an open transport, in a process that is prepared or is to stay as it is."""
    plan = make_plan(config, place.rank)
    table = backends.choose(place.device, state.precision(plan.precision).act, config.kernels)
    plan = backends.with_fused(plan, table, config.kernels)
    bodies, device = backends.bodies(table), place.device
    lanes = lanes_of(device, transport)
    built = stage.build(plan, bodies=bodies, transport=transport, device=device, lanes=lanes)
    state.initialise(built.state, seed=config.train.seed)
    return Rig(
        config=config,
        place=place,
        plan=plan,
        bodies=bodies,
        transport=transport,
        lanes=lanes,
        stage=built,
        batches=tuple(_batches(plan, config.train.seed, documents, place.device)),
    )


def _require_room(rig: Rig) -> None:
    """Passes where every step that was measured had room for its rows."""
    over = int(rig.stage.state.stats[OVERFLOW])
    if over:
        raise LayoutError(
            f"parallel.row_bound = {rig.plan.row_bound}: {over} rows of rank {rig.place.rank} "
            "found no room, expected all of them; try a higher one"
        )


def _batches(plan: Plan, seed: int, documents: int, device: torch.device) -> Iterator[Batch]:
    dp_rank = plan.layout.dp_rank(plan.rank)
    for m in micro_batches(plan.micro_batches, dp_rank=dp_rank, dp=plan.layout.dp):
        batch = random_tokens(plan, seed=(seed, m), documents=documents)
        yield stage_batch(batch, plan.share, device=device)


def random_tokens(plan: Plan, *, seed: tuple[int, ...], documents: int = 1) -> MicroBatch:
    """A micro-batch of uniform random tokens, each sequence cut at random into documents."""
    chance = np.random.default_rng(seed)
    tokens, targets = chance.integers(0, plan.shape.vocab, (2, plan.tokens))
    lengths: list[int] = []
    for _ in range(plan.micro_batch):
        cuts = chance.choice(np.arange(1, plan.sequence), size=documents - 1, replace=False)
        lengths += np.diff([0, *np.sort(cuts), plan.sequence]).tolist()
    return MicroBatch(
        tokens=tokens,
        targets=targets,
        positions=np.concatenate([np.arange(length) for length in lengths]),
        ends=tuple(np.cumsum(lengths).tolist()),
    )
