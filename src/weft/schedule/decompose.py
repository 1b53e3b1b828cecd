"""Overlap inside operators: a product and the collective beside it cut into chunks, by ordinary
tasks.

    p = project(h)        h/0 = chunk of h    p/0 = project(h/0)    y/0 = all_to_all(p/0)
    y = all_to_all(p)     h/1 = chunk of h    p/1 = project(h/1)    y/1 = all_to_all(p/1)
                          y   = join(y/0, y/1)

The collective of one chunk runs beside the product of another, in whatever order the program is
put. What is cut is the tokens, or the columns of the model's width:

    qkv         QKV projection + all-to-all       by tokens     qkv_grad        its mirror
    out         all-to-all + output projection    by tokens     out_grad        its mirror
    dispatch    exchange + scatter + FC1          by tokens
    combine     FC2 + gather + exchange           by columns    dispatch_grad   the same of FC1

A product whose rows are summed and sent is cut by its output columns, for which nothing need be
known of the rows. One that reads what ranks sent is cut by tokens, and its rows are merged where
the whole has them, so whatever a backward reads is what it was. The mirror of `combine` would need
the row maps of chunks in the backward; it opens that, and has `across` to hide behind.

Every rank cuts alike and has the chunks in one order, so a group's collectives keep theirs. Bits
are those of the chunks one after another; of the uncut pair they differ by the rounding of products
of another shape.

Paper: 3.1, 3.2.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from weft.errors import ProgramError
from weft.graph.opset import Lane, Tolerance
from weft.graph.program import Attribute, Program, Task, Value, verify
from weft.schedule.remat import is_again
from weft.schedule.sequence import CHUNK, listed

TOKENS, COLUMNS = frozenset("TNUOR"), frozenset("D")  # what is cut, by the letters that count it
_MAPS = ("i32", "i64", "host")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A collective, by operator and label; the bodies before it, row maps among them, and behind
    it, that are cut with it.
    """

    crossings: tuple[tuple[str, str], ...]
    cut: frozenset[str]
    before: frozenset[str] = frozenset()
    behind: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunks:
    """How many, of how many tokens of a rank, and the ranks whose blocks lie behind a letter."""

    count: int
    tokens: int
    blocks: Mapping[str, int]


def _bodies(text: str, phase: str = "") -> frozenset[str]:
    return frozenset(f"{name}{phase}" for name in text.split())


_ROTATIONS = "rotate norm_rotate wide_norm_rotate"
_QKV = (("all_to_all", "qkv"),)
_OUT = (("all_to_all", "attention"),)
_MAPPING = (
    "count_local rows_to_host plan_local plan_rows all_to_all_counts splits_to_host plan_received"
)

FORWARD: Mapping[str, Pair] = MappingProxyType(
    {
        "qkv": Pair(
            crossings=_QKV,
            cut=TOKENS,
            before=_bodies(f"qkv_project add_bias {_ROTATIONS} pack_heads"),
        ),
        "out": Pair(crossings=_OUT, cut=TOKENS, behind=_bodies("join_heads project")),
        "dispatch": Pair(
            crossings=(("all_gather", "tokens"), ("all_to_all_rows", "rows")),
            cut=TOKENS,
            before=_bodies(f"permute {_MAPPING}"),
            behind=_bodies("permute reorder expert_up"),
        ),
        "combine": Pair(
            crossings=(("reduce_scatter", "outputs"), ("all_to_all_rows", "outputs")),
            cut=COLUMNS,
            before=_bodies("expert_down weighted_down add_weighted_bias gather_sum reorder"),
            behind=_bodies("gather_sum"),
        ),
    }
)

