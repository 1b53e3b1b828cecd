"""The counts agree with what others published, and with the parameters that are really built."""

import tomllib
from dataclasses import replace
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest

from weft.compose.recipe import shape as shape_of_model
from weft.config.presets import PRESETS
from weft.model import count
from weft.model.families import Shape
from weft.model.params import parameters

PUBLISHED = tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))

TINY = [name for name in PRESETS if name.startswith("tiny")]


def shape_of(name: str) -> Shape:
    return shape_of_model(PRESETS[name]())


def states(claim: str, number: int) -> bool:
    """Whether a number in billions, rounded or cut to the digits of a claim, is that claim."""
    digits, exact = Decimal(claim), Decimal(number) / 10**9
    return digits in (exact.quantize(digits, ROUND_DOWN), exact.quantize(digits, ROUND_HALF_EVEN))


@pytest.mark.parametrize("name", PUBLISHED["releases"])
def test_a_release_has_the_total_and_active_parameters_its_authors_state(name: str) -> None:
    claim, shape = PUBLISHED["releases"][name], shape_of(name)
    assert states(claim["total"], count.total(shape).all)
    assert states(claim["active"], count.active(shape).all)


@pytest.mark.parametrize("name", PUBLISHED["unembedded"])
def test_a_release_counted_without_its_embedding_has_the_size_its_authors_state(name: str) -> None:
    claim, shape = PUBLISHED["unembedded"][name], shape_of(name)
    assert states(claim["total"], count.total(shape).all)
    assert states(claim["active"], count.multiplied(shape))


@pytest.mark.parametrize("name", PUBLISHED["paper"])
def test_a_model_of_the_paper_has_the_size_it_is_known_by(name: str) -> None:
    claim, shape = PUBLISHED["paper"][name], shape_of(name)
    assert states(claim["total"], count.total(shape).all)
    if "active" in claim:
        assert states(claim["active"], count.multiplied(shape))


@pytest.mark.parametrize("name", PUBLISHED["worked"])
def test_counts_by_part_agree_with_the_ones_worked_by_hand(name: str) -> None:
    claim, shape = PUBLISHED["worked"][name], shape_of(name)
    assert states(claim["total"], count.total(shape).all)
    assert states(claim["multiplied"], count.multiplied(shape))
    assert states(claim["attention"], count.total(shape).attention)
    if "giga_flops_per_token" in claim:
        flops = count.token_flops(shape, sequence=8192)
        assert states(claim["giga_flops_per_token"], flops)


@pytest.mark.parametrize("row", PUBLISHED["mfu"], ids=lambda row: row["system"])
def test_the_flop_count_gives_the_utilisation_that_the_paper_draws(row: dict[str, float]) -> None:
    tokens, ranks, peak = 64 * 8192, 32, 989e12  # H800, BF16 dense: paper, table 4
    flops = count.token_flops(shape_of("mixtral-8x7b"), sequence=8192)
    mfu = 100 * tokens * flops / (row["step_s"] * ranks * peak)
    read_off = 0.002  # a bar's height is read to about one part in 500
    assert mfu == pytest.approx(row["percent"], rel=read_off)


@pytest.mark.parametrize("name", [*TINY, *PUBLISHED["releases"], *PUBLISHED["unembedded"]])
def test_the_total_is_the_number_of_elements_that_are_built(name: str) -> None:
    shape = shape_of(name)
    assert count.total(shape).all == sum(p.numel for p in parameters(shape))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    "lost",
    [{"layers": 1}, {"top_k": 1}, {"experts": 1}, {"vocab": 2}, {"ffn_hidden": 1}, {"kv_heads": 1}],
    ids=str,
)
def test_a_changed_shape_changes_the_cost_of_a_token(name: str, lost: dict[str, int]) -> None:
    """The control: none of these shapes may pass for another."""
    shape = replace(shape_of(name), dense_layers=0)
    changed = replace(shape, **lost)
    assert count.token_flops(shape, sequence=64) != count.token_flops(changed, sequence=64)


def test_a_tied_head_is_stored_once_and_multiplied_all_the_same() -> None:
    shape = shape_of("tiny-mixtral")
    tied = replace(shape, tied=True)
    table = shape.vocab * shape.hidden
    assert count.total(shape).all - count.total(tied).all == table
    assert count.multiplied(shape) == count.multiplied(tied)


def test_attention_costs_by_its_own_width_where_heads_are_wider_than_the_model() -> None:
    shape = shape_of("tiny-qwen3-moe")
    assert shape.attention_columns != shape.hidden
    by_hand = 6 * shape.layers * shape.attention_columns * 100
    assert count.attention_flops(shape, sequence=100) == by_hand


def test_attention_is_counted_causal() -> None:
    """Summed over a sequence: forward is 4 A for each visible position, backward twice that."""
    shape, sequence = shape_of("tiny-mixtral"), 512
    visible = sum(range(1, sequence + 1))
    exact = shape.layers * 3 * 4 * shape.attention_columns * visible
    diagonal = 1 / sequence  # the formula takes s/2 for (s + 1)/2
    assert sequence * count.attention_flops(shape, sequence=sequence) == pytest.approx(
        exact, rel=diagonal
    )
