"""Rotary positions: relative, and the convention of published checkpoints."""

import torch

from weft.ops.rope import rope_table, rotate

HEADS = {"heads": 2, "kv_heads": 1}


def test_scores_depend_on_the_distance_alone():
    qkv = torch.randn(1, 32, dtype=torch.float64).repeat(6, 1)
    positions = torch.tensor([0, 3, 10, 13, 100, 103])
    table = rope_table(positions, theta=1e4, head_dim=8, dtype="float64")
    q, k, _ = rotate(qkv, *table, **HEADS)
    scores = [(q[i + 1, 0] @ k[i, 0]).item() for i in (0, 2, 4)]
    assert max(scores) - min(scores) < 1e-12


def test_rotation_keeps_lengths_and_leaves_values():
    qkv = torch.randn(5, 32, dtype=torch.float64)
    table = rope_table(torch.arange(5), theta=1e4, head_dim=8, dtype="float64")
    q, k, v = rotate(qkv, *table, **HEADS)
    before = qkv.view(5, 4, 8)
    torch.testing.assert_close(q.norm(dim=-1), before[:, :2].norm(dim=-1))
    torch.testing.assert_close(k.norm(dim=-1), before[:, 2:3].norm(dim=-1))
    assert torch.equal(v, before[:, 3:])


def test_position_zero_turns_nothing():
    qkv = torch.randn(1, 32)
    table = rope_table(torch.zeros(1, dtype=torch.int64), theta=1e4, head_dim=8, dtype="float32")
    q, k, _ = rotate(qkv, *table, **HEADS)
    assert torch.equal(torch.cat((q, k), 1).flatten(), qkv[0, :24])