BACKWARD: Mapping[str, Pair] = MappingProxyType(
    {
        "qkv_grad": Pair(
            crossings=_QKV,
            cut=TOKENS,
            behind=_bodies(f"pack_heads {_ROTATIONS} qkv_project", ".dgrad"),
        ),
        "out_grad": Pair(
            crossings=_OUT, cut=TOKENS, before=_bodies("project join_heads", ".dgrad")
        ),
        "dispatch_grad": Pair(
            crossings=(("reduce_scatter", "tokens"), ("all_to_all_rows", "rows")),
            cut=COLUMNS,
            before=_bodies("expert_up permute reorder", ".dgrad"),
            behind=_bodies("permute", ".dgrad"),
        ),
    }
)


def decompose(program: Program, pair: Pair, chunks: Chunks) -> Program:
    """The program with a pair cut into chunks; as it is where it has no such collective.

    Raises:
        ProgramError: a collective of the pair without a product to run beside.
    """
    for task in program.tasks:
        if (task.body, task.attributes.get("label")) in pair.crossings and not is_again(task):
            program = _Cutter(program, pair, chunks, task).run()
    return program


class _Cutter:
    """One pair being cut: the tasks that are, which of them are needed whole as well, and the new
    ones.
    """

    def __init__(self, program: Program, pair: Pair, chunks: Chunks, crossing: Task) -> None:
        self.program = program
        self.pair = pair
        self.chunks = chunks
        self.crossing = crossing
        self.values = dict(program.values)
        behind = _reached(program, crossing, pair.behind)
        self.ahead = _origin(program, [crossing], pair.before)
        self.names = self.ahead | _origin(program, _named(program, behind), pair.before)
        self.tasks = _named(program, self.names)
        self.made = {value: task for task in self.tasks for value in task.outputs}
        if not any(t.op.tolerance is Tolerance.MATMUL for t in self.tasks):
            raise ProgramError(
                f"{program.name}: found no product beside {crossing.name}, expected one behind "
                f"{', '.join(sorted(pair.before | pair.behind))}"
            )

    def run(self) -> Program:
        joined, whole = self._wanted()
        cut = [*self._maps(whole), *self._chunks(ahead=True), *self._chunks(ahead=False)]
        new = [*self._parts(), *cut, *self._joins(joined)]
        last = self.tasks[-1].name
        tasks: list[Task] = []
        for task in self.program.tasks:
            if task.name not in self.names or (task.name in whole and task.lane is not Lane.HOST):
                tasks.append(task)
            if task.name == last:
                tasks += new
        mentioned = {*self.program.inputs, *(v for t in tasks for v in (*t.inputs, *t.outputs))}
        values = {name: value for name, value in self.values.items() if name in mentioned}
        moved = replace(self.program, tasks=tuple(tasks), values=MappingProxyType(values))
        return verify(replace(moved, tasks=listed(moved, ())))

    # ---- what is needed beside the chunks --------------------------------------------------------

    def _wanted(self) -> tuple[list[str], set[str]]:
        """The values that others read, which chunks are joined to, and the tasks that run whole
        because chunks of what they make cannot be joined.
        """
        outside = {v for t in self.program.tasks if t.name not in self.names for v in t.inputs}
        outside.update(self.program.outputs, self.program.kept)
        frontier = [value for value in self.made if value in outside]
        if any(self._is_merged(value) for value in frontier):
            frontier.append(self._map_of_merged())
        joined: dict[str, None] = {}
        whole: set[str] = set()
        while frontier:
            value = frontier.pop(0)
            if self._is_joined(value):
                joined[value] = None
            elif self.made[value].name not in whole:
                whole.add(self.made[value].name)
                frontier += [v for v in self.made[value].inputs if v in self.made]
        return list(joined), whole

    def _is_joined(self, value: str) -> bool:
        """Whether chunks of a value make the whole: not those of a map, whose numbers are their
        own, nor rows on their way, which lie by rank.
        """
        known = self.values[value]
        on_their_way = self.pair.cut is TOKENS and _rows(known) in ("O", "R")
        return known.kind not in _MAPS and (not on_their_way or self._is_merged(value))

    def _is_merged(self, value: str) -> bool:
        """Whether rows of a value lie by expert, source rank and token."""
        behind = self.made[value].name not in self.ahead
        known = self.values[value]
        by_tokens = self.pair.cut is TOKENS
        return by_tokens and behind and _rows(known) == "R" and known.kind not in _MAPS

    def _map_of_merged(self) -> str:
        """The map of the whole by which rows of chunks are merged."""
        body = "plan_local" if self.crossing.body == "all_gather" else "splits_to_host"
        return next(t.outputs[0] for t in self.tasks if t.body == body)

    # ---- chunks ----------------------------------------------------------------------------------

    def _maps(self, whole: Collection[str]) -> Iterator[Task]:
        """Row maps of all chunks first: the host waits once for the sizes of all."""
        for task in filter(self._is_map, self.tasks):
            chunks = [self._chunk(task, i) for i in range(self.chunks.count)]
            if task.lane is Lane.HOST:
                yield _at_once([*([task] if task.name in whole else []), *chunks])
            else:
                yield from chunks

    def _chunks(self, *, ahead: bool) -> Iterator[Task]:
        """The tasks up to the collective, or those behind it, chunk by chunk."""
        tasks = [t for t in self.tasks if (t.name in self.ahead) == ahead and not self._is_map(t)]
        for i in range(self.chunks.count):
            yield from (self._chunk(task, i) for task in tasks)

    def _is_map(self, task: Task) -> bool:
        return all(self.values[value].kind in _MAPS for value in task.outputs)

    def _chunk(self, task: Task, i: int) -> Task:
        for value in task.outputs:
            self._declare(value, i)
        return replace(
            task,
            name=f"{task.name}{CHUNK}{i}",
            inputs=tuple(self._input(value, i) for value in task.inputs),
            outputs=tuple(f"{value}{CHUNK}{i}" for value in task.outputs),
            renames=MappingProxyType(self._renames(task)),
        )

    def _input(self, value: str, i: int) -> str:
        cut = value in self.made or self._is_cut(value)
        return f"{value}{CHUNK}{i}" if cut else value

    def _is_cut(self, value: str) -> bool:
        return any(term in self.pair.cut for term in self.values[value].dims.split())

    def _declare(self, value: str, i: int) -> None:
        known = self.values[value]
        name = f"{value}{CHUNK}{i}"
        self.values[name] = Value(name=name, dims=self._divided(known.dims), kind=known.kind)

    def _divided(self, dims: str) -> str:
        """The dims of a chunk: of `T D`, cut into two by tokens, `T/2 D`."""
        count = self.chunks.count
        terms = (f"{t}/{count}" if t in self.pair.cut else t for t in dims.split())
        return " ".join(terms)

    def _renames(self, task: Task) -> dict[str, str]:
        here = {letter: self._divided(letter) for letter in sorted(self.pair.cut)}
        return {**here, **{old: self._divided(new) for old, new in task.renames.items()}}

    # ---- the edges -------------------------------------------------------------------------------

    def _parts(self) -> Iterator[Task]:
        """The chunks of what comes from outside."""
        read = dict.fromkeys(v for t in self.tasks for v in t.inputs if v not in self.made)
        for value in filter(self._is_cut, read):
            for i in range(self.chunks.count):
                yield self._part(value, i)

    def _part(self, value: str, i: int) -> Task:
        self._declare(value, i)
        terms = self.values[value].dims.split()
        blocks = self.chunks.blocks.get(terms[0], 1)
        place: dict[str, Attribute] = {"chunk": i, "chunks": self.chunks.count}
        if self.pair.cut is TOKENS and blocks > 1:
            body, where = "take_blocks", {"blocks": blocks, **place}
        else:
            dim = next(d for d, term in enumerate(terms) if term in self.pair.cut)
            body, where = "slice_chunk", {"dim": dim, **place}
        return _edge(body, value, (value,), f"{value}{CHUNK}{i}", where, f"{CHUNK}{i}")

    def _joins(self, values: Collection[str]) -> Iterator[Task]:
        """The whole of what others read, from its chunks."""
        merged = [value for value in values if self._is_merged(value)]
        if merged:
            yield self._places()
        for value in values:
            chunks = tuple(f"{value}{CHUNK}{i}" for i in range(self.chunks.count))
            terms = self.values[value].dims.split()
            blocks = self.chunks.blocks.get(terms[0], 1)
            if value in merged:
                yield _edge("merge_rows", value, (self._place_name(), *chunks), value)
            elif self.pair.cut is TOKENS and blocks > 1:
                yield _edge("join_blocks", value, chunks, value, {"blocks": blocks})
            else:
                dim = next(d for d, term in enumerate(terms) if term in self.pair.cut)
                yield _edge("join_chunks", value, chunks, value, {"dim": dim})

    def _places(self) -> Task:
        name = self._place_name()
        self.values[name] = Value(name=name, dims="R", kind="i64")
        count, whole = self.chunks.count, self._map_of_merged()
        if self.crossing.body == "all_gather":
            top_k = next(t.attributes["top_k"] for t in self.tasks if t.body == "permute")
            where = {"tokens": self.chunks.tokens, "chunks": count, "top_k": top_k}
            return _edge("place_gathered", whole, (whole,), name, where)
        (received,) = (t.outputs[0] for t in self.tasks if t.body == "all_to_all_counts")
        parts = (f"{received}{CHUNK}{i}" for i in range(count))
        return _edge("place_received", received, (whole, *parts), name)

    def _place_name(self) -> str:
        return f"{self.crossing.outputs[0]}{CHUNK}places"


