"""The programs of a rank's step by name: what its chunks of the model need, each recorded once.

embedding.forward, .backward      where the first layer is
positions                         elsewhere: the rotary table alone
<kind>.forward, .backward         of each kind of layer here; with weight gradients put off,
<kind>.weights                    a backward in two parts
head                              where the last layer is
"""

from collections.abc import Sequence

from weft.compose import segment, split
from weft.compose.keep import rematerialised
from weft.compose.plan import Plan
from weft.compose.stage import chunks_of, owned
from weft.graph.divide import divide
from weft.graph.program import Program
from weft.model.families import Kind
from weft.model.params import Parameter
from weft.schedule.fuse import fuse_program

Programs = dict[str, Program]


def training_programs(plan: Plan) -> Programs:
    """What forwards and backwards of a plan's rank run."""
    chunks = chunks_of(plan)
    plain = {k: segment.layer(plan, k, names) for k, names in layer_weights(owned(plan)).items()}
    programs: Programs = {}
    if chunks[0].first:
        embedding = segment.embedding(plan)
        programs["embedding.forward"] = embedding.forward
        programs["embedding.backward"] = _present(embedding.backward)
    else:
        programs["positions"] = segment.positions(plan)
    for kind, layer in rematerialised(plan, plain).items():
        programs[f"{kind}.forward"] = split.forward(plan, layer.forward)
        backward = split.backward(plan, _present(layer.backward))
        programs.update(_backward(kind, backward, plan))
    if chunks[-1].last:
        programs["head"] = segment.head(plan, _head_name(plan)).forward
    return programs


def evaluation_programs(plan: Plan) -> Programs:
    """What the forward alone runs."""
    chunks = chunks_of(plan)
    programs: Programs = {}
    if chunks[0].first:
        programs["embedding.forward"] = segment.embedding(plan).forward
    else:
        programs["positions"] = segment.positions(plan)
    for kind, names in layer_weights(owned(plan)).items():
        alone = segment.layer(plan, kind, names, evaluate=True).forward
        programs[f"{kind}.forward"] = fuse_program(split.forward(plan, alone), plan.fuses)
    if chunks[-1].last:
        programs["head.evaluate"] = segment.head(plan, _head_name(plan), evaluate=True).forward
    return programs


def layer_weights(parameters: Sequence[Parameter]) -> dict[Kind, list[str]]:
    """Short names of the parameters of each kind of layer present."""
    names: dict[Kind, dict[str, None]] = {}
    for parameter in parameters:
        if parameter.kind is not None:
            names.setdefault(parameter.kind, {})[segment.short(parameter)] = None
    return {kind: list(found) for kind, found in names.items()}


def _backward(kind: Kind, backward: Program, plan: Plan) -> Programs:
    name = f"{kind}.backward"
    if not plan.schedule.defers_weights:
        return {name: backward}
    now, later = divide(backward, _only_for_weights(backward), (name, f"{kind}.weights"))
    return {now.name: now, later.name: later}


def _only_for_weights(backward: Program) -> set[str]:
    """Weight gradients, and what is made again for nothing else."""
    later: set[str] = set()
    readers = backward.consumers()
    for task in reversed(backward.tasks):
        read_by = {t.name for value in task.outputs for t in readers.get(value, ())}
        leaves = not set(backward.outputs).isdisjoint(task.outputs)
        if task.phase == "wgrad" or (read_by and read_by <= later and not leaves):
            later.add(task.name)
    return later


def _head_name(plan: Plan) -> str:
    return "embed" if plan.shape.tied else "head"


def _present(program: Program | None) -> Program:
    assert program is not None
    return program
