"""A stream of tensors is the file that the library writes, and holds one tensor at a time."""

import gc
import weakref

import pytest
import torch
from safetensors.torch import load_file

from weft.checkpoint.hf.stream import Spec, write_stream


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_library_reads_what_was_streamed(tmp_path, dtype):
    made = {
        "a": torch.randn(3, 5).to(dtype),
        "bias": torch.randn(7),
        "b": torch.randn(2, 3, 1).to(dtype),
        "none": torch.zeros(0, 4, dtype=dtype),
    }
    specs = {name: Spec(shape=tuple(t.shape), dtype=t.dtype) for name, t in made.items()}
    write_stream(tmp_path / "f.safetensors", specs, made.__getitem__)
    found = load_file(tmp_path / "f.safetensors")
    assert found.keys() == made.keys()
    assert all(torch.equal(found[name], made[name]) for name in made)


def test_a_view_is_written_in_its_own_order(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    write_stream(tmp_path / "f", {"t": Spec(shape=(4, 3), dtype=whole.dtype)}, lambda _: whole.T)
    assert torch.equal(load_file(tmp_path / "f")["t"], whole.T)


def test_no_tensor_outlives_its_turn(tmp_path):
    alive: list[weakref.ref] = []

    def make(_name):
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 1
        tensor = torch.zeros(1000)
        alive.append(weakref.ref(tensor))
        return tensor

    specs = {str(i): Spec(shape=(1000,), dtype=torch.float32) for i in range(9)}
    write_stream(tmp_path / "f", specs, make)
    assert len(alive) == 9
