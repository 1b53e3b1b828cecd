"""A host that waits for the device is found, and named host tasks are allowed to."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from weft.bench.rig import rigged
from weft.bench.synchronisation import Watch, synchronisations


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Torch's debug mode on a machine without a GPU: what it was set to, in order."""
    history = ["default"]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", history.append)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: history[-1])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    yield history
    assert history[-1] == "default"


def test_a_clean_step_is_clean(recipe, place, modes) -> None:
    with rigged(recipe(), place) as rig:
        found = synchronisations(rig)
    assert (found.named, found.unnamed) == (0, None)
    assert modes == ["default", "error", "default"]
    assert "none elsewhere" in found.text()


def test_a_body_that_waits_is_named(recipe, place, modes) -> None:
    with rigged(recipe(), place) as rig:
        permute = rig.bodies["permute"]

        def waiting(*inputs, **attributes):
            if modes[-1] == "error":
                raise RuntimeError("called a synchronizing CUDA operation")
            return permute(*inputs, **attributes)

        found = synchronisations(replace(rig, bodies={**rig.bodies, "permute": waiting}))
    assert found.unnamed is not None
    assert found.unnamed.startswith("permute: ")
    assert "NOT clean" in found.text()


def test_another_error_is_not_swallowed(recipe, place, modes) -> None:
    def broken(*inputs, **attributes):
        raise RuntimeError("out of something")

    with rigged(recipe(), place) as rig, pytest.raises(RuntimeError, match="out of something"):
        synchronisations(replace(rig, bodies={**rig.bodies, "permute": broken}))


def test_a_host_task_may_wait_and_is_counted(modes) -> None:
    seen = []
    watch = Watch()
    bodies = watch.bodies({"rows_to_host": lambda: seen.append(modes[-1]), "add": seen.append})
    modes.append("error")
    bodies["rows_to_host"]()
    bodies["add"]("compute")
    assert seen == ["default", "compute"]
    assert modes[-1] == "error"
    assert watch.named == 1
    assert watch.running == "add"
    modes.append("default")


@pytest.mark.gpu
def test_a_step_of_one_rank_does_not_wait_on_a_gpu(recipe, place) -> None:
    device = torch.device("cuda", 0)
    config = recipe("train.device=cuda", "train.precision=bfloat16", "model.head_dim=16")
    with rigged(config, type(place)(rank=0, world=1, device=device, meeting=None)) as rig:
        found = synchronisations(rig)
    assert found.unnamed is None
