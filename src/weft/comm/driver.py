"""What peer memory needs of torch and of the CUDA driver, asked for in this one place.

Torch maps the memory of other processes (`torch.distributed._symmetric_memory`, private names). The
driver copies between mapped memories with its copy engines, and writes and awaits 32-bit flags in
the order of a stream; none of that takes a multiprocessor, so nothing here can starve behind a
kernel that fills the device.
"""

import ctypes
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, final

import torch

from weft.errors import CommunicationError

_TORCH = "torch.distributed._symmetric_memory"
_TORCH_NAMES = ("empty", "rendezvous")
_LIBRARY = "libcuda.so.1"
_AT_LEAST = 0  # CU_STREAM_WAIT_VALUE_GEQ: (int32_t)(*address - value) >= 0, so epochs may wrap
_FENCED = 0  # CU_STREAM_WRITE_VALUE_DEFAULT: what came before is visible to the system first
_WAIT, _WRITE = 1, 2  # CU_STREAM_MEM_OP_WAIT_VALUE_32, CU_STREAM_MEM_OP_WRITE_VALUE_32
_WORDS = 6  # of 64 bits in a CUstreamBatchMemOpParams: operation, address, value, flags, two unused
_MOST = 255  # operations in a batch

_Call = Callable[..., int]


@final
class Driver:
    """The calls of the driver. Addresses and streams are plain numbers."""

    def __init__(self, library: ctypes.CDLL) -> None:
        address, stream = ctypes.c_uint64, ctypes.c_void_p
        word, size = ctypes.c_uint32, ctypes.c_size_t
        self._copy = _found(library, "cuMemcpyDtoDAsync_v2", address, address, size, stream)
        self._write = _found(library, "cuStreamWriteValue32_v2", stream, address, word, word)
        self._wait = _found(library, "cuStreamWaitValue32_v2", stream, address, word, word)
        words = ctypes.POINTER(address)
        self._batch = _found(library, "cuStreamBatchMemOp_v2", stream, word, words, word)
        self._words = (address * (_WORDS * _MOST))()  # the driver copies it within the call

    def copy(self, stream: int, target: int, source: int, size: int) -> None:
        """Copies bytes between addresses of this device or of peers."""
        self._copy(target, source, size, stream)

    def write(self, stream: int, address: int, value: int) -> None:
        """Writes 32 bits once everything before them on the stream is there for everybody."""
        self._write(stream, address, value, _FENCED)

    def wait(self, stream: int, address: int, value: int) -> None:
        """Holds a stream until the 32 bits at an address of this device are at a value or past."""
        self._wait(stream, address, value, _AT_LEAST)

    def write_all(self, stream: int, words: Sequence[tuple[int, int]]) -> None:
        """Writes a value at each address, as `write` does, in one call."""
        self._all(stream, words, _WRITE, _FENCED)

    def wait_all(self, stream: int, words: Sequence[tuple[int, int]]) -> None:
        """Holds a stream until each address is at its value, as `wait` does, in one call."""
        self._all(stream, words, _WAIT, _AT_LEAST)

    def _all(self, stream: int, words: Sequence[tuple[int, int]], kind: int, flags: int) -> None:
        assert len(words) <= _MOST, f"{len(words)=}"
        into = self._words
        for number, (address, value) in enumerate(words):
            at = number * _WORDS
            into[at], into[at + 1], into[at + 2], into[at + 3] = kind, address, value, flags
        self._batch(stream, len(words), into, 0)


def symmetric_memory() -> ModuleType:
    """Torch's module.

    Raises:
        CommunicationError: this torch has none, or under other names.
    """
    try:
        module = importlib.import_module(_TORCH)
    except ImportError as error:
        raise CommunicationError(f"torch {torch.__version__} has no {_TORCH}") from error
    missing = [name for name in _TORCH_NAMES if not callable(getattr(module, name, None))]
    if missing:
        raise CommunicationError(
            f"torch {torch.__version__} has no {', '.join(missing)} in {_TORCH}"
        )
    return module


def open_driver() -> Driver:
    """The driver of this machine.

    Raises:
        CommunicationError: there is none, or it lacks a call.
    """
    try:
        return Driver(ctypes.CDLL(_LIBRARY))
    except (OSError, AttributeError) as error:
        raise CommunicationError(
            f"no CUDA driver with stream memory operations: {error}"
        ) from error


def obstacle(device: torch.device) -> str | None:
    """Why this process can have no peer memory on a device, or None."""
    if device.type != "cuda":
        return f"peer memory is of CUDA devices, found {device.type}"
    try:
        symmetric_memory()
        open_driver()
    except CommunicationError as error:
        return str(error)
    return None


def _found(library: ctypes.CDLL, name: str, *arguments: Any) -> _Call:
    call = getattr(library, name)
    call.argtypes = arguments
    call.errcheck = _refuse
    return call


def _refuse(code: int, call: Any, arguments: tuple[Any, ...]) -> int:
    if code:
        raise CommunicationError(
            f"{call.__name__}{arguments} failed with error {code} of the CUDA driver; "
            "try kernels.transport = 'nccl'"
        )
    return code
