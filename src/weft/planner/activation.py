"""The paper's table of activations, read off the programs: tensors, sizes, which are kept.

    all     (2n + 2k + 3kf + 12 + 5/m) bsh/n elements a layer and micro-batch
    kept    (2kf + 4 + 2/m) bsh/n

Not in the paper's count, and so not here: the log-sum-exp of attention, statistics of norms,
choices and gate weights, and shared experts.

Paper: 2.2, Figs 8a and 9.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from weft.compose.plan import Plan, sizes
from weft.graph.program import Program, Task
from weft.model.count import total


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One row of the paper's table: which task makes it (by body and payload), which outputs."""

    name: str
    body: str
    label: str = ""
    ports: tuple[int, ...] = (0,)
    kept: bool = False


TABLE = (
    Tensor(name="ln1_out", body="rms_norm"),
    Tensor(name="qkv", body="qkv_project"),
    Tensor(name="q_rope, k_rope", body="rotate", ports=(0, 1)),
    Tensor(name="qkv_a2a", body="all_to_all", label="qkv", kept=True),
    Tensor(name="attn", body="attention", kept=True),
    Tensor(name="attn_a2a", body="all_to_all", label="attention"),
    Tensor(name="attn_out", body="project"),
    Tensor(name="ln2_in", body="add_rms_norm", kept=True),
    Tensor(name="ln2_out", body="add_rms_norm", ports=(1,)),
    Tensor(name="ln2_out_ag", body="all_gather", label="tokens"),
    Tensor(name="ffn_in", body="permute"),
    Tensor(name="fc1_out, fc3_out", body="expert_up", kept=True),
    Tensor(name="fc2_in", body="swiglu"),
    Tensor(name="fc2_out", body="expert_down"),
    Tensor(name="fc2_out_rs", body="gather_sum"),
    Tensor(name="ffn_out", body="reduce_scatter", label="outputs"),
    Tensor(name="hidden (next)", body="add"),
)


def elements(program: Program, plan: Plan) -> Mapping[str, int]:
    """Elements of every tensor of the table for one layer and micro-batch on one rank."""
    n = sizes(plan)
    found = {"hidden": n.count(program.values["x"].dims)}
    for row in TABLE:
        task = _find(program, row)
        found[row.name] = sum(n.count(program.values[task.outputs[p]].dims) for p in row.ports)
    return found


def kept(program: Program, plan: Plan) -> Mapping[str, int]:
    """Those that the paper keeps."""
    names = {"hidden", *(row.name for row in TABLE if row.kept)}
    return {name: size for name, size in elements(program, plan).items() if name in names}


def replication_overhead(plan: Plan) -> float:
    """What replicated attention adds to weights, gradients and optimizer state, as a share.

    Paper: 1.4; extra 6 P_attn (1 - 1/n) bytes over (6 + 12/d) P / n with d = 1, where P are the
    layers as Table 2 counts them, without shared experts.
    """
    count, n = total(plan.shape), plan.layout.sp
    layers = count.attention + count.norm + count.router + count.routed
    return 6 * count.attention * (1 - 1 / n) / (18 * layers / n)


def _find(program: Program, row: Tensor) -> Task:
    return next(
        t
        for t in program.tasks
        if t.body == row.body and row.label in ("", t.attributes.get("label"))
    )
