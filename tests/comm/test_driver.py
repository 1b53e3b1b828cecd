"""What is missing for peer memory is named."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from weft.comm import driver
from weft.errors import CommunicationError

CALLS = (
    "cuMemcpyDtoDAsync_v2",
    "cuStreamWriteValue32_v2",
    "cuStreamWaitValue32_v2",
    "cuStreamBatchMemOp_v2",
)


class Library:
    """A driver whose calls write down what they are given."""

    def __init__(self, code=0):
        self.seen = []
        for name in CALLS:
            setattr(self, name, self._call(name, code))

    def _call(self, name, code):
        def call(*arguments):
            self.seen.append((name, *arguments))
            return call.errcheck(code, SimpleNamespace(__name__=name), arguments)

        return call


def test_calls_reach_the_driver_in_its_own_order_of_arguments():
    library = Library()
    found = driver.Driver(library)
    found.copy(1, 2, 3, 4)
    found.write(1, 2, 3)
    found.wait(1, 2, 3)
    assert library.seen == [
        ("cuMemcpyDtoDAsync_v2", 2, 3, 4, 1),
        ("cuStreamWriteValue32_v2", 1, 2, 3, 0),
        ("cuStreamWaitValue32_v2", 1, 2, 3, 0),
    ]


class Value(ctypes.Union):
    _fields_ = (("value", ctypes.c_uint32), ("value64", ctypes.c_uint64))


class Operation(ctypes.Structure):
    """CUstreamBatchMemOpParams, as cuda.h lays a wait and a write out."""

    _fields_ = (
        ("operation", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
        ("value", Value),
        ("flags", ctypes.c_uint32),
        ("alias", ctypes.c_uint64),
        ("pad", ctypes.c_uint64),
    )


@pytest.mark.parametrize(("method", "operation"), [("wait_all", 1), ("write_all", 2)])
def test_a_batch_is_laid_out_as_the_driver_reads_it(method, operation):
    assert ctypes.sizeof(Operation) == 48
    library = Library()
    words = [(2**40 + 128 * i, 2**32 - 1 - i) for i in range(3)]
    getattr(driver.Driver(library), method)(7, words)
    ((name, stream, count, into, flags),) = library.seen
    assert (name, stream, count, flags) == ("cuStreamBatchMemOp_v2", 7, 3, 0)
    seen = ctypes.cast(into, ctypes.POINTER(Operation))[:count]
    assert [(one.operation, one.address, one.value.value, one.flags) for one in seen] == [
        (operation, address, value, 0) for address, value in words
    ]


def test_an_error_of_the_driver_is_raised_with_its_code():
    with pytest.raises(CommunicationError, match=r"cuStreamWaitValue32_v2.* error 801 .*try"):
        driver.Driver(Library(code=801)).wait(1, 2, 3)


def test_a_driver_without_a_call_is_named(monkeypatch):
    monkeypatch.setattr(driver.ctypes, "CDLL", lambda _: SimpleNamespace())
    with pytest.raises(CommunicationError, match="cuMemcpyDtoDAsync_v2"):
        driver.open_driver()


def test_a_torch_with_other_names_is_named(monkeypatch):
    monkeypatch.setattr(driver.importlib, "import_module", lambda _: SimpleNamespace(empty=list))
    with pytest.raises(CommunicationError, match=r"torch .* has no rendezvous in torch\.distri"):
        driver.symmetric_memory()


def test_this_torch_has_symmetric_memory():
    assert callable(driver.symmetric_memory().rendezvous)


def test_other_devices_than_those_of_cuda_have_none():
    assert driver.obstacle(torch.device("cpu")) == "peer memory is of CUDA devices, found cpu"
