import numpy as np
import pytest
import torch

from weft.parallel.layout import Attention, Layout
from weft.parallel.share import Share, share_of
from weft.runtime.batch import stage
from weft.testing import models

CPU = torch.device("cpu")
WHOLE = models.micro_batch(61, seed=(7,))


def share(sp: int, rank: int, attention: Attention = Attention.SP) -> Share:
    layout = Layout(sp=sp, attention=attention)
    return share_of(layout, rank, sequences=models.MICRO_BATCH, sequence=models.SEQUENCE)


def test_a_zigzag_share_is_picked_in_the_order_of_its_chunks():
    batch = stage(WHOLE, share(2, 0, Attention.CP), device=CPU)
    assert batch.tokens.tolist() == [*WHOLE.tokens[:4], *WHOLE.tokens[12:20], *WHOLE.tokens[28:]]


@pytest.mark.parametrize("sp", [1, 2, 4])
@pytest.mark.parametrize("field", ["tokens", "targets", "positions"])
def test_shares_laid_end_to_end_are_the_micro_batch(sp, field):
    parts = [getattr(stage(WHOLE, share(sp, r), device=CPU), field) for r in range(sp)]
    assert np.array_equal(torch.cat(parts).numpy(), getattr(WHOLE, field))


@pytest.mark.parametrize("sp", [1, 4])
def test_every_rank_knows_every_document(sp):
    for rank in range(sp):
        made = stage(WHOLE, share(sp, rank), device=CPU).segments
        assert made.ends == WHOLE.ends
        assert made.held == share(sp, rank).tokens


def test_keys_carry_the_number_of_the_micro_batch():
    batch = stage(WHOLE, share(1, 0), device=CPU)
    assert set(batch.environment(3)) == {
        "m3.tokens", "m3.targets", "m3.positions", "m3.segments",
    }  # fmt: skip


def test_a_stage_between_the_ends_has_positions_and_documents_and_no_tokens():
    middle = stage(WHOLE, share(2, 1), device=CPU, embeds=False, has_head=False)
    assert (len(middle.tokens), len(middle.targets)) == (0, 0)
    assert len(middle.positions) == len(WHOLE.tokens) // 2
    assert middle.segments.ends == WHOLE.ends
