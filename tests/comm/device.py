"""A device made of queues: what `CudaPeers` asks of torch and of the driver, done when it is drawn.

Streams are queues, memory is this process's, and an adversary takes turns over the queues as in
`weft.testing.peers`. So addresses, flags and the order of streams are tested where there is no GPU.
"""

import ctypes
import random
from collections import defaultdict, deque
from types import SimpleNamespace

from weft.comm.exchange import reached


class Device:
    """All streams, and which of them is current."""

    def __init__(self):
        self.queues = defaultdict(deque)
        self.current = Stream(self)

    def order(self, stream, body, ready=lambda: True):
        self.queues[stream].append((ready, body))

    def run(self, seed):
        chance = random.Random(seed)
        while left := [queue for queue in self.queues.values() if queue]:
            able = [queue for queue in left if queue[0][0]()]
            assert able, "nobody can go on"
            chance.choice(able).popleft()[1]()

    def install(self, monkeypatch, module):
        """Puts this device in the place of torch's."""

        def set_stream(stream):
            self.current = stream

        cuda = SimpleNamespace(
            Stream=lambda *_, **__: Stream(self),
            Event=lambda: Event(self),
            current_stream=lambda _: self.current,
            set_stream=set_stream,
        )
        real = module.torch
        torch = SimpleNamespace(
            cuda=cuda,
            zeros=lambda *shape, dtype, **_: real.zeros(*shape, dtype=dtype),
            **{name: getattr(real, name) for name in ("int32", "int64", "tensor")},
        )
        monkeypatch.setattr(module, "torch", torch)


class Stream:
    made = 0

    def __init__(self, device):
        Stream.made += 1
        self.device, self.cuda_stream = device, Stream.made

    def wait_event(self, event):
        due = event.recorded
        self.device.order(self.cuda_stream, lambda: None, lambda: event.reached >= due)


class Event:
    """How often it was recorded, and how far the device has come."""

    def __init__(self, device):
        self.device, self.recorded, self.reached = device, 0, 0

    def record(self, stream):
        self.recorded += 1
        number = self.recorded
        self.device.order(stream.cuda_stream, lambda: setattr(self, "reached", number))

    def query(self):
        return self.reached >= self.recorded


class Driver:
    """The calls of the driver over memory of this process."""

    def __init__(self, device):
        self.device = device

    def copy(self, stream, target, source, size):
        self.device.order(stream, lambda: ctypes.memmove(target, source, size))

    def write(self, stream, address, value):
        word = ctypes.c_uint32.from_address(address)
        self.device.order(stream, lambda: setattr(word, "value", value))

    def wait(self, stream, address, value):
        word = ctypes.c_uint32.from_address(address)
        self.device.order(stream, lambda: None, lambda: reached(word.value, value))

    def write_all(self, stream, words):
        for address, value in words:
            self.write(stream, address, value)

    def wait_all(self, stream, words):
        for address, value in words:
            self.wait(stream, address, value)
