"""The doctor says what would run here, and why."""

import pytest
import torch

from weft.cli.doctor import PRECISIONS, _wires, doctor
from weft.comm import crossover, reach
from weft.errors import ConfigError
from weft.graph.fused import FUSED
from weft.ops.registry import reference_bodies
from weft.runtime import backends
from weft.version import __version__


@pytest.mark.parametrize("precision", ["", *PRECISIONS])
def test_every_operator_has_a_body_and_a_reason(
    capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    doctor(precision)
    shown = capsys.readouterr().out
    assert f"weft {__version__}" in shown
    assert f"torch {torch.__version__}" in shown
    table = [line.split() for line in shown.splitlines() if line.startswith("  ")]
    assert {line[0] for line in table} == {*reference_bodies(), *FUSED}
    assert all(len(line) >= 4 for line in table)


def test_why_there_is_no_peer_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert _wires() == (
        "collectives over NCCL; none over peer memory: it takes two CUDA devices, found 1"
    )


def test_what_goes_over_peer_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "obstacle_here", lambda: None)
    monkeypatch.setattr(crossover, "measured", crossover.everything)
    monkeypatch.setattr(backends, "peer_kernels", lambda _: "kernels")
    assert "over peer memory: by one kernel all_to_all, " in _wires()


def test_a_device_without_kernels_is_told_of_copies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "obstacle_here", lambda: None)
    monkeypatch.setattr(backends, "peer_kernels", lambda _: None)
    assert "by one kernel nothing; by copies all_gather from 16777216 bytes, " in _wires()


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="--precision int4: must be one of float32, bfloat16"):
        doctor("int4")
