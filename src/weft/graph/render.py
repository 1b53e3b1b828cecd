"""The text of a program: one line a task, the call as code, shapes and lanes beside it.

    moe.forward

    in   x [T D]   cos, sin [T C] acc   segments (host)
         w.norm1 [D]   w.qkv [Q D]   ...

    y, rstd  = rms_norm(x, w.norm1)      [T D] [T]acc
    qkv      = qkv_project(y, w.qkv)     [T Q]
    y_2      = all_to_all(p)             [N P]              comm sp: qkv

    out  z [T D] ...
    opens (leaves in flight: a later segment waits for it)   joins (arrives so)

Attributes are left out, but for what says where a collective goes and what it carries. Letters are
those of graph/dims.py.
"""

from collections.abc import Iterable, Sequence
from textwrap import wrap

from weft.graph.opset import Lane
from weft.graph.program import Program, Task, Value

WIDTH = 100
_CALL_LIMIT = (
    62  # columns of the call: with the lane beside it, shapes included, a line stays near WIDTH
)
_GAP = 2


def render_program(program: Program) -> str:
    """The whole program: its name, inputs, tasks and outputs.

    Example:
        >>> from weft.graph.record import Recorder
        >>> o = Recorder("sum")
        >>> x = o.input("x", "T D")
        >>> (z,) = o.call("add", x, x)
        >>> print(render_program(o.finish(z)))
        sum: 1 task
        <BLANKLINE>
          in   x [T D]
        <BLANKLINE>
          z = add(x, x)  [T D]  compute
        <BLANKLINE>
          out  z
    """
    count = len(program.tasks)
    kept = [name for name in program.kept if name not in program.outputs]
    blocks = (
        [f"{program.name}: {count} task{'s' * (count != 1)}"],
        _inputs(program),
        _tasks(program),
        [
            *_names("out", program.outputs),
            *_names("kept", kept),
            *_names("opens", program.opens),
            *_names("joins", program.joins),
        ],
    )
    return "\n\n".join("\n".join(block) for block in blocks)


def render_shape(value: Value) -> str:
    """A value's shape in letters, and its kind of dtype where that is not the compute dtype.

    Example:
        >>> render_shape(Value(name="lse", dims="J N", kind="acc"))
        '[J N]acc'
    """
    if value.kind == "host":
        return "host"
    return f"[{value.dims}]{'' if value.kind == 'act' else value.kind}"


def render_call(task: Task) -> str:
    """A task's call as code."""
    return f"{task.body}({', '.join(task.inputs)})"


def render_lane(task: Task) -> str:
    """Where a task runs; of a collective also its group and what it carries."""
    if task.lane is not Lane.COMM:
        return str(task.lane)
    return f"{task.lane} {task.channel}: {task.attributes['label']}"


def _tasks(program: Program) -> list[str]:
    rows = [_row(program, task) for task in program.tasks]
    left = max((len(r[0]) for r in rows), default=0)
    call = max((len(line) for r in rows for line in r[1]), default=0)
    shapes = max((len(r[2]) for r in rows), default=0)
    lines: list[str] = []
    for targets, calls, dims, lane in rows:
        first, *rest = calls
        lines.append(f"  {targets:<{left}} = {first:<{call}}  {dims:<{shapes}}  {lane}".rstrip())
        lines.extend(" " * (left + 5) + line for line in rest)
    return lines


def _row(program: Program, task: Task) -> tuple[str, list[str], str, str]:
    targets = ", ".join(task.outputs)
    calls = _hang(render_call(task), _CALL_LIMIT)
    dims = " ".join(render_shape(program.values[name]) for name in task.outputs)
    return targets, calls, dims, render_lane(task)


def _hang(call: str, width: int) -> list[str]:
    """A call, its arguments on further lines under the first one where it is too long."""
    return wrap(
        call,
        width,
        subsequent_indent=" " * (call.index("(") + 1),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _inputs(program: Program) -> list[str]:
    """Inputs by prefix: what the step brings, parameters, accumulators, static tensors."""
    groups: dict[str, list[str]] = {}
    for name in program.inputs:
        prefix, dot, _ = name.partition(".")
        key = prefix if dot and prefix in ("w", "acc", "s") else ""
        groups.setdefault(key, []).append(f"{name} {render_shape(program.values[name])}")
    ordered = [groups[key] for key in ("", "w", "acc", "s") if key in groups]
    return _headed("in", (line for group in ordered for line in _flow(group)))


def _names(title: str, names: Sequence[str]) -> list[str]:
    return _headed(title, _flow([f"{name}," for name in names[:-1]] + list(names[-1:]), gap=1))


def _flow(words: Iterable[str], gap: int = _GAP) -> list[str]:
    """Words side by side, on as many lines as they need, none of them broken."""
    lines = [""]
    for word in words:
        longer = f"{lines[-1]}{' ' * gap if lines[-1] else ''}{word}"
        if len(longer) <= WIDTH - 7:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line]


def _headed(title: str, lines: Iterable[str]) -> list[str]:
    return [f"  {title if i == 0 else '':<4} {line}" for i, line in enumerate(lines)]
