"""Ceilings are measured once, stored, and read again for the same torch alone."""

from dataclasses import replace

import torch

from weft.bench import ceilings as rates
from weft.bench.ceilings import Sizes, measure, stored

TINY = Sizes(side=64, positions=32, copied=4096)
CPU = torch.device("cpu")


def test_measured_rates_are_positive_and_come_back_from_their_file(tmp_path) -> None:
    found = measure(CPU, torch.float32, folder=tmp_path, sizes=TINY)
    assert min(found.product, found.attention, found.attention_dgrad, found.copy) > 0
    assert stored(CPU, torch.float32, tmp_path) == found
    assert "TFLOP/s" in found.text()


def test_those_of_another_torch_are_measured_again(tmp_path, monkeypatch) -> None:
    found = measure(CPU, torch.float32, folder=tmp_path, sizes=TINY)
    monkeypatch.setattr(rates.torch, "__version__", "0.0")
    again = replace(found, torch="0.0")
    monkeypatch.setattr(rates, "measure", lambda *_args, **_rest: again)
    assert stored(CPU, torch.float32, tmp_path) is again
