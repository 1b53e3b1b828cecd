"""Shares of checks, in this process or side by side in others.

A check whose trials are independent is divided into as many shares as there are jobs; each share
has its own numbers of the trials, its own folder and its own control.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

import torch

from weft.testing.chaos import (
    damage,
    disk,
    ending,
    hostile,
    inputs,
    killing,
    order,
    poison,
    reshape,
)
from weft.testing.chaos.result import Check, Result, Size

CHECKS: Mapping[str, Check] = {
    "kill": killing.check,
    "prefix": damage.check_prefixes,
    "damage": damage.check_damage,
    "fallback": damage.check_fallback,
    "disk": disk.check,
    "stop": ending.check_stop,
    "hang": ending.check_hang,
    "throw": ending.check_throw,
    "finite": poison.check,
    "order": order.check,
    "reshape": reshape.check,
    "shards": inputs.check_shards,
    "code": hostile.check,
    "recipes": inputs.check_recipes,
}
WHOLE = ("prefix", "reshape", "code")  # of one size, and seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A check by name, and which part of it."""

    name: str
    scale: float
    seed: int
    number: int
    of: int


def shares_of(name: str, *, scale: float, seed: int, jobs: int) -> list[Share]:
    """A check in as many shares as it may have.

    Example:
        >>> [len(shares_of(name, scale=0, seed=0, jobs=3)) for name in ("kill", "prefix")]
        [3, 1]
    """
    count = 1 if name in WHOLE else jobs
    return [Share(name=name, scale=scale, seed=seed, number=n, of=count) for n in range(count)]


def run_shares(shares: Sequence[Share], *, jobs: int) -> Iterator[list[Result]]:
    """Runs shares, so many at once; the results of each check, one check after the other."""
    if jobs == 1:
        yield from ([run(share)] for share in shares)
        return
    # NOTE: not forked; the parent's threads would be missing in ranks forked from a fork.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = [(share.name, pool.submit(run, share)) for share in shares]
        for _, group in groupby(running, key=lambda each: each[0]):
            yield [future.result() for _, future in group]


def run(share: Share) -> Result:
    """Runs one share in a folder of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix=f"weft-chaos-{share.name}-") as folder:
        size = Size(
            folder=Path(folder),
            scale=share.scale,
            seed=share.seed,
            share=(share.number, share.of),
        )
        return CHECKS[share.name](size)
