"""A safetensors file written tensor by tensor: no more than one of them is ever in memory.

8 bytes        the length of the header, little endian
header         JSON: name -> dtype, shape, [begin, end) behind the header
tensors        end to end, those of wide elements first, so that each begins at a multiple of its
               element
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

_NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
_ALIGNMENT = 8  # of the end of the header: the format's own choice


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """The shape and dtype of a tensor that is not made yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_stream(path: Path, specs: Mapping[str, Spec], make: Callable[[str], Tensor]) -> None:
    """Writes the tensors that `make` gives for each name, one after another."""
    names = sorted(specs, key=lambda name: -specs[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in names:
        spec, end = specs[name], begin + specs[name].num_bytes
        header[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in names:
            tensor = make(name)
            assert (tuple(tensor.shape), tensor.dtype) == (specs[name].shape, specs[name].dtype)
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
