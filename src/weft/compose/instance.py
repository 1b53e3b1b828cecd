"""Instances: one run of a template, where each of its inputs comes from, and when a key dies.

`statics` are tensors that live as long as the run (parameters, gradients, optimizer state); `reads`
and `writes` are values that travel between instances under a key, as they are or in flight; `drops`
are the keys whose last reader it is, so that a value dies with its last use inside the segment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from weft.graph.program import Program


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One run of a template."""

    template: str
    statics: Mapping[str, str]
    reads: Mapping[str, str]
    writes: Mapping[str, str]
    drops: tuple[str, ...] = ()


def instance_of(
    program: Program, reads: Mapping[str, str], writes: Mapping[str, str], at: str
) -> Instance:
    """Sorts a template's inputs into statics, by prefix, and reads."""
    statics = {name: static_key(name, at) for name in program.inputs if is_static(name)}
    wanted = {name: reads[name] for name in program.inputs if not is_static(name)}
    return Instance(template=program.name, statics=statics, reads=wanted, writes=dict(writes))


def is_static(name: str) -> bool:
    """Whether an input is a tensor that lives as long as the run."""
    return name.startswith(("w.", "acc.", "s."))


def is_shape(key: str) -> bool:
    """Whether a static tensor is there for its shape and dtype alone: nobody reads an element."""
    return key.startswith("shape:")


def static_key(name: str, at: str) -> str:
    """The run's name for a template's static input: `w.qkv` of layer 3 is `param:layers.3.qkv`."""
    prefix = f"{at}." if at else ""
    match name.split("."):
        case ["w", short]:
            return f"param:{prefix}{short}"
        case ["acc", "w", short]:
            return f"grad:{prefix}{short}"
        case ["s", "bias"]:
            return f"state:{prefix}router_bias"
        case ["s", "past"]:
            return f"state:{prefix}past_load"
        case ["s", ("biases" | "pasts") as what]:
            return f"balance:{what}"
        case ["s", ("tally" | "dropped") as what]:
            return f"stats:{what}.{at}"
        case ["s", "boundary"]:
            return "shape:boundary"
        case ["s", ("loss" | "losses" | "norm2" | "overflow" | "stats") as what]:
            return f"stats:{what}"
        case ["s", ("master" | "mean" | "square" | "own" | "decay" | "shard") as what, *bucket]:
            return f"{what}:{'.'.join(bucket)}"
        case ["acc", *bucket]:
            return f"gradients:{'.'.join(bucket)}"
        case ["w", *bucket]:
            return f"bucket:{'.'.join(bucket)}"
        case _:
            raise AssertionError(f"{name=} {at=}")


def divided_instance(
    instance: Instance, parts: Sequence[Program], crossing: str
) -> tuple[Instance, ...]:
    """The instances of the parts of a divided template (`graph.divide`); what passes from one to
    the next does so under keys that start with `crossing`.
    """
    made = {v for part in parts for v in _made(part)}
    read = {v for part in parts for v in part.inputs if v in made}
    keys = {**{v: f"{crossing}.{v}" for v in read}, **instance.reads, **instance.writes}
    return tuple(
        Instance(
            template=part.name,
            statics={v: instance.statics[v] for v in part.inputs if v in instance.statics},
            reads={v: keys[v] for v in part.inputs if v not in instance.statics},
            writes={v: keys[v] for v in (*_made(part), *_passed(part)) if v in keys},
        )
        for part in parts
    )


def _made(part: Program) -> list[str]:
    return [value for task in part.tasks for value in task.outputs]


def _passed(part: Program) -> list[str]:
    """What a part joins and hands on."""
    return [value for value in part.joins if value in part.outputs]


def with_drops(instances: Sequence[Instance], keep: tuple[str, ...]) -> tuple[Instance, ...]:
    """Each key dropped by its last reader; what nobody reads is not written."""
    last = {k: at for at, instance in enumerate(instances) for k in instance.reads.values()}
    lasting = {*keep, *last}
    ending: dict[int, list[str]] = {}
    for key, position in last.items():
        if key not in keep and key != "divisor":
            ending.setdefault(position, []).append(key)
    return tuple(
        replace(
            instance,
            writes={value: key for value, key in instance.writes.items() if key in lasting},
            drops=tuple(ending.get(position, ())),
        )
        for position, instance in enumerate(instances)
    )
