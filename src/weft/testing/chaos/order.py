"""R12: each sample once an epoch, in the same order for any layout and any chain of resumes."""

import random
from itertools import islice

import numpy as np

from weft.data.batches import Batches
from weft.data.order import micro_batches
from weft.data.stream import TokenStream, make_stream
from weft.testing.chaos.result import Result, Size

SEQUENCE = 8


def check(size: Size) -> Result:
    """So many runs, each of several stretches under layouts of their own."""
    trials, faults, stretches = size.trials(2000, 2000), [], 0
    for number in trials:
        draw = random.Random(size.seed + number)
        stream, seed = _stream(draw), draw.randrange(99)
        micro, per_dp = draw.choice([1, 2]), draw.choice([1, 2, 3])
        degrees = [d for d in (1, 2, 3, 4, 6, 12) if 12 % d == 0]
        batch = 12 * micro * per_dp
        steps = draw.randrange(3, 12)
        expected = _samples(stream, seed, batch, micro, [(steps, 1)])
        chain = list(_chain(draw, steps, degrees))
        stretches += len(chain)
        found = _samples(stream, seed, batch, micro, chain)
        if found != expected:
            faults.append(f"seed {size.seed + number}: {chain} is another order")
        epoch = Batches(
            stream, sequence=SEQUENCE, global_batch=batch, micro_batch=micro, seed=seed
        ).samples_per_epoch
        starts = range(0, len(found) - epoch + 1, epoch)
        if any(len(set(found[start : start + epoch])) != epoch for start in starts):
            faults.append(f"seed {size.seed + number}: a sample twice in an epoch")
    return Result(
        promise="R12 the order of samples is one",
        counts={"runs": len(trials), "stretches": stretches},
        faults=faults,
        control=_control(size.seed),
    )


def _stream(draw: random.Random) -> TokenStream:
    documents = [
        np.array([256, *(draw.randrange(256) for _ in range(draw.randrange(1, 40)))], np.uint16)
        for _ in range(draw.randrange(3, 30))
    ]
    lengths = np.array([len(document) for document in documents], np.int64)
    return make_stream(
        np.concatenate(documents),
        begins=np.cumsum(lengths) - lengths,
        lengths=lengths,
        masked=np.zeros_like(lengths),
        end_of_text=256,
    )


def _chain(draw: random.Random, steps: int, degrees: list[int]) -> list[tuple[int, int]]:
    """Stretches of a run: how many steps, by how many data-parallel ranks."""
    stops = sorted(draw.sample(range(1, steps), draw.randrange(0, min(4, steps - 1))))
    edges = [0, *stops, steps]
    return [
        (b - a, draw.choice(degrees)) for a, b in zip(edges, islice(edges, 1, None), strict=False)
    ]


def _samples(
    stream: TokenStream,
    seed: int,
    batch: int,
    micro: int,
    chain: list[tuple[int, int]],
    *,
    slip: int = 0,
) -> list[tuple[int, ...]]:
    """The samples of a run in the order of (step, rank, micro-batch); each resume starts anew."""
    found: list[tuple[int, ...]] = []
    step = 0
    for steps, dp in chain:
        batches = Batches(
            stream, sequence=SEQUENCE, global_batch=batch, micro_batch=micro, seed=seed
        )
        for _ in range(steps):
            ids = batches.samples(step)
            for rank in range(dp):
                for m in micro_batches(batches.num_micro_batches, dp_rank=rank, dp=dp):
                    found += [tuple(ids[m * micro + i]) for i in range(micro)]
            step += 1
        step += slip
    return found


def _control(seed: int) -> str:
    """A resume that is one step off."""
    stream = _stream(random.Random(seed))
    chain = [(3, 2), (3, 4)]
    honest = _samples(stream, 0, 12, 1, chain)
    return (
        ""
        if honest == _samples(stream, 0, 12, 1, chain, slip=1)
        else "a resume one step off was found"
    )