def _at_once(tasks: Sequence[Task]) -> Task:
    """Several synchronisations of one sort as one."""
    return Task(
        name=f"{tasks[0].name.partition(CHUNK)[0]}{CHUNK}all",
        body=_TOGETHER[tasks[0].body],
        inputs=tuple(value for task in tasks for value in task.inputs),
        outputs=tuple(value for task in tasks for value in task.outputs),
    )


_TOGETHER = {"rows_to_host": "all_rows_to_host", "splits_to_host": "all_splits_to_host"}


def _edge(
    body: str,
    about: str,
    inputs: tuple[str, ...],
    output: str,
    attributes: Mapping[str, Attribute] = MappingProxyType({}),
    suffix: str = "",
) -> Task:
    """A task between the whole and its chunks."""
    return Task(
        name=f"{body}{CHUNK}{about}{suffix}",
        body=body,
        inputs=inputs,
        outputs=(output,),
        attributes=MappingProxyType(dict(attributes)),
    )


# ---- walks ---------------------------------------------------------------------------------------


def _reached(program: Program, start: Task, bodies: Collection[str]) -> set[str]:
    """The names of tasks behind a task, over bodies of a set."""
    values, found = set(start.outputs), set[str]()
    for task in program.tasks:
        if task.body in bodies and not values.isdisjoint(task.inputs):
            found.add(task.name)
            values.update(task.outputs)
    return found


def _origin(program: Program, starts: Iterable[Task], bodies: Collection[str]) -> set[str]:
    """The names of tasks and of those in front of them, over bodies of a set."""
    makers = program.producer()
    found: set[str] = set()
    frontier = list(starts)
    while frontier:
        task = frontier.pop()
        found.add(task.name)
        near = (makers[value] for value in task.inputs if value in makers)
        frontier += [t for t in near if t.body in bodies and t.name not in found]
    return found


def _named(program: Program, names: Collection[str]) -> list[Task]:
    return [task for task in program.tasks if task.name in names]


def _rows(value: Value) -> str:
    """The letter that counts the rows of a value, none of a scalar."""
    return next(iter(value.dims.split()), "-")
