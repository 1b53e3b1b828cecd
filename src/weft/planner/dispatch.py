"""Which way tokens reach their experts: the one that adds least to the time of a layer.

    recipe with parallel.dispatch = "auto"
      -> with each way in its place, where the rules allow it
      -> the step of its first rank, composed; of it one layer with experts, forward and backward
      -> played on its lanes at the prices of a machine: products and attention are the same,
         what is exposed of the wire is not, nor are the passes over rows that a way needs

Bytes do not decide: those that hide under a product cost nothing. Nor do exposed bytes alone: a way
that waits less and moves rows twice may take longer. The same recipe on the same machine gives the
same way on every rank.

Paper: 1.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from weft.compose.plan import Plan, sizes
from weft.compose.recipe import plan as plan_of
from weft.compose.stage import chunks_of
from weft.config.run import RunConfig
from weft.errors import ConfigError, LayoutError
from weft.model.families import Kind
from weft.parallel.layout import Dispatch
from weft.planner.cost import Rates, imbalanced
from weft.planner.simulate import Regime, Segment, Studio, segment

AUTO = "auto"
_MICROSECOND = 1e-6  # times that differ by less are equal


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way, and what a layer and micro-batch take with it, of which some waits for the wire; or
    the rule that forbids it.
    """

    dispatch: str
    seconds: float = 0.0
    exposed: float = 0.0
    refused: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """A recipe that leaves nothing open, and why: every way, the best first."""

    config: RunConfig
    machine: str
    ways: tuple[Way, ...] = ()


def settle(config: RunConfig, found: Rates) -> Settled:
    """The recipe with the way that a machine's prices choose; as it is where it names one."""
    if config.parallel.dispatch != AUTO:
        return Settled(config=config, machine=found.machine.name)
    if config.parallel.ep == 1:
        return Settled(config=taking(config, Dispatch.ALL_TO_ALL), machine=found.machine.name)
    ways = tuple(sorted((_way(config, way, found) for way in Dispatch), key=_badness))
    chosen = taking(config, Dispatch(ways[0].dispatch))
    return Settled(config=chosen, machine=found.machine.name, ways=ways)


def taking(config: RunConfig, way: Dispatch) -> RunConfig:
    """The recipe with a way in the place of its own.

    Raises:
        ConfigError, LayoutError: a rule forbids it.
    """
    parallel = {**config.parallel.model_dump(), "dispatch": way.value}
    return RunConfig.model_validate({**config.model_dump(), "parallel": parallel})


def text(settled: Settled) -> str:
    """The choice and its reason in a line; nothing where the recipe made it."""
    if not settled.ways:
        return ""
    chosen, *others = settled.ways
    beside = "".join(f"; {other.dispatch} {_cost(other)}" for other in others)
    return (
        f'parallel.dispatch = "auto": {chosen.dispatch}, the shortest layer and micro-batch on '
        f"{settled.machine}: {_cost(chosen)}{beside}"
    )


def _cost(way: Way) -> str:
    if way.refused:
        return f"is refused ({way.refused})"
    return f"{_us(way.seconds)}, {_us(way.exposed)} exposed"


def _us(seconds: float) -> str:
    return f"{seconds / _MICROSECOND:,.0f} us"


def _badness(way: Way) -> tuple[bool, int, float]:
    return bool(way.refused), round(way.seconds / _MICROSECOND), way.exposed


def _way(config: RunConfig, dispatch: Dispatch, found: Rates) -> Way:
    try:
        plan = plan_of(taking(config, dispatch), 0)
    except (ConfigError, LayoutError) as error:
        return Way(dispatch=dispatch.value, refused=str(error).partition(";")[0])
    # a layer by itself: what is woven with it, or ordered by hand, is of one way only
    played = list(_layer(replace(plan, across=False, merge=False, saved=""), found))
    return Way(
        dispatch=dispatch.value,
        exposed=sum(sum(part.exposed.values()) for part in played),
        seconds=sum(part.seconds for part in played),
    )


def _layer(plan: Plan, found: Rates) -> Iterator[Segment]:
    """Forward and backward of the last layer that has experts, on the stage that holds it."""
    layer = max(i for i in range(plan.shape.layers) if plan.shape.kind(i) is not Kind.DENSE)
    holder = next(stage for stage in _stages(plan) if _holds(stage, layer))
    studio = Studio()
    step = studio.compose(holder, found)
    n = imbalanced(sizes(holder), found.constants.imbalance)
    for part in ("forward", "backward"):
        ordered = step.templates[f"{plan.shape.kind(layer)}.{part}"]
        yield segment(ordered, n, found, Regime(), studio.asked(ordered.program, n))


def _stages(plan: Plan) -> Iterator[Plan]:
    return (replace(plan, rank=at * plan.layout.stage) for at in range(plan.layout.pp))


def _holds(plan: Plan, layer: int) -> bool:
    return any(layer in chunk.layers for chunk in chunks_of(plan))
