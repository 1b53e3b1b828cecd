"""A stream in any order is read as if its documents had been copied in that order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.data.stream import Ordered, concatenate, dtype_for, join, materialise, subset

END = 7
documents = st.lists(
    st.tuples(st.lists(st.integers(0, 6), max_size=6), st.integers(0, 8)), min_size=1, max_size=8
)


def make(drawn):
    pieces = [np.array(tokens, np.int64) for tokens, _ in drawn]
    return join(pieces, [masked for _, masked in drawn], end_of_text=END)


def literal(drawn, order):
    """Tokens, and whether each is followed by a target, one document at a time."""
    tokens, asked = [], []
    for index in order:
        document, masked = drawn[index]
        tokens += [END, *document]
        asked += [place >= masked for place in range(len(document) + 1)]
    return tokens, asked


@settings(max_examples=150, deadline=None)
@given(documents, st.randoms(), st.integers(0, 40), st.integers(0, 20))
def test_windows_equal_a_literal_copy(drawn, random, first, count) -> None:
    order = list(range(len(drawn)))
    random.shuffle(order)
    stream = make(drawn)
    tokens, asked = literal(drawn, order)
    ordered = Ordered(stream, np.array(order))
    assert ordered.read(first, first + count).tolist() == tokens[first : first + count]
    expected = [*asked[first : first + count], *[False] * count][:count]
    assert ordered.asked(first, first + count).tolist() == expected
    assert ordered.num_asked(first, first + count) == sum(expected)
    assert stream.num_targets == sum(asked)


def test_control_a_mask_one_token_longer_is_noticed() -> None:
    drawn = [([1, 2, 3], 2), ([4, 5], 0)]
    longer = [([1, 2, 3], 3), ([4, 5], 0)]
    assert Ordered(make(longer)).num_asked(0, 7) != sum(literal(drawn, [0, 1])[1])


@given(documents)
def test_a_part_in_memory_and_parts_in_a_row_are_the_same_stream(drawn) -> None:
    stream = make(drawn)
    half = np.arange(len(drawn)) % 2 == 0
    parts = [subset(stream, np.flatnonzero(side)) for side in (half, ~half)]
    joined = concatenate([materialise(part) for part in parts])
    order = np.concatenate([np.flatnonzero(half), np.flatnonzero(~half)])
    whole = Ordered(stream, order).read(0, stream.num_tokens)
    assert Ordered(joined).read(0, joined.num_tokens).tolist() == whole.tolist()
    assert joined.num_targets == stream.num_targets


@pytest.mark.parametrize(("vocabulary", "bits"), [(2**16, 16), (2**16 + 1, 32)])
def test_a_token_is_as_wide_as_the_vocabulary_needs(vocabulary: int, bits: int) -> None:
    assert np.dtype(dtype_for(vocabulary)).itemsize * 8 == bits
