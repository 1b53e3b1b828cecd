import pytest

from weft.graph.dims import LEGEND, Sizes, is_dynamic, letters
from weft.graph.opset import OPS

SIZES = Sizes(numbers={"T": 4, "D": 8, "F": 3}, bounds={})


def test_a_coefficient_multiplies_its_letter():
    assert SIZES.shape("T 2F D") == (4, 6, 8)


def test_a_bare_number_is_itself():
    assert SIZES.shape("2") == (2,)


def test_no_dims_are_one_element():
    assert SIZES.shape("") == ()
    assert SIZES.count("") == 1


def test_a_part_of_a_letter_is_written_as_a_quotient():
    assert SIZES.shape("T/2 D/4 2F") == (2, 2, 6)
    assert letters("T/2 D") == ("T", "D")
    assert is_dynamic("R/2 D")


def test_an_unknown_letter_is_named_with_the_known_ones():
    with pytest.raises(AttributeError, match="'Q'; known: D F T"):
        _ = SIZES.Q


def test_what_is_no_term_is_refused():
    with pytest.raises(AssertionError, match="D2"):
        SIZES.of("D2")


def test_only_routed_rows_are_dynamic():
    assert is_dynamic("R 2F")
    assert not is_dynamic("O D")


def test_every_letter_of_the_vocabulary_is_in_the_legend():
    used = {
        letter
        for op in OPS.values()
        for port in (*op.inputs, *op.outputs)
        for letter in letters(port.dims)
    }
    assert used <= LEGEND.keys()
