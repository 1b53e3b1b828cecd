"""Ulysses by hand: four ranks in one process trade their tokens for heads, and attention is exact.

    every rank   tokens / 4, all heads  --all-to-all-->  all tokens, heads / 4
    attention needs all tokens of a head, and nothing of another head: it runs as if alone
    every rank   all tokens, heads / 4  --all-to-all-->  tokens / 4, all heads

The stacked transport is every rank of a layout in this process, so a collective can be watched.

    python examples/02_ulysses_on_stacked_ranks.py
"""

import torch
from torch import Tensor

from weft.comm.mesh import Mesh
from weft.comm.transports.counting import CountingTransport
from weft.comm.transports.stacked import StackedWorld
from weft.ops.attention import segments
from weft.ops.heads import join_heads, pack_heads, split_heads
from weft.ops.registry import reference_bodies

SP, TOKENS, HEADS, KV_HEADS, CHANNELS = 4, 64, 32, 16, 8
DOCUMENTS = segments((20, 50, TOKENS), torch.device("cpu"))  # three, packed into one sequence


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention within each document."""
    return reference_bodies()["attention"](q, k, v, DOCUMENTS)[0]


def exchange(wires: list[CountingTransport], blocks: list[Tensor], label: str) -> list[Tensor]:
    """An all-to-all of all ranks: everybody posts, then everybody waits."""
    handles = [
        wire.all_to_all(block, axis="sp", label=label)
        for wire, block in zip(wires, blocks, strict=True)
    ]
    return [handle.wait() for handle in handles]


def ulysses(q: Tensor, k: Tensor, v: Tensor, wires: list[CountingTransport]) -> Tensor:
    """The same attention with tokens cut over ranks before and after it."""
    shards = zip(q.chunk(SP), k.chunk(SP), v.chunk(SP), strict=True)
    packed = [pack_heads(*shard, sp=SP, heads=HEADS, kv_heads=KV_HEADS) for shard in shards]
    print(f"a rank has   q {[TOKENS // SP, HEADS, CHANNELS]}, packs {list(packed[0].shape)}")
    received = exchange(wires, packed, "qkv")
    share = {"heads": HEADS // SP, "kv_heads": KV_HEADS // SP}
    mine = [split_heads(part, **share) for part in received]
    print(f"it attends   q {list(mine[0][0].shape)}, k and v {list(mine[0][1].shape)}")
    home = exchange(wires, [attend(*heads) for heads in mine], "attention")
    joined = [join_heads(part, sp=SP, heads=HEADS // SP) for part in home]
    print(f"it gets back a {list(joined[0].shape)}\n")
    return torch.cat(joined)


if __name__ == "__main__":
    torch.manual_seed(0)
    q = torch.randn(TOKENS, HEADS, CHANNELS, dtype=torch.float64)
    k, v = torch.randn(2, TOKENS, KV_HEADS, CHANNELS, dtype=torch.float64)
    world = StackedWorld(Mesh(dp=1, sp=SP, ep=1))
    wires = [CountingTransport(world.transport(rank)) for rank in range(SP)]

    alone, together = attend(q, k, v).flatten(1), ulysses(q, k, v, wires)
    print(f"largest difference from one rank: {(alone - together).abs().max():.1e}")

    counted = sum(wires[0].counts().values())
    ratio = HEADS // KV_HEADS  # m, query heads to a key/value head
    hidden = HEADS * CHANNELS
    predicted = TOKENS * hidden * (SP - 1) / SP * (2 + 2 / ratio) / SP * 8
    print(f"bytes that rank 0 received: {counted:,}")
    print(f"b s h (n-1)/n (2 + 2/m)/n elements of 8 bytes: {predicted:,.0f}")
    print("\nmore ranks, same sequence: the bytes of a rank fall nearly as 1/n")
    for n in (2, 4, 8, 16):
        share = TOKENS * hidden * (n - 1) / n * (2 + 2 / ratio) / n * 8
        print(f"  n = {n:<3} {share:>9,.0f}  {'#' * round(share / 5000)}")
