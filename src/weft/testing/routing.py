"""Routing with a chosen imbalance, at the limits of experts, ranks and row movement.

Each generator returns the experts of every token, [tokens, top_k] int64, the k of a token all
different, the same for the same seed. They are numpy arrays, as micro-batches are; `Plan.replay`
makes a step use them.

    balanced         every expert the same number of rows, or one more
    skewed           popularity of experts falls as 1 / rank (Zipf)
    one_empty        nobody chooses one of the experts
    one_overflowing  every token chooses one of the experts
    idle_half        nobody chooses the upper half of them: ranks that hold no other receive nothing
    tied             every token chooses experts 0 .. k-1, which is what equal scores give
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Choices = NDArray[np.int64]
Generator = Callable[[int, int, int, int], Choices]


def balanced(tokens: int, experts: int, top_k: int, seed: int) -> Choices:
    """Returns choices that give every expert the same number of rows.

    Example:
        >>> np.bincount(balanced(12, 4, 2, 0).ravel()).tolist()
        [6, 6, 6, 6]
    """
    return _deal(tokens, np.arange(experts), top_k, np.random.default_rng(seed))


def skewed(tokens: int, experts: int, top_k: int, seed: int) -> Choices:
    """Returns choices of experts whose popularity falls as 1 / rank, most popular first."""
    random = np.random.default_rng(seed)
    popularity = -np.log(1 + np.arange(experts))
    keys = popularity + random.gumbel(size=(tokens, experts))  # Gumbel top-k: without replacement
    return np.argsort(-keys, axis=1, kind="stable")[:, :top_k].astype(np.int64)


def one_empty(tokens: int, experts: int, top_k: int, seed: int) -> Choices:
    """Returns choices that leave one expert out."""
    random = np.random.default_rng(seed)
    rest = np.delete(np.arange(experts), random.integers(experts))
    return _deal(tokens, rest, top_k, random)


def one_overflowing(tokens: int, experts: int, top_k: int, seed: int) -> Choices:
    """Returns choices of which every token's first is the same expert."""
    random = np.random.default_rng(seed)
    hot = int(random.integers(experts))
    first = np.full((tokens, 1), hot, np.int64)
    if top_k == 1:
        return first
    rest = _deal(tokens, np.delete(np.arange(experts), hot), top_k - 1, random)
    return np.concatenate((first, rest), axis=1)


def idle_half(tokens: int, experts: int, top_k: int, seed: int) -> Choices:
    """Returns choices among the lower half of the experts, or the first k where that is fewer."""
    lower = np.arange(max(experts // 2, top_k))
    return _deal(tokens, lower, top_k, np.random.default_rng(seed))


def tied(tokens: int, experts: int, top_k: int, seed: int) -> Choices:  # noqa: ARG001 one signature
    """Returns the choices that equal scores give: the lowest ids, whatever the seed."""
    return np.tile(np.arange(top_k, dtype=np.int64), (tokens, 1))


GENERATORS: Mapping[str, Generator] = MappingProxyType(
    {
        "balanced": balanced,
        "skewed": skewed,
        "one_empty": one_empty,
        "one_overflowing": one_overflowing,
        "idle_half": idle_half,
        "tied": tied,
    }
)


def _deal(tokens: int, ids: NDArray, top_k: int, random: np.random.Generator) -> Choices:
    """Deals shuffled ids round and round, so that k in a row differ; then shuffles the tokens."""
    assert top_k <= len(ids), f"{top_k=} {ids=}"
    slots = np.arange(tokens * top_k).reshape(tokens, top_k) % len(ids)
    dealt = random.permutation(ids)[slots].astype(np.int64)
    return dealt[random.permutation(tokens)]
