"""One choice for all ranks: that of the first, whatever the others would choose."""

import pytest
import torch
from tests.trainer.conftest import ALONE

from weft.comm.mesh import Mesh
from weft.comm.transports.gloo import GlooTransport
from weft.config.load import load
from weft.config.run import RunConfig
from weft.testing.ranks import run_ranks
from weft.trainer import settle as settling
from weft.trainer.session import close_session, open_session
from weft.trainer.settle import settle

CPU = torch.device("cpu")


def test_a_recipe_that_names_its_way_needs_nobody(few_steps: RunConfig) -> None:
    nobody = None
    assert settle(few_steps, nobody, CPU, rank=0) is few_steps


def choose(rank: int, config: RunConfig, names: tuple[str, ...]) -> str:
    settling.accelerator = lambda _device: names[rank]
    mesh = Mesh(pp=1, dp=1, sp=2, ep=2, node=0)
    transport = GlooTransport(mesh, timeout_seconds=60)
    return settle(config, transport, CPU, rank=rank).parallel.dispatch


def test_ranks_on_unlike_machines_take_the_way_of_the_first(tmp_path) -> None:
    overrides = (
        "parallel.dispatch=auto", "model.top_k=1", "model.hidden=2048", "train.micro_batch=8",
    )  # fmt: skip
    config = load("recipes/quickstart.toml", (*overrides, f"train.run_dir={tmp_path}"))
    one, other = run_ranks(2, choose, config, ("NVIDIA H200", "NVIDIA A100"))
    assert one == other
    assert one == run_ranks(2, choose, config, ("NVIDIA H200", "NVIDIA H200"))[0]


@pytest.mark.parametrize("way", ["auto", "all_to_all"])
def test_a_session_leaves_nothing_open(few_steps: RunConfig, way: str) -> None:
    parallel = few_steps.parallel.model_copy(update={"dispatch": way})
    session = open_session(few_steps.model_copy(update={"parallel": parallel}), ALONE)
    assert session.config.parallel.dispatch == "all_to_all"
    close_session(session)
