"""Collectives as kernels: over memory of this process, where one member runs after the other.

The first one to run pushes, does not find its peer's flags and gives up; once the peer has run, the
same call again finds all of them.
"""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.comm.call import sum_in_rank_order
from weft.comm.kernel import LINE, Board, Shape, Turn, signed
from weft.kernels.triton import collectives
from weft.testing.ranks import run_ranks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOT = 1 << 16
SHAPE = Shape(pairs=4, ring=4)  # chunks of 4 KiB at most
EPOCHS = (1, 2**31 - 1, 2**32 - 3)  # the last ones as they wrap


class Group:
    """Members of one process, each with a board; their flags stand at an epoch."""

    def __init__(self, size, spins=3, shape=SHAPE, slot=SLOT, epoch=0, share=lambda x: x):
        flags, slots = 2 * shape.pairs * LINE, 2 * slot
        self.size, row = size, flags + slots
        self.arenas = [
            share(torch.zeros(size * row, dtype=torch.uint8, device=DEVICE)) for _ in range(size)
        ]
        for arena in self.arenas:
            arena.view(size, row)[:, :flags].view(torch.int32).fill_(signed(epoch))
        self.turns = 0
        at = [[arena.data_ptr() + writer * row for writer in range(size)] for arena in self.arenas]
        self.boards = [
            Board(
                table=torch.tensor(
                    [
                        [at[peer][i] for peer in range(size)],
                        [at[peer][i] + flags for peer in range(size)],
                        [at[i][peer] for peer in range(size)],
                        [at[i][peer] + flags for peer in range(size)],
                    ],
                    device=DEVICE,
                ),
                failed=torch.zeros(2, dtype=torch.int32, device=DEVICE),
                size=size,
                position=i,
                slot_bytes=slot,
                spins=spins,
                shape=shape,
            )
            for i in range(size)
        ]

    def call(self, kernel, epoch, x, outs, *how):
        """One call of all members, twice, since none but the last finds all flags at first."""
        self.turns += 1
        for _ in range(2):
            for board in self.boards:
                board.failed.zero_()
            for board, one, out in zip(self.boards, x, outs, strict=True):
                kernel(board, Turn(epoch, self.turns % 2), one, out, *how)
        assert all(board.failed.tolist() == [0, 0] for board in self.boards)


def make(n, count, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, count, generator=generator) * 100
    return [one.to(dtype).to(DEVICE) for one in x]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", [0, 1, 4096, 9001])
def test_blocks_arrive_and_the_own_one_stays(size, count):
    for epoch in EPOCHS:
        group = Group(size, epoch=epoch)
        x = make(size, size * count, torch.int16, epoch)
        outs = [torch.full_like(one, 7) for one in x]
        group.call(collectives.exchange, epoch, x, outs, count)
        blocks = torch.stack(x).view(size, size, count)
        for i, out in enumerate(outs):
            assert torch.equal(out, blocks[:, i].reshape(-1))


@pytest.mark.parametrize("shift", [0, 1])
def test_one_block_goes_to_all_wherever_it_lies(shift):
    group, count = Group(2), 5000
    x = [one[shift:] for one in make(2, count + shift, torch.int16, 3)]
    outs = [torch.full((2 * count,), 7, dtype=torch.int16, device=DEVICE) for _ in x]
    group.call(collectives.exchange, 0, x, outs, 0)
    assert all(torch.equal(out, torch.cat(x)) for out in outs)


DTYPES = [torch.float32, torch.float64, torch.int64]
DTYPES += [torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.float16]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scatter", [True, False])
def test_sums_have_the_bits_of_those_in_rank_order(size, dtype, scatter):
    count = 4100
    for epoch in EPOCHS if dtype is DTYPES[0] else EPOCHS[-1:]:  # flags know nothing of dtypes
        group = Group(size, epoch=epoch)
        x = make(size, count * (size if scatter else 1), dtype, epoch)
        outs = [torch.empty(count, dtype=dtype, device=DEVICE) for _ in x]
        group.call(collectives.add, epoch, x, outs, count if scatter else 0, dtype)
        for i, out in enumerate(outs):
            terms = [one.view(-1, count)[i if scatter else 0] for one in x]
            assert torch.equal(out, sum_in_rank_order(terms, torch.empty_like(out)))


def test_who_does_not_come_is_written_down_with_the_epoch():
    group = Group(3, spins=2)
    x, out = torch.ones(8, device=DEVICE), torch.empty(8, device=DEVICE)
    collectives.add(group.boards[1], Turn(5, 0), x, out, 0, torch.float32)
    position, epoch = group.boards[1].failed.tolist()
    assert (position - 1, epoch) in ((0, 6), (2, 6))


