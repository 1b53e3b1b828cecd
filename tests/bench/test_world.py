"""Ranks meet once and measure many recipes; a wire is kept while the ranks are laid out alike."""

from dataclasses import replace

import pytest
import torch

from weft.bench.rig import assemble
from weft.bench.world import Wires, fresh, settle, start
from weft.errors import ConfigError


def _told(place, file) -> None:
    with file.open("a") as out:
        out.write(f"{place.rank} of {place.world}\n")


def _measured(place, errand) -> None:
    wires, losses = Wires(place), []
    for config in errand["configs"]:
        rig = assemble(config, place, wires.of(config))
        losses.append(float(rig.stage.bound.run(rig.environment())["stats"][0]))
        del rig
        fresh(place.device)
    wires.close()
    if place.rank == 0:
        errand["file"].write_text(" ".join(map(str, losses)))


def test_every_rank_runs_the_errand(tmp_path) -> None:
    start(_told, tmp_path / "two", world=2, device="cpu")
    assert sorted((tmp_path / "two").read_text().splitlines()) == ["0 of 2", "1 of 2"]
    start(_told, tmp_path / "one", world=1, device="cpu")
    assert (tmp_path / "one").read_text() == "0 of 1\n"


def test_ranks_that_have_met_measure_one_layout_after_the_other(recipe, tmp_path) -> None:
    sets = (("sp=2", "ep=2"), ("sp=2", "ep=2"), ("dp=2",), ("pp=2",))
    configs = [recipe(*(f"parallel.{key}" for key in own)) for own in sets]
    file = tmp_path / "losses"
    start(_measured, {"configs": configs, "file": file}, world=2, device="cpu")
    losses = [float(word) for word in file.read_text().split()]
    assert losses == pytest.approx([losses[0]] * len(sets), rel=1e-5)


def test_a_device_too_few_is_refused_before_anything_starts(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="rank 1 of this machine"):
        start(_told, None, world=2, device="cuda")


def test_a_wire_is_kept_for_the_same_layout_alone(recipe, place) -> None:
    wires, config = Wires(place), recipe()
    first = wires.of(config)
    assert wires.of(recipe("train.micro_batch=1")) is first
    assert wires.of(recipe("kernels.transport=auto")) is not first
    wires.close()


def test_a_wire_that_a_cpu_does_not_have_is_refused(recipe, place) -> None:
    with pytest.raises(ConfigError, match="needs CUDA devices, found cpu"):
        Wires(replace(place, world=2)).of(recipe("parallel.dp=2", "kernels.transport=symmetric"))


def test_a_cpu_has_nothing_to_give_back_or_to_wait_for(place) -> None:
    fresh(place.device)
    settle(place.device)
