"""A rank alone needs no wire; ranks together have one and the same start."""

from dataclasses import replace

import pytest
import torch
from tests.system.conftest import Recipe
from tests.trainer.conftest import ALONE

from weft.config.run import RunConfig
from weft.errors import ConfigError
from weft.testing.kill import Run
from weft.trainer import rank
from weft.trainer.session import close_session, connect, open_session


def test_a_rank_alone_leads_and_opens_no_process_group(few_steps: RunConfig) -> None:
    session = open_session(few_steps, ALONE)
    assert session.leads
    assert session.run_dir.name == "run"
    assert session.transport.group_size("world") == 1
    assert not torch.distributed.is_initialized()
    close_session(session)


def test_a_place_waits_for_ranks_longer_than_a_first_step_takes() -> None:
    assert ALONE.timeout_seconds >= 600


def test_peer_memory_is_refused_on_a_cpu_before_ranks_meet(few_steps: RunConfig) -> None:
    kernels = few_steps.kernels.model_copy(update={"transport": "symmetric"})
    config = few_steps.model_copy(update={"kernels": kernels})
    with pytest.raises(ConfigError, match=r"'symmetric': needs CUDA devices, found cpu; try"):
        connect(config, replace(ALONE, world=2))
    assert not torch.distributed.is_initialized()


def look_at_the_wire() -> None:
    """Tampers with opening: every rank checks what it got."""
    honest = rank.open_session

    def open_session(config, place):
        session = honest(config, place)
        assert torch.distributed.get_backend() == "gloo"
        assert session.transport.group_size("world") == 2
        assert session.transport.group_rank("world") == place.rank
        assert session.leads == (place.rank == 0)
        assert torch.get_num_threads() == config.train.threads
        return session

    rank.open_session = open_session


@pytest.mark.parametrize("layout", ["parallel.dp=2", "parallel.sp=2"])
def test_ranks_together_meet_over_gloo(recipe: Recipe, layout: str) -> None:
    run = Run(
        recipe("run", layout, "train.steps=1", "optim.warmup_steps=1"), tamper=look_at_the_wire
    )
    assert run.wait() == 0, run.output.read_text()
