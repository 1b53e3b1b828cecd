"""The copies around the all-to-all of sequence parallelism: all heads of a shard of the tokens,
against a share of the heads of all tokens.

Before the all-to-all, block r of `pack_heads` holds what rank r needs of this rank's T tokens:

    [query heads r J .. (r+1) J | its key heads | its value heads]

Where there are more ranks than key/value heads, each such head goes to sp / G neighbouring ranks,
and its gradient is the sum of theirs. After the all-to-all, `split_heads` only names the columns;
`join_heads` puts the heads of all ranks side by side again.
"""

import torch
from torch import Tensor


def pack_heads(q: Tensor, k: Tensor, v: Tensor, *, sp: int, heads: int, kv_heads: int) -> Tensor:
    """Returns the blocks for all ranks, one after another.

    Shapes:
        q [T, H, C], k [T, G, C], v [T, G, C] -> p [sp T, (J + 2K) C]
    """
    assert heads % sp == 0, f"{heads=} do not divide over {sp=}"
    blocks = (_by_rank(q, sp), _by_rank(_replicate(k, sp), sp), _by_rank(_replicate(v, sp), sp))
    return torch.cat(blocks, dim=2).flatten(0, 1).flatten(1)


def pack_heads_dgrad(
    dp: Tensor, *, sp: int, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of queries, keys and values, replicas summed in rank order."""
    q_share, kv_share = heads // sp, max(kv_heads // sp, 1)
    blocks = dp.unflatten(-1, (q_share + 2 * kv_share, -1)).unflatten(0, (sp, -1))
    dq, dk, dv = blocks.split((q_share, kv_share, kv_share), dim=2)
    dk, dv = (_sum_replicas(_by_token(x), kv_heads) for x in (dk, dv))
    return _by_token(dq), dk, dv


def split_heads(p: Tensor, *, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns this rank's queries, keys and values of all tokens, as views.

    Shapes:
        p [N, (J + 2K) C] -> q [N, J, C], k [N, K, C], v [N, K, C]
    """
    q, k, v = p.unflatten(-1, (heads + 2 * kv_heads, -1)).split((heads, kv_heads, kv_heads), dim=1)
    return q, k, v


def split_heads_dgrad(dq: Tensor, dk: Tensor, dv: Tensor, *, heads: int, kv_heads: int) -> Tensor:
    """Returns the gradient of the received block."""
    return torch.cat((dq, dk, dv), dim=1).flatten(1)


def join_heads(p: Tensor, *, sp: int, heads: int) -> Tensor:
    """Returns all heads of this rank's tokens side by side.

    Shapes:
        p [sp T, J, C] -> a [T, H C]
    """
    return p.unflatten(0, (sp, -1)).transpose(0, 1).flatten(1)


def join_heads_dgrad(da: Tensor, *, sp: int, heads: int) -> Tensor:
    """Returns the gradient of the received heads, block r for the heads of rank r."""
    return _by_rank(da.unflatten(-1, (sp * heads, -1)), sp).flatten(0, 1)


def join_kv(k: Tensor, v: Tensor) -> Tensor:
    """Returns keys and values as one tensor, to be gathered by one collective.

    Shapes:
        k [T, G, C], v [T, G, C] -> p [T, 2G, C]
    """
    return torch.cat((k, v), dim=1)


def join_kv_dgrad(dp: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of keys and values, as views."""
    dk, dv = dp.chunk(2, dim=1)
    return dk, dv


def order_kv(p: Tensor, *, sp: int, sequences: int) -> tuple[Tensor, Tensor]:
    """Returns the keys and values that ranks hold in zigzag in the order of the stream.

    Rank r holds chunks r and 2 sp - 1 - r of each sequence.

    Shapes:
        p [N, 2G, C], rank by rank -> k [N, G, C], v [N, G, C]
    """
    early, late = p.unflatten(0, (sp, sequences, 2, -1)).unbind(2)
    chunks = torch.cat((early, late.flip(0)))  # [2 sp, B, chunk, 2G, C]
    k, v = chunks.transpose(0, 1).flatten(0, 2).chunk(2, dim=1)
    return k, v


def order_kv_dgrad(dk: Tensor, dv: Tensor, *, sp: int, sequences: int) -> Tensor:
    """Returns the gradient of what was gathered, rank by rank."""
    chunks = torch.cat((dk, dv), dim=1).unflatten(0, (sequences, 2 * sp, -1)).transpose(0, 1)
    early, late = chunks.chunk(2)
    return torch.stack((early, late.flip(0)), dim=2).flatten(0, 3)


def _by_rank(x: Tensor, sp: int) -> Tensor:
    return x.unflatten(1, (sp, -1)).transpose(0, 1)


def _by_token(blocks: Tensor) -> Tensor:
    return blocks.transpose(0, 1).flatten(1, 2)


def _replicate(x: Tensor, sp: int) -> Tensor:
    num_heads = x.shape[1]
    if sp <= num_heads:
        assert num_heads % sp == 0, f"{num_heads=} key/value heads do not divide over {sp=}"
        return x
    assert sp % num_heads == 0, f"{sp=} is no multiple of {num_heads=} key/value heads"
    return x.repeat_interleave(sp // num_heads, dim=1)


def _sum_replicas(dx: Tensor, kv_heads: int) -> Tensor:
    if dx.shape[1] == kv_heads:
        return dx
    return dx.unflatten(1, (kv_heads, -1)).sum(2)
