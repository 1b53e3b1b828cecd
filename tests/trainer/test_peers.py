"""Whether a run has peer memory, and what it says where it has none."""

import pytest
import torch

from weft.comm.call import Collective
from weft.comm.crossover import Crossover, Sizes
from weft.comm.reach import Reach
from weft.errors import CommunicationError, ConfigError
from weft.trainer import peers

APART = {("ep", "comm"): "its members run on more than one host"}
CPU = torch.device("cpu")


def table(**sizes):
    return Crossover(**{"kernels": {}, "copies": {}, **sizes}, machine="", record="")


class Nccl:
    """What is asked of it before anything travels."""

    def __init__(self):
        self.groups = {}

    def describe(self):
        return "NCCL"


@pytest.fixture
def reach(monkeypatch):
    def answer(channels, reasons):
        found = Reach(channels=channels, kernels={}, reasons=reasons, close=lambda: None)
        monkeypatch.setattr(peers, "open_channels", lambda *_, **__: found)

    return answer


def test_nccl_alone_opens_nothing(monkeypatch):
    monkeypatch.setattr(peers, "open_channels", None)
    nccl = Nccl()
    assert peers.beside(nccl, "nccl", CPU, timeout_seconds=1) is nccl


def test_a_table_that_takes_nothing_opens_nothing(monkeypatch):
    monkeypatch.setattr(peers, "open_channels", None)
    monkeypatch.setattr(peers, "measured", table)
    nccl = Nccl()
    assert peers.beside(nccl, "auto", CPU, timeout_seconds=1, kernels="kernels") is nccl


def test_a_table_of_kernels_alone_opens_nothing_where_there_are_none(reach, monkeypatch):
    reach({}, {})
    sums = {Collective.ALL_REDUCE: Sizes(least=0)}
    monkeypatch.setattr(peers, "measured", lambda: table(kernels=sums))
    nccl = Nccl()
    assert peers.beside(nccl, "auto", CPU, timeout_seconds=1) is nccl
    assert peers.beside(nccl, "auto", CPU, timeout_seconds=1, kernels="bodies") is not nccl


@pytest.mark.parametrize("given", [{}, {"kernels": "bodies"}])
def test_kernels_are_had_by_who_gives_them(monkeypatch, given):
    asked = []

    def open_channels(*_, bodies, **__):
        asked.append(bodies)
        return Reach(channels={}, kernels={}, reasons={}, close=lambda: None)

    monkeypatch.setattr(peers, "open_channels", open_channels)
    peers.beside(Nccl(), "symmetric", CPU, timeout_seconds=1, **given)
    assert asked == [given.get("kernels")]


def test_groups_that_cannot_have_it_keep_nccl_and_the_reason_is_said(reach, monkeypatch):
    reach({("dense", "comm"): None}, APART)
    monkeypatch.setattr(peers, "measured", peers.everything)
    found = peers.beside(Nccl(), "auto", CPU, timeout_seconds=1)
    assert found.describe() == (
        "peer memory on dense, NCCL beside it; "
        "NCCL alone on ep: its members run on more than one host"
    )


def test_who_asks_for_it_and_cannot_have_it_is_told_which_group(reach):
    reach({}, APART)
    with pytest.raises(ConfigError, match=r"'symmetric': the group of axis ep, .* try 'auto'"):
        peers.beside(Nccl(), "symmetric", CPU, timeout_seconds=1)


def test_a_rank_that_gives_up_ends_its_process_with_the_error(monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(peers.os, "_exit", codes.append)
    peers.give_up(CommunicationError("rank 1: all_gather 'tokens' is not done"))
    assert codes == [1]
    assert capsys.readouterr().err == (
        "CommunicationError: rank 1: all_gather 'tokens' is not done\n"
    )
