from dataclasses import replace
from math import prod

import pytest
import torch

from weft.compose.step import training_step
from weft.parallel.layout import Layout
from weft.parallel.sync import Sync
from weft.parallel.zero import ALIGNMENT, gradient_elements
from weft.runtime.state import (
    KINDS,
    State,
    allocate,
    copy_to_master,
    fill,
    initialise,
    precision,
    with_own_statistics,
)
from weft.testing import models

CPU = torch.device("cpu")
WORLD = Layout(dp=2, sp=2, ep=2)


def state(layout: Layout | None = None, rank: int = 0, *, word: str = "float64") -> State:
    plan = models.plan(models.deepseek_like(), layout, rank)
    return allocate(training_step(replace(plan, precision=word)), device=CPU)


def logical(s: State) -> dict[str, torch.Tensor]:
    found = {}
    for parameter in s.step.parameters:
        flat = s.statics[f"param:{parameter.name}"].view(-1)
        found |= {p.name: flat[p.start : p.stop].view(p.shape) for p in parameter.parts}
    return found


@pytest.mark.parametrize("zero", [1, 2])
def test_gradients_take_the_bytes_that_the_formula_says(zero):
    model = models.mixtral_like().with_shape(layers=4)
    plan = replace(models.plan(model, WORLD, precision="bfloat16"), sync=Sync(zero=zero))
    made = allocate(training_step(plan), device=CPU)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for key, tensor in made.statics.items()
        if key.startswith(("grad:", "gradients:", "shard:"))
    }
    assert sum(storages.values()) == 4 * gradient_elements(made.step.buckets, zero=zero)


@pytest.mark.parametrize("word", ["float32", "bfloat16", "float64"])
def test_sums_are_carried_in_at_least_float32(word):
    found = precision(word)
    assert found.act == getattr(torch, word)
    assert found.acc == torch.promote_types(found.act, torch.float32)


def test_parameters_and_gradients_are_aligned_views_of_their_bucket():
    s = state(WORLD)
    for bucket in s.step.buckets:
        for kind, whole in (("param", "bucket"), ("grad", "gradients")):
            start = s.statics[f"{whole}:{bucket.name}"].data_ptr()
            for slot in bucket.slots:
                view = s.statics[f"{kind}:{slot.parameter.name}"]
                assert view.shape == slot.parameter.shape
                assert view.data_ptr() - start == slot.start * view.element_size()
                assert slot.start % ALIGNMENT == 0


@pytest.mark.parametrize(
    ("word", "shared"), [("float64", True), ("float32", True), ("bfloat16", False)]
)
def test_master_weights_are_a_copy_only_where_the_dtype_is_narrower(word, shared):
    s = state(WORLD, rank=1, word=word)
    for bucket in s.step.buckets:
        master, flat = s.statics[f"master:{bucket.name}"], s.statics[f"bucket:{bucket.name}"]
        inside = flat.data_ptr() <= master.data_ptr() < flat.data_ptr() + flat.nbytes
        assert inside == shared
        assert master.dtype == precision(word).acc


def test_initial_values_depend_on_no_layout():
    one = state()
    initialise(one, seed=3)
    expected = logical(one)
    seen = set()
    for rank in range(WORLD.world):
        s = state(WORLD, rank)
        initialise(s, seed=3)
        for name, values in logical(s).items():
            assert torch.equal(values, expected[name]), name
            seen.add(name)
    assert seen == expected.keys()


def test_initial_values_depend_on_seed_and_name():
    values = []
    for seed in (0, 1):
        s = state()
        initialise(s, seed=seed)
        values.append(logical(s))
    experts = [values[0][f"layers.1.experts.{e}.gate"] for e in (0, 1)]
    assert not torch.equal(*experts)
    assert not torch.equal(values[0]["head"], values[1]["head"])


def test_initial_values_have_their_deviation():
    s = state()
    initialise(s, seed=0)
    found = logical(s)
    assert float(found["head"].std()) == pytest.approx(0.2, rel=0.1)
    assert float(found["layers.1.experts.0.down"].std()) == pytest.approx(0.2 / 6**0.5, rel=0.1)
    assert bool((found["norm"] == 1).all())


@pytest.mark.parametrize("word", ["float64", "bfloat16"])
def test_masters_of_all_ranks_are_the_parameters(word):
    whole = state(word=word)
    initialise(whole, seed=0)
    gathered = {n: torch.zeros(v.numel()) for n, v in logical(whole).items()}
    for rank in range(WORLD.world):
        s = state(WORLD, rank, word=word)
        initialise(s, seed=0)
        for kind, piece, values in s.shards():
            if kind == "master":
                gathered[piece.name][piece.start : piece.stop] = values
    for name, values in logical(whole).items():
        assert torch.equal(gathered[name], values.flatten().float()), name


def test_shards_of_all_ranks_cover_every_kind_of_state_once():
    counts: dict[tuple[str, str], int] = {}
    for rank in range(WORLD.world):
        for kind, piece, values in state(WORLD, rank).shards():
            assert values.numel() == piece.stop - piece.start
            key = (kind, piece.name)
            counts[key] = counts.get(key, 0) + values.numel()
    expected = {
        (kind, part.name): prod(part.shape)
        for parameter in state().step.parameters
        for part in parameter.parts
        for kind in KINDS
    }
    assert counts == expected


def test_begin_clears_what_a_step_adds_to_and_nothing_else():
    s = state()
    initialise(s, seed=0)
    for key, tensor in s.statics.items():
        if key.startswith(("grad:", "stats:", "mean:", "square:", "state:")):
            tensor.fill_(1)
    weights = {n: v.clone() for n, v in logical(s).items()}
    s.begin()
    assert s.statics["stats:overflow"].tolist() == [1]  # until it is forgiven
    s.forgive()
    for key, tensor in s.statics.items():
        if key.endswith((".up", ".down")) and key.startswith("grad:"):
            assert bool((tensor == 1).all()), f"{key} is written before anything adds to it"
        elif key.startswith(("grad:", "stats:")):
            assert not tensor.any(), key
        if key.startswith(("mean:", "square:", "state:")):
            assert bool((tensor == 1).all()), key
    assert all(torch.equal(v, weights[n]) for n, v in logical(s).items())


def test_fill_reads_every_logical_parameter_and_sets_the_masters():
    s = state(WORLD, rank=3, word="bfloat16")
    names = sorted(logical(s))
    fill(s, lambda part: torch.full(part.shape, float(names.index(part.name))))
    for name, values in logical(s).items():
        assert bool((values == names.index(name)).all()), name
    for kind, piece, values in s.shards():
        if kind == "master":
            assert bool((values == names.index(piece.name)).all())


def test_copying_to_the_master_takes_this_ranks_shard():
    s = state(WORLD, rank=2, word="bfloat16")
    bucket = s.step.buckets[0]
    flat = s.statics[f"bucket:{bucket.name}"]
    flat.copy_(torch.arange(bucket.numel) // bucket.shard)
    copy_to_master(s)
    assert bool((s.statics[f"master:{bucket.name}"] == 2).all())


def test_own_statistics_disturb_nobody_elses():
    s = state()
    own = with_own_statistics(s)
    own.statics["stats:loss"].fill_(5)
    own.statics["stats:tally.layers.1"].fill_(5)
    assert not s.stats.any()
    assert own.statics["param:embed"] is s.statics["param:embed"]


def test_named_sums_are_views_of_the_statistics():
    s = state()
    for i, name in enumerate(("loss", "losses", "norm2")):
        s.statics[f"stats:{name}"].fill_(i + 1)
    assert s.stats[:4].tolist() == [1, 2, 2, 3]
