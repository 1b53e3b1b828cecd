"""Calls in one kernel of peers inside one process: each program is a queue of the adversary.

Pairs of a member wait for each other nowhere but at the end of a kernel, so on every member some
may have ended before others begin. What they do is what `weft.kernels.triton.collectives` does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from weft.comm.call import sum_in_rank_order
from weft.comm.exchange import Queue
from weft.comm.kernel import Board, Bodies, Shape, Turn
from weft.testing.peers import PeerWorld, StackedPeers

Program = tuple[str, int]  # a queue: one of a pair
Keep = Callable[[Program, slice], None]
Take = Callable[[Program, slice, dict[int, Tensor]], None]


@final
class KernelWorld:
    """The slots of all members of a world, and the kernels of each."""

    def __init__(self, world: PeerWorld, *, slot_bytes: int, shape: Shape) -> None:
        self.size = len(world.members)
        self.slot_bytes = slot_bytes
        self.shape = shape
        sizes = (self.size, self.size, 2, slot_bytes)  # owners, writers, calls in turn, bytes
        self.slots = torch.full(sizes, 0xA5, dtype=torch.uint8)

    def board(self, position: int) -> Board:
        """What a kernel is told, less the addresses."""
        nothing = torch.empty(0)
        return Board(
            table=nothing,
            failed=nothing,
            size=self.size,
            position=position,
            slot_bytes=self.slot_bytes,
            spins=0,
            shape=self.shape,
        )

    def bodies(self, memory: StackedPeers) -> Bodies:
        """The kernels of one member."""
        kernels = _Kernels(self, memory)
        return Bodies(exchange=kernels.exchange, add=kernels.add)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """A call of a member, whose blocks have `size` elements."""

    board: Board
    turn: Turn
    x: Tensor
    size: int
    stride: int
    wire: torch.dtype

    @property
    def others(self) -> list[int]:
        board = self.board
        return [(board.position + way) % board.size for way in range(1, board.size)]

    def block(self, member: int) -> Tensor:
        """What is for a member."""
        return self.x[member * self.stride :][: self.size]


class _Kernels:
    """The two kernels, which order what their programs do."""

    def __init__(self, world: KernelWorld, memory: StackedPeers) -> None:
        self._world = world
        self._memory = memory

    def exchange(self, board: Board, turn: Turn, x: Tensor, out: Tensor, stride: int) -> None:
        size = out.numel() // board.size
        call = _Call(board=board, turn=turn, x=x, size=size, stride=stride, wire=x.dtype)

        def keep(program: Program, part: slice) -> None:
            own = call.block(board.position)[part]
            self._memory.copy(program, out[board.position * size :][:size][part], own)

        def take(program: Program, part: slice, slots: dict[int, Tensor]) -> None:
            for peer, slot in slots.items():
                self._memory.copy(program, out[peer * size :][:size][part], slot)

        self._run(call, keep, take)

    def add(
        self, board: Board, turn: Turn, x: Tensor, out: Tensor, stride: int, wire: torch.dtype
    ) -> None:
        call = _Call(board=board, turn=turn, x=x, size=out.numel(), stride=stride, wire=wire)

        def take(program: Program, part: slice, slots: dict[int, Tensor]) -> None:
            own, total = call.block(board.position)[part], out[part]

            def add_up() -> None:
                terms = {**slots, board.position: own.to(wire, copy=True)}
                sum_in_rank_order([terms[rank] for rank in range(board.size)], total)

            self._memory.order(program, "a sum", add_up)

        self._run(call, lambda *_: None, take)

    def _run(self, call: _Call, keep: Keep, take: Take) -> None:
        """Every program behind the caller, the caller behind every program."""
        way = call.board.walk(call.size * call.wire.itemsize)
        chunk = way.chunk // call.wire.itemsize
        for number in range(way.pairs):
            firsts = range(number * chunk, way.chunks * chunk, way.pairs * chunk)
            parts = [slice(first, max(min(first + chunk, call.size), first)) for first in firsts]
            push, take_out = ("push", number), ("take", number)
            self._memory.wait(push, Queue.CALLER)
            self._memory.wait(take_out, Queue.CALLER)
            for step, part in enumerate(parts):
                self._push(call, push, step, part)
            for step, part in enumerate(parts):
                keep(take_out, part)
                self._land(call, take_out, step, part, take)
                if step + call.board.shape.ring < len(parts):
                    self._announce(call, take_out, ("landed", number), step)
            self._memory.wait(Queue.CALLER, push)
            self._memory.wait(Queue.CALLER, take_out)

    def _push(self, call: _Call, program: Program, step: int, part: slice) -> None:
        memory, writer, number = self._memory, call.board.position, program[1]
        emptied = call.turn.epoch + step - call.board.shape.ring + 1
        for peer in call.others:
            if step >= call.board.shape.ring:
                memory.await_one(program, peer, ("landed", number), emptied)
            there, source = self._slot(call, peer, writer, number, step, part), call.block(peer)
            if source.dtype == call.wire:
                memory.copy(program, there, source[part])
            else:
                memory.order(program, "rounded", lambda a=there, b=source[part]: a.copy_(b))
        self._announce(call, program, ("full", number), step)

    def _announce(self, call: _Call, program: Program, flag: tuple[str, int], step: int) -> None:
        for peer in call.others:
            self._memory.raise_one(program, peer, flag, call.turn.epoch + step + 1)

    def _land(self, call: _Call, program: Program, step: int, part: slice, take: Take) -> None:
        owner, number = call.board.position, program[1]
        for peer in call.others:
            full = ("full", number)
            self._memory.await_one(program, peer, full, call.turn.epoch + step + 1)
        slots = {peer: self._slot(call, owner, peer, number, step, part) for peer in call.others}
        take(program, part, slots)

    def _slot(
        self, call: _Call, owner: int, writer: int, number: int, step: int, part: slice
    ) -> Tensor:
        width, ring = call.wire.itemsize, call.board.shape.ring
        chunk = call.board.walk(call.size * width).chunk
        first = (number * ring + step % ring) * chunk
        held = self._world.slots[owner, writer, call.turn.slots]
        return held[first : first + (part.stop - part.start) * width].view(call.wire)
