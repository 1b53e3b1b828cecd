import numpy as np
import pytest
import torch

from weft.runtime.batch import stage
from weft.testing import models

CPU = torch.device("cpu")
WHOLE = models.micro_batch(61, seed=(7,))


@pytest.mark.parametrize("sp", [1, 2, 4])
@pytest.mark.parametrize("field", ["tokens", "targets", "positions"])
def test_shares_laid_end_to_end_are_the_micro_batch(sp, field):
    parts = [getattr(stage(WHOLE, sp=sp, sp_rank=r, device=CPU), field) for r in range(sp)]
    assert np.array_equal(torch.cat(parts).numpy(), getattr(WHOLE, field))


@pytest.mark.parametrize("sp", [1, 4])
def test_every_rank_knows_every_document(sp):
    for rank in range(sp):
        assert stage(WHOLE, sp=sp, sp_rank=rank, device=CPU).segments.ends == WHOLE.ends


def test_keys_carry_the_number_of_the_micro_batch():
    batch = stage(WHOLE, sp=1, sp_rank=0, device=CPU)
    assert set(batch.environment(3)) == {
        "m3.tokens", "m3.targets", "m3.positions", "m3.segments",
    }  # fmt: skip
