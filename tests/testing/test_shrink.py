"""A shrunk recipe keeps what layouts depend on and says what it cut."""

from weft.config.model import ModelConfig
from weft.config.run import RunConfig
from weft.testing.shrink import EXPERT_BUDGET, NARROWEST, shrink

KEPT = ("family", "heads", "kv_heads", "experts", "top_k", "shared_experts", "score", "aux_coef")


def with_model(config: RunConfig, **changes: object) -> RunConfig:
    model = ModelConfig.model_validate({**config.model.model_dump(), **changes})
    return config.model_copy(update={"model": model})


def test_the_declarations_of_a_model_are_kept(config: RunConfig) -> None:
    small = shrink(config, quick=False).config
    assert all(getattr(small.model, name) == getattr(config.model, name) for name in KEPT)
    assert small.model.layers == config.model.layers
    assert small.optim == config.optim
    assert small.parallel.ranks == 1


def test_a_shrunk_recipe_is_a_legal_one(config: RunConfig) -> None:
    for quick in (False, True):
        small = shrink(config, quick=quick).config
        assert RunConfig.model_validate(small.model_dump()) == small


def test_every_cut_is_told_with_both_values(config: RunConfig) -> None:
    small = shrink(config, quick=False)
    assert "model.hidden 96 -> 64" in small.changes
    assert "data.sequence 64 -> 32" in small.changes
    assert not any(change.startswith("model.layers") for change in small.changes)


def test_a_recipe_that_is_small_already_keeps_its_widths(config: RunConfig) -> None:
    tiny = with_model(config, hidden=32, head_dim=8, ffn_hidden=16, vocab=257)
    assert not any(change.startswith("model.") for change in shrink(tiny, quick=False).changes)


def test_many_experts_become_narrow_and_stay_many(config: RunConfig) -> None:
    model = shrink(with_model(config, experts=256, layers=60), quick=False).config.model
    elements = 3 * model.layers * model.experts * model.hidden * model.ffn_hidden
    assert model.experts == 256
    assert elements <= EXPERT_BUDGET or model.hidden == NARROWEST == model.ffn_hidden


def test_dense_layers_between_others_stay_where_they_are(config: RunConfig) -> None:
    wide = with_model(config, layers=30, dense_at=(2, 9), dense_ffn_hidden=500)
    model = shrink(wide, quick=True).config.model
    assert (model.layers, model.dense_at, model.dense_ffn_hidden) == (3, (2,), 96)


def test_a_dense_layer_leads_even_when_layers_are_cut(config: RunConfig) -> None:
    wide = with_model(config, layers=30, dense_layers=1, dense_ffn_hidden=500)
    model = shrink(wide, quick=True).config.model
    assert (model.layers, model.dense_layers, model.dense_ffn_hidden) == (3, 1, 96)
