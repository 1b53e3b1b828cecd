"""Short calls of peers inside one process: each program of each kernel is a queue of the adversary.

Programs of a member wait for each other nowhere but at the end of a kernel, so on every member some
may have ended before others begin. What they do is what `weft.kernels.triton.short` does.
"""

from typing import final

import torch
from torch import Tensor

from weft.comm.call import sum_in_rank_order
from weft.comm.exchange import Queue
from weft.comm.short import Board, Bodies
from weft.testing.peers import PeerWorld, StackedPeers

Program = tuple[str, int]  # a queue, and the flag that it raises


@final
class ShortWorld:
    """The short slots of all members of a world, and the kernels of each; a program carries
    `chunk` elements of a block.
    """

    def __init__(self, world: PeerWorld, *, slot_bytes: int, chunk: int) -> None:
        self.size = len(world.members)
        self.slot_bytes = slot_bytes
        self.chunk = chunk
        shape = (self.size, self.size, 2, slot_bytes)  # owners, writers, calls in turn, bytes
        self.slots = torch.full(shape, 0xA5, dtype=torch.uint8)

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
        )

    def bodies(self, memory: StackedPeers) -> Bodies:
        """The kernels of one member."""
        kernels = _Kernels(self, memory)
        return Bodies(exchange=kernels.exchange, add=kernels.add)


class _Kernels:
    """The two kernels, which order what their programs do."""

    def __init__(self, world: ShortWorld, memory: StackedPeers) -> None:
        self._world = world
        self._memory = memory

    def exchange(self, board: Board, epoch: int, x: Tensor, out: Tensor, stride: int) -> None:
        memory, size = self._memory, out.numel() // board.size
        for program, part in self._programs(size):
            self._push(program, board, epoch, x, part, stride)
            own = x[board.position * stride :][:size][part]
            memory.copy(program, out[board.position * size :][:size][part], own)
            for peer in _others(board):
                memory.await_one(program, peer, program, epoch)
                here = self._slot(board.position, peer, epoch, x)[part]
                memory.copy(program, out[peer * size :][:size][part], here)
            memory.wait(Queue.CALLER, program)

    def add(self, board: Board, epoch: int, x: Tensor, out: Tensor, stride: int) -> None:
        memory, size = self._memory, out.numel()
        for program, part in self._programs(size):
            self._push(program, board, epoch, x, part, stride)
            for peer in _others(board):
                memory.await_one(program, peer, program, epoch)
            terms = [self._slot(board.position, rank, epoch, x)[part] for rank in range(board.size)]
            terms[board.position] = x[board.position * stride :][:size][part]
            total = out[part]
            memory.order(program, "a sum", lambda a=terms, b=total: sum_in_rank_order(a, b))
            memory.wait(Queue.CALLER, program)

    def _programs(self, size: int) -> list[tuple[Program, slice]]:
        """Each program behind the caller, with its chunk."""
        chunk = self._world.chunk
        programs = [
            (("program", number), slice(first, min(first + chunk, size)))
            for number, first in enumerate(range(0, max(size, 1), chunk))
        ]
        for program, _ in programs:
            self._memory.wait(program, Queue.CALLER)
        return programs

    def _push(
        self, program: Program, board: Board, epoch: int, x: Tensor, part: slice, stride: int
    ) -> None:
        for peer in _others(board):
            there = self._slot(peer, board.position, epoch, x)[part]
            self._memory.copy(program, there, x[peer * stride :][part])
        for peer in _others(board):
            self._memory.raise_one(program, peer, program, epoch)

    def _slot(self, owner: int, writer: int, epoch: int, like: Tensor) -> Tensor:
        return self._world.slots[owner, writer, epoch % 2].view(like.dtype)


def _others(board: Board) -> list[int]:
    return [(board.position + way) % board.size for way in range(1, board.size)]
