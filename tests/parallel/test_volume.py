"""The paper's table, and the trap in it."""

from fractions import Fraction
from pathlib import Path

import pytest

from weft.parallel.layout import Attention, Dispatch, FeedForward, Layout
from weft.parallel.volume import attention_volume, experts_volume

TOKENS, HIDDEN, N = 64, 32, 8  # 32 heads, 4 query heads a key/value head, 3 choices: paper.md 1.2
TENSOR = Fraction(2 * TOKENS * HIDDEN * (N - 1), N)


def attention(kind: Attention, kv_heads: int = 8):
    layout = Layout(sp=N, attention=kind)
    return attention_volume(
        layout, tokens=TOKENS, hidden=HIDDEN, heads=32, kv_heads=kv_heads, head_dim=1
    )


def experts(top_k: int = 3, **fields):
    return experts_volume(Layout(sp=N, **fields), tokens=TOKENS, hidden=HIDDEN, top_k=top_k)


@pytest.mark.parametrize(
    ("kind", "printed", "derived"),
    [
        (Attention.TP, 1, 1),
        (Attention.SP, Fraction(5, 16), Fraction(5, 32)),
        (Attention.CP, Fraction(1, 2), Fraction(1, 4)),
    ],
)
def test_attention_relative_to_tensor_parallelism(kind, printed, derived):
    volume = attention(kind)
    assert (volume.printed / TENSOR, volume.derived / TENSOR) == (printed, derived)


def test_only_sequence_and_context_parallelism_are_printed_twice():
    ratios = {kind: attention(kind).printed / attention(kind).derived for kind in Attention}
    assert ratios == {Attention.TP: 1, Attention.SP: 2, Attention.CP: 2}


def test_shared_key_value_heads_travel_to_every_rank_that_shares_them():
    assert attention(Attention.SP, 4).derived == attention(Attention.SP, 8).derived


def test_experts_relative_to_tensor_parallelism():
    assert experts(ffn=FeedForward.TP).derived == TENSOR
    assert experts(ep=N).derived / TENSOR == Fraction(3, 8)
    assert experts(ep=N, dispatch=Dispatch.ALL_GATHER).derived == TENSOR


def test_visits_are_rows_until_a_token_reaches_every_rank():
    rows, visits = (
        [experts(k, ep=N, dispatch=way).derived / TENSOR for k in (3, 8, 12)]
        for way in (Dispatch.ALL_TO_ALL, Dispatch.DEDUPLICATED)
    )
    assert rows == [Fraction(3, 8), 1, Fraction(3, 2)]
    assert visits == [Fraction(3, 8), 1, 1]


def test_a_group_folded_over_data_parallel_ranks_has_their_tokens():
    wide = experts_volume(Layout(sp=2, dp=4, ep=8), tokens=TOKENS, hidden=HIDDEN, top_k=3)
    assert wide.derived == 4 * experts(ep=N).derived


def test_the_table_of_the_explanation_has_these_figures():
    page = (Path(__file__).parents[2] / "docs/explanation/volume.md").read_text()
    table = (row for row in page.splitlines() if row.startswith(("| att", "| feed", "| exp")))
    rows = [row.split("|") for row in table]
    last = {cells[1].strip(): cells[4].strip() for cells in rows}
    share = {kind: attention(kind) for kind in Attention}
    assert last == {
        "attention, tensor": f"{float(share[Attention.TP].derived / TENSOR):g}",
        "attention, sequence": _twice(share[Attention.SP]),
        "attention, context": _twice(share[Attention.CP]),
        "feed-forward, tensor": f"{float(experts(ffn=FeedForward.TP).derived / TENSOR):g}",
        "experts, rows by all-to-all": f"{float(experts(ep=N).derived / TENSOR):g}",
        "experts, all-gather and back": _dispatched(Dispatch.ALL_GATHER),
        "experts, each token once a rank": _dispatched(Dispatch.DEDUPLICATED),
    }


def _twice(volume) -> str:
    printed, derived = (float(x / TENSOR) for x in (volume.printed, volume.derived))
    return f"printed {printed:g}, derived {derived:g}"


def _dispatched(way: Dispatch) -> str:
    return f"{float(experts(ep=N, dispatch=way).derived / TENSOR):g}"
