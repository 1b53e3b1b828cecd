"""A layout is four choices, each legal by itself."""

import pytest

from weft.config.parallel import ParallelConfig
from weft.errors import ConfigError


def test_the_default_layout_is_one_rank() -> None:
    assert ParallelConfig().ranks == 1


def test_expert_parallelism_takes_no_ranks_of_its_own() -> None:
    assert ParallelConfig(dp=3, sp=2, ep=6).ranks == 6


def test_a_pipeline_multiplies_the_ranks_of_a_stage() -> None:
    parallel = ParallelConfig(pp=4, dp=3, sp=2, ep=6)
    assert (parallel.ranks, parallel.stage_ranks) == (24, 6)


@pytest.mark.parametrize("axis", ["pp", "dp", "sp", "ep", "chunks"])
def test_a_degree_is_at_least_one(axis: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"parallel.{axis} = 0: .*nearest legal value: parallel.{axis} = 1"
    ):
        ParallelConfig.model_validate({axis: 0})


def test_an_unknown_dispatch_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match='parallel.dispatch = "all_gather"$'):
        ParallelConfig.model_validate({"dispatch": "allgather"})
