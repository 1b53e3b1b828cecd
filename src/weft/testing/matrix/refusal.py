"""Layouts that cannot exist, asked for at random: each refused with a rule and a layout that can.

    recipe with a random layout -> legal, or refused -> what the refusal proposes -> ... -> legal

A refusal ends in an assignment that can be pasted behind `--set`. It may leave another rule broken,
which the next refusal names; no rule is named twice, so following them ends.

What is legal in the end must be listened to: without any one of its keys the steps are others.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from weft.compose.plan import sizes
from weft.compose.recipe import plan as make_plan
from weft.compose.step import training_step
from weft.config.run import RunConfig
from weft.errors import ConfigError, LayoutError
from weft.planner.cost import rates
from weft.planner.dispatch import settle
from weft.planner.machine import nearest
from weft.testing.matrix.model import recipe

MODEL = "deep"
PROPOSED = "nearest legal value: "
# what may turn out as it is without it: a choice, and orders of programs that leave none
CHOSEN_FOR = ("parallel.dispatch", "overlap.order")
MOST_PROPOSALS = 8  # more than a layout has keys that depend on another
_DEGREES = (1, 1, 2, 3, 4, 5, 6, 8, 12, 16, 32)
_CHOICES = {
    "parallel.attention": ("sp", "tp", "cp"),
    "parallel.ffn": ("ep", "tp"),
    "parallel.dispatch": ("all_to_all", "all_gather", "deduplicated", "auto"),
    "parallel.row_bound": (0.0, 0.0, 0.5, 1.5),
    "parallel.pipeline": ("1f1b", "interleaved", "zero_bubble"),
    "parallel.zero": (1, 2),
    "parallel.node": (0, 0, 1, 2, 3, 4, 8),
    "parallel.chunks": (1, 1, 2, 3, 4),
    "parallel.bucket_elements": (1000, 40_000_000),
    "compression.gradients": ("fp32", "fp32", "bf16", "bf16_ring"),
    "compression.dispatch": ("none", "fp8"),
    "compression.combine_grad": ("none", "fp8"),
    "compression.scales": ("token", "block"),
    "overlap.order": ("overlapped", "serial", "paper"),
    "overlap.remat": ("none", "full", "selective"),
    "overlap.across": ("false", "true"),
    "overlap.merge": ("false", "false", "true"),
    "model.capacity": (0.0, 0.0, 1.0),
    "train.precision": ("float32", "float64"),
    "train.global_batch": (16, 16, 8, 12, 5),
    "data.sequence": (16, 16, 12, 6),
}


@dataclass(kw_only=True, slots=True)
class Tally:
    """How so many recipes were judged."""

    recipes: int = 0
    legal: int = 0
    refused: int = 0
    proposals: int = 0  # followed, until a recipe was legal
    at_once: int = 0  # refused recipes of which the first proposal was enough
    rules: Counter[str] = field(default_factory=Counter)  # refusals by the key that they name
    faults: list[str] = field(default_factory=list)


def refuse_all(folder: Path, seeds: range) -> Tally:
    """Judges the random recipes of these seeds."""
    tally = Tally()
    for number in seeds:
        overrides = draw(random.Random(number))
        fault = judge(folder, overrides, tally)
        if fault:
            tally.faults.append(f"seed {number}, {' '.join(overrides)}: {fault}")
    return tally


def joined(tallies: Sequence[Tally]) -> Tally:
    """Several tallies as one."""
    counts = ("recipes", "legal", "refused", "proposals", "at_once")
    return Tally(
        **{name: sum(getattr(tally, name) for tally in tallies) for name in counts},
        rules=sum((tally.rules for tally in tallies), Counter[str]()),
        faults=[fault for tally in tallies for fault in tally.faults],
    )


def draw(source: random.Random) -> list[str]:
    """A random layout as overrides; most have something wrong."""
    axes = source.sample(("pp", "dp", "sp", "ep"), source.randint(1, 4))
    chosen = source.sample(sorted(_CHOICES), source.randint(0, 4))
    return [
        *(f"parallel.{axis}={source.choice(_DEGREES)}" for axis in axes),
        *(f"{key}={source.choice(_CHOICES[key])}" for key in chosen),
    ]


def judge(folder: Path, overrides: Sequence[str], tally: Tally) -> str:
    """What is wrong with how a recipe was judged; nothing where it is legal, or led to one."""
    tally.recipes += 1
    asked = list(overrides)
    for proposals in range(MOST_PROPOSALS + 1):
        try:
            config = recipe(folder, MODEL, *asked)
            fault = ignored(config, asked) or unheard(folder, config, asked)
        except (ConfigError, LayoutError) as error:
            tally.rules[str(error).partition(" = ")[0]] += 1
            proposed = str(error).rpartition(PROPOSED)[2]
            if "=" not in proposed or PROPOSED not in str(error):
                return f"refused without a proposal: {error}"
            asked.append(proposed.replace(" = ", "=", 1))
            continue
        except Exception as error:  # noqa: BLE001 - what must not happen is what is looked for
            return f"{type(error).__name__}: {error}"
        tally.legal += proposals == 0
        tally.refused += proposals > 0
        tally.proposals += proposals
        tally.at_once += proposals == 1
        return fault
    return f"refused after {MOST_PROPOSALS} proposals: {asked[len(overrides) :]}"


def ignored(config: RunConfig, overrides: Sequence[str]) -> str:
    """The key of a legal recipe that is not as it was asked for, if there is one."""
    last = dict(override.split("=", 1) for override in overrides)
    for key, value in last.items():
        section, name = key.split(".")
        found = getattr(getattr(config, section), name)
        if str(found).lower() != value.strip('"').lower():
            return f"{key} is {found}, asked for was {value}"
    return ""


def unheard(folder: Path, config: RunConfig, overrides: Sequence[str]) -> str:
    """A key of a legal recipe that changes nothing in any step, if there is one.

    The steps are composed before anything starts: they are what would run.
    """
    asked = dict(override.split("=", 1) for override in overrides)
    plain, whole = recipe(folder, MODEL), steps(config)
    for key, value in asked.items():
        section, name = key.split(".")
        if getattr(getattr(config, section), name) == getattr(getattr(plain, section), name):
            continue
        others = [f"{k}={v}" for k, v in asked.items() if k != key]
        try:
            without = recipe(folder, MODEL, *others)
        except (ConfigError, LayoutError):
            continue  # the others need it
        if key not in CHOSEN_FOR and steps(without) == whole:
            return f"{key} = {value} is read by nobody"
    return ""


def steps(config: RunConfig) -> list[object]:
    """What the first and the last rank of a recipe would run."""
    settled = settle(config, rates(nearest(""))).config
    found: list[object] = [settled.parallel.ranks]
    for rank in sorted({0, settled.parallel.ranks - 1}):
        made = make_plan(settled, rank)
        step = training_step(made)
        found += [step.templates, step.instances, step.parameters, step.buckets]
        found += [made.precision, sizes(made)]
    return found
