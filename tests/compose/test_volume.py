import pytest

from weft.compose.volume import volumes
from weft.parallel.layout import Attention, Dispatch, FeedForward, Layout
from weft.testing import models


@pytest.mark.parametrize(
    "layout",
    [
        Layout(sp=4, ep=4),
        Layout(sp=4, ep=4, dispatch=Dispatch.ALL_GATHER),
        Layout(sp=4, ep=4, attention=Attention.CP),
        Layout(sp=4, attention=Attention.TP, ffn=FeedForward.TP),
        Layout(sp=2, dp=2, ep=4, attention=Attention.TP),
    ],
    ids=Layout.name,
)
def test_the_bytes_of_a_program_are_the_derived_formula(layout):
    lines = list(volumes(models.plan(models.mixtral_like(), layout)))
    assert [line.volume.operator for line in lines] == ["attention", "experts"]
    for line in lines:
        assert line.counted_bytes == line.derived_bytes


def test_one_rank_has_no_volume():
    assert list(volumes(models.plan(models.mixtral_like()))) == []


def test_what_the_paper_prints_for_sequence_parallelism_is_not_what_travels():
    (line, *_) = volumes(models.plan(models.mixtral_like(), Layout(sp=4)))
    assert line.counted_bytes == line.derived_bytes
    assert line.volume.printed == 2 * line.volume.derived
