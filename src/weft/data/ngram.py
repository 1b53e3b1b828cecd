"""The loss that a model has to beat: an interpolated trigram of the same tokens, in nats per token.

    p(w | v u) = (c(v u w) + t(v u) p(w | u)) / (n(v u) + t(v u))          trigram
    p(w | u)   = (c(u w)   + t(u)   p(w))     / (n(u)   + t(u))            bigram
    p(w)       = (c(w)     + t      / V)      / (n      + t)               unigram over uniform

c counts, n is the sum of c over w, and t is the number of different w that followed (Witten-Bell,
method C in Witten and Bell 1991): the weights come out of the training counts alone, and a context
never seen falls through to the next shorter one. A context does not reach behind the start of its
document. It counts the targets that a model counts in `ValidationBatches`, END_OF_TEXT included,
but is not cut at sample starts: it is a slightly stronger opponent.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft.data.stream import Ordered, TokenStream
from weft.data.tokens import END_OF_TEXT, VOCABULARY

_CHUNK_TOKENS = 1 << 22  # 32 MiB an index array: less than the 65 MiB of the table itself


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trigram:
    """The counts of all trigrams of a stream.

    Shapes:
        counts: V V V, int32, by the token before last, the last token and the token that follows.
    """

    counts: NDArray[np.int32]


def fit(stream: TokenStream) -> Trigram:
    """Counts the trigrams of a training stream. Takes 200 MiB: on one rank only."""
    counts = np.zeros(VOCABULARY**3, np.int32)
    for context, following in _pairs(stream):
        found = np.bincount(context * VOCABULARY + following, minlength=len(counts))
        counts += found.astype(np.int32)
    return Trigram(counts=counts.reshape(VOCABULARY, VOCABULARY, VOCABULARY))


def loss(trigram: Trigram, stream: TokenStream) -> float:
    """The mean negative log-likelihood of the stream's targets, in nats per token."""
    trigrams = trigram.counts.reshape(-1, VOCABULARY)
    bigrams = trigram.counts.sum(axis=0, dtype=np.int64)
    unigram = bigrams.sum(axis=0)
    tokens = np.arange(VOCABULARY)
    uniform = np.full(VOCABULARY, 1 / VOCABULARY)
    p_unigram = _interpolate(unigram[None], np.zeros_like(tokens), tokens, uniform)
    total = 0.0
    for context, following in _pairs(stream):
        p_bigram = _interpolate(bigrams, context % VOCABULARY, following, p_unigram[following])
        total -= float(np.log(_interpolate(trigrams, context, following, p_bigram)).sum())
    return total / stream.num_tokens


def _interpolate(
    counts: NDArray[np.integer],
    context: NDArray[np.int64],
    following: NDArray[np.int64],
    shorter: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Witten-Bell: the count of what followed, topped up by the shorter context."""
    seen = counts.sum(axis=1, dtype=np.int64)[context]
    kinds = np.count_nonzero(counts, axis=1)[context]
    topped = (counts[context, following] + kinds * shorter) / np.maximum(seen + kinds, 1)
    return np.where(seen > 0, topped, shorter)


def _pairs(stream: TokenStream) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Context (before last * V + last) and following token of every target, a chunk at a time."""
    documents, length = Ordered(stream), stream.num_tokens
    for first in range(0, length, _CHUNK_TOKENS):
        last = min(first + _CHUNK_TOKENS, length)
        ends = [END_OF_TEXT] * (first == 0), [END_OF_TEXT] * (last == length)
        inside = documents.read(max(0, first - 1), last + 1)
        chunk = np.concatenate([ends[0], inside, ends[1]]).astype(np.int64)
        before, last, following = chunk[:-2], chunk[1:-1], chunk[2:]
        before = np.where(last == END_OF_TEXT, END_OF_TEXT, before)
        yield before * VOCABULARY + last, following