def test_without_flags_a_call_reads_what_lies_there():
    """The control: a member that does not wait finds nothing of its peer's."""
    group = Group(2)
    x, out = make(2, 64, torch.float32, 0), torch.empty(64, device=DEVICE)
    deaf = replace(group.boards[0], spins=0)
    collectives.add(deaf, Turn(0, 0), x[0], out, 0, torch.float32)
    assert torch.equal(out, x[0])
    assert deaf.failed.tolist() == [2, 1]


@pytest.mark.parametrize("size", [2, 3])
def test_terms_are_rounded_as_they_travel(size):
    count, group = 9000, Group(size)
    x = make(size, count * size, torch.float32, 4)
    outs = [torch.empty(count, device=DEVICE) for _ in x]
    group.call(collectives.add, 0, x, outs, count, torch.float16)
    for i, out in enumerate(outs):
        terms = [one.view(size, count)[i].half() for one in x]
        assert torch.equal(out, sum_in_rank_order(terms, torch.empty_like(out)))


def run_long(number, boards, x, outs):
    """Calls of more chunks than a pair has slots, one after the other: all that pushes of a member,
    or all that takes out.
    """
    rank, role = divmod(number, 2)
    board, epoch = boards[rank], 0
    for call, (one, out) in enumerate(zip(x[rank], outs[rank], strict=True)):
        turn, stride = Turn(epoch, call % 2), one.numel() // 2
        collectives._launch(
            collectives._add, board, turn, one, out, out.numel(), stride, torch.float16,
            roles=range(role, role + 1),
        )  # fmt: skip
        epoch += board.walk(out.numel() * 2).steps
    return board.failed.tolist()


@pytest.mark.skipif(DEVICE == "cuda", reason="the members are processes that share no device")
def test_members_that_run_at_a_time_take_turns_with_their_slots():
    shape, calls, count = Shape(pairs=2, ring=2, grain=LINE), 3, 20_000
    group = Group(2, 10**7, shape, slot=2**13, share=torch.Tensor.share_memory_)
    assert group.boards[0].walk(count * 2).steps > 2 * shape.ring
    x = [make(calls, 2 * count, torch.float32, rank) for rank in range(2)]
    outs = [[torch.empty(count).share_memory_() for _ in range(calls)] for _ in range(2)]
    assert run_ranks(4, run_long, group.boards, x, outs) == [[0, 0]] * 4
    for number in range(calls):
        for i in range(2):
            terms = [x[rank][number].view(2, count)[i].half() for rank in range(2)]
            assert torch.equal(outs[i][number], sum_in_rank_order(terms, torch.empty(count)))


# A kernel that is interpreted cannot be compiled in the same process.
COMPILE = """
import re
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from weft.comm.kernel import REGISTERS, SHAPE, WARPS
from weft.kernels.triton import collectives

KINDS = {"i32": tl.int32, "bf16": tl.bfloat16, "fp32": tl.float32}
CALLS = (
    (collectives._exchange.kernel, "i32", "i32"),
    (collectives._add.kernel, "bf16", "bf16"),
    (collectives._add.kernel, "fp32", "fp32"),
    (collectives._add.kernel, "fp32", "bf16"),
)
for kernel, kind, wire in CALLS:
    names = kernel.arg_names
    types = dict.fromkeys(names, "i32")
    types |= {"x": "*" + kind, "out": "*" + kind, "table": "*i64", "failed": "*i32"}
    constants = {"SIZE": 2, "RING": SHAPE.ring, "PAIRS": SHAPE.pairs, "WIRE": KINDS[wire]}
    constants["BLOCK"] = collectives._BLOCK
    types |= dict.fromkeys(constants, "constexpr")
    aligned = ("x", "out", "table", "failed", "half", "size", "stride", "chunk")
    source = ASTSource(
        kernel,
        types,
        constants,
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": WARPS, "maxnreg": REGISTERS}
    ptx = compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert f".maxnreg {REGISTERS}" in ptx  # of which half a device has enough
    print(" ".join(sorted(set(re.findall(r"(?:ld|st|atom|red)\\.[\\w.:]+", ptx)))))
"""


@pytest.mark.skipif(DEVICE == "cuda", reason="there it is compiled and run")
def test_kernels_for_a_gpu_release_and_acquire_to_the_system_and_move_16_bytes(tmp_path):
    script = tmp_path / "compile_collectives.py"
    script.write_text(COMPILE)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path), "TRITON_CACHE_DIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        found = line.split()
        assert any("release" in one and "sys" in one for one in found), line
        assert any("acquire" in one and "sys" in one for one in found), line
        moved = {one for one in found if one.startswith(("ld.global", "st.global"))}
        assert {"ld.global.v4.b32", "st.global.v4.b32"} <= moved, line
        # flags, the table and the word for who did not come are all that is narrower
        assert not {"ld.global.b16", "st.global.b16", "ld.global.b32"} & moved, line
    assert len(done.stdout.splitlines()) == 4
