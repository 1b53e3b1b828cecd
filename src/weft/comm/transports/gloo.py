"""The wire of a CPU: torch.distributed over gloo, asynchronous, and with the bits of `stacked`.

Sums are made here and not by gloo: the terms travel (all-to-all, or all-gather for a short vector)
and are added when waited for, in rank order. Measured on 2 cores, reduce-scatter of 4 MiB of
float32: gloo's own 6.8 ms at 2 ranks and 8.9 ms at 4, this one 1.7 ms and 3.8 ms, with the same
bytes on the wire; so it is the only way used.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, Work

from weft.comm.call import Call, Collective, sum_in_rank_order
from weft.comm.handle import Handle
from weft.comm.mesh import Mesh, memberships
from weft.comm.transport import LANES, LINKS, Transport
from weft.comm.wire import close_groups, failure, gather, move, open_groups


@final
class GlooTransport(Transport):
    """The groups of this process over gloo, in an initialised default process group.

    Numerics: sums in rank order, rounded once: bit for bit those of `stacked`.

    Raises:
        CommunicationError: from a call or its `wait`, when a member is gone or late; it names the
        call.
    """

    def __init__(
        self,
        mesh: Mesh,
        *,
        timeout_seconds: float,
        lanes: tuple[str, ...] = LANES,
        links: tuple[str, ...] = LINKS,
    ) -> None:
        self._rank = dist.get_rank()
        self._groups = open_groups(
            mesh,
            backend="gloo",
            lanes=lanes,
            links=links,
            timeout_seconds=timeout_seconds,
            device=torch.device("cpu"),
        )
        self._members = memberships(mesh, self._rank)
        self._posted: Counter[tuple[str, str]] = Counter()
        self._exposed = 0.0

    def group_size(self, axis: str) -> int:
        return len(self._members[axis].ranks)

    def group_rank(self, axis: str) -> int:
        return self._members[axis].position

    def barrier(self) -> None:
        if self._groups:
            dist.barrier(next(g for (axis, _), g in self._groups.items() if axis == "world"))

    def close(self) -> None:
        close_groups(self._groups)
        self._groups = {}

    def exposed_seconds(self) -> float:
        return self._exposed

    def reset_exposed(self) -> None:
        self._exposed = 0.0

    def describe(self) -> str:
        return "gloo"

    def sums_on_arrival(self) -> bool:
        return False

    def post(self, call: Call, x: Tensor, out: Tensor) -> Handle:
        key = (call.axis, call.lane)
        sequence = self._posted[key]
        self._posted[key] += 1
        try:
            state = _start(call, x, out, self._groups[key], self.group_size(call.axis))
        except RuntimeError as error:
            raise failure(call, sequence, self._rank, error) from error
        return _Posted(
            state,
            blocked=self._block,
            explain=lambda error: failure(call, sequence, self._rank, error),
        )

    def _block(self, seconds: float) -> None:
        self._exposed += seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class _UnderWay:
    """Work of gloo, the tensor it reads, and what turns its arrival into the result."""

    work: Work
    sent: Tensor
    finish: Callable[[], Tensor]


@final
class _Posted(Handle):
    """A collective of gloo, under way or done."""

    def __init__(
        self,
        state: _UnderWay,
        *,
        blocked: Callable[[float], None],
        explain: Callable[[BaseException], Exception],
    ) -> None:
        self._state: _UnderWay | Tensor = state
        self._blocked = blocked
        self._explain = explain

    def ready(self) -> bool:
        return not isinstance(self._state, _UnderWay) or self._state.work.is_completed()

    def wait(self) -> Tensor:
        if isinstance(self._state, _UnderWay):
            began = perf_counter()
            try:
                self._state.work.wait()
            except RuntimeError as error:
                raise self._explain(error) from error
            finally:
                self._blocked(perf_counter() - began)
            self._state = self._state.finish()
        return self._state


def _start(call: Call, x: Tensor, out: Tensor, group: ProcessGroup, size: int) -> _UnderWay:
    """The work of a collective, what it reads, and what turns its arrival into the result."""
    sent = x.to(call.dtype)  # narrower than x only where the terms of a sum are rounded
    match call.collective:
        case Collective.REDUCE_SCATTER | Collective.ALL_TO_ALL_SUM:
            terms = torch.empty_like(sent)
            work = dist.all_to_all_single(terms, sent, group=group, async_op=True)
            finish = _ordered_sum(terms, out, size)
        case Collective.ALL_REDUCE:
            terms = x.new_empty(size * x.numel())
            work = gather(terms, x.view(-1), group, asynchronous=True)
            finish = _ordered_sum(terms, out, size)
        case _:
            work = move(call, x, out, group, asynchronous=True)
            finish = _given(out)
    assert work is not None, f"{call} has no work on a rank of its own group"
    return _UnderWay(work=work, sent=sent, finish=finish)


def _ordered_sum(terms: Tensor, out: Tensor, size: int) -> Callable[[], Tensor]:
    return lambda: sum_in_rank_order(terms.view(size, *out.shape), out)


def _given(out: Tensor) -> Callable[[], Tensor]:
    return lambda: out
