"""Runs the rows of the table, two at a time, each against the one rank of its model.

    model ---- one rank, once ----+---- row ---- checks of `weft verify`
                                  +---- row ---- ...

Stacked rows run in as many children of this process as there are cores; a row over gloo is
processes already, and runs alone.
"""

import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TypeVar, cast

import torch

from weft.compose.recipe import layout as layout_of
from weft.config.run import RunConfig
from weft.errors import ConfigError, LayoutError
from weft.runtime.backends import prepare as prepare_torch
from weft.testing.crew import Course
from weft.testing.findings import Length, one_rank
from weft.testing.matrix.model import MODELS, recipe
from weft.testing.matrix.table import Row
from weft.testing.sabotage import HONEST, Sabotage
from weft.testing.verify import Case, Proof, prove
from weft.testing.weigh import Check
from weft.trainer.feed import open_feed

Job = TypeVar("Job")
Answer = TypeVar("Answer")

LENGTH = Length(float64=20, float32=2)
AT_ONCE = 2  # children: the cores of the smallest machine that runs this


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of a row: its checks, or the reason for which it cannot exist."""

    row: Row
    ranks: int = 0
    checks: tuple[Check, ...] = ()
    impossible: str = ""
    seconds: float = 0.0

    @property
    def faults(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.fault)


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """What rows share: a folder with a corpus, and one rank of each model."""

    folder: Path
    proofs: Mapping[str, Proof]
    sabotage: Sabotage


def prepare(
    folder: Path,
    models: Sequence[str] = tuple(MODELS),
    *,
    length: Length = LENGTH,
    sabotage: Sabotage = HONEST,
) -> Matrix:
    """Runs one rank of each model, which is honest whatever the sabotage."""
    prepare_torch(torch.device("cpu"), threads=1, neighbours=1)  # before anything forks
    proofs = {model: reference(recipe(folder, model), length) for model in models}
    return Matrix(folder=folder, proofs=proofs, sabotage=sabotage)


def reference(config: RunConfig, length: Length) -> Proof:
    """One rank of a recipe, and nothing yet to compare with it."""
    course = Course(config=config, feed=open_feed(config))
    return Proof(course=course, changes=(), reference=one_rank(course, length), cases=())


def prove_row(matrix: Matrix, row: Row) -> Verdict:
    """Runs one row and weighs what its ranks found."""
    began = time.monotonic()
    try:
        config = recipe(matrix.folder, row.model, *row.overrides)
    except (ConfigError, LayoutError) as error:
        lost = (Check(name="exists", figure="no", fault=str(error)),) if row.exists else ()
        return Verdict(row=row, impossible=str(error), checks=lost)
    if not row.exists:
        fault = "it was said not to exist, and nothing refuses it"
        return Verdict(row=row, checks=(Check(name="refused", figure="no", fault=fault),))
    proof = matrix.proofs[row.model]
    found = prove_recipe(proof, config, sabotage=matrix.sabotage, processes=row.processes)
    return replace(found, row=row, seconds=time.monotonic() - began)


def prove_recipe(
    proof: Proof, config: RunConfig, *, sabotage: Sabotage = HONEST, processes: bool = False
) -> Verdict:
    """Runs the layout of a recipe against one rank of the same model."""
    # the layers of a stage are the plan's own business
    case = Case(layout=layout_of(config), processes=processes)
    course = replace(proof.course, config=config, sabotage=sabotage)
    proved = prove(replace(proof, course=course), case)
    blank = Row(name=case.layout.name(), model="", overrides=())
    return Verdict(row=blank, ranks=case.layout.world, checks=proved.checks)


def prove_all(matrix: Matrix, rows: Sequence[Row]) -> Iterator[Verdict]:
    """Every row, in the order in which they end: those over gloo last, one by one."""
    stacked = [row for row in rows if not row.processes]
    gloo = [row for row in rows if row.processes]
    yield from side_by_side(lambda row: prove_row(matrix, row), stacked, at_once=AT_ONCE)
    yield from side_by_side(lambda row: prove_row(matrix, row), gloo, at_once=1)


def side_by_side(
    work: Callable[[Job], Answer], jobs: Sequence[Job], *, at_once: int
) -> Iterator[Answer]:
    """The answers of forked children, so many at once, in the order in which they come.

    Raises:
        EOFError: a child died without an answer.
    """
    waiting, running = list(reversed(jobs)), dict[Connection, multiprocessing.Process]()
    while waiting or running:
        while waiting and len(running) < at_once:
            pipe, child = _start(work, waiting.pop())
            running[pipe] = child
        for ready in wait(list(running)):
            pipe = cast("Connection", ready)
            answer = cast("Answer", pipe.recv())
            running.pop(pipe).join()
            pipe.close()
            yield answer


def _start(work: Callable[[Job], Answer], job: Job) -> tuple[Connection, multiprocessing.Process]:
    fork = multiprocessing.get_context("fork")
    reading, writing = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: writing.send(work(job)))
    with warnings.catch_warnings():
        # python 3.12 warns of threads in the parent; a child uses none of them
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    writing.close()
    return reading, cast("multiprocessing.Process", child)
