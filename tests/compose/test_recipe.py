from dataclasses import asdict, fields

import pytest

from weft.compose import recipe
from weft.compose.plan import Arithmetic, Balance
from weft.config.load import build
from weft.config.run import RunConfig
from weft.model.families import FAMILIES, Shape
from weft.parallel.layout import Dispatch, Layout

TREE = {
    "name": "test",
    "model": {
        "family": "deepseek_moe", "vocab": 61, "hidden": 28, "layers": 3, "heads": 4, "kv_heads": 2,
        "head_dim": 6, "ffn_hidden": 20, "experts": 8, "top_k": 2, "shared_experts": 2,
        "dense_layers": 0, "dense_ffn_hidden": 44, "qk_norm": True, "score": "sigmoid",
        "renormalise": False, "scaling": 1.5, "aux_coef": 0.25, "z_coef": 0.5, "rope_theta": 500.0,
        "norm_eps": 1e-6, "tied": True, "init_std": 0.125,
        "attention_bias": True, "shared_ffn_hidden": 36, "dense_at": (2,), "rotary_dim": 4,
        "groups": 4, "top_groups": 2, "window": 0, "windowed": (), "swiglu_alpha": 1.5,
        "router_jitter": 0.25,
        "swiglu_limit": 6.0,
        "yarn": {
            "factor": 2.0, "original": 8, "beta_fast": 30.0, "beta_slow": 2.0, "truncate": False,
        },
        "device_groups": 4, "device_coef": 0.75, "sequence_coef": 0.625, "global_coef": 0.375,
        "router_bias": True, "bias_rate": 0.001, "capacity": 1.25,
    },
    "parallel": {"dp": 2, "sp": 2, "ep": 4, "dispatch": "all_gather"},
    "overlap": {"order": "serial"},
    "data": {"source": "stdlib", "sequence": 16},
    "optim": {
        "lr": 1e-3, "warmup_steps": 2, "beta1": 0.8, "beta2": 0.7, "eps": 1e-7, "clip_norm": 0.5,
    },
    "train": {
        "steps": 4, "global_batch": 8, "micro_batch": 2, "precision": "float64",
        "eval_every": 2, "checkpoint_every": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return build(TREE)


def test_a_shape_takes_every_number_of_the_model(config):
    found = {f.name: getattr(recipe.shape(config.model), f.name) for f in fields(Shape)}
    assert found.pop("family") == FAMILIES["deepseek_moe"]
    assert found == {name: TREE["model"][name] for name in found}


def test_arithmetic_takes_every_constant_of_the_model(config):
    assert asdict(recipe.arithmetic(config.model)) == {
        f.name: TREE["model"][f.name] for f in fields(Arithmetic) if f.name != "balance"
    } | {"balance": {f.name: TREE["model"][f.name] for f in fields(Balance)}}


def test_a_plan_takes_the_layout_and_the_unit_of_work(config):
    plan = recipe.plan(config, rank=3)
    assert plan.layout == Layout(dp=2, sp=2, ep=4, dispatch=Dispatch.ALL_GATHER)
    assert (plan.rank, plan.sequence, plan.micro_batch, plan.micro_batches) == (3, 16, 2, 4)
    assert (plan.precision, plan.order, plan.replay) == ("float64", "serial", False)


def test_a_plan_takes_the_constants_of_the_optimizer(config):
    assert asdict(recipe.plan(config, rank=0).update) == {
        name: TREE["optim"][name] for name in ("beta1", "beta2", "eps", "clip_norm")
    }


def test_routing_is_replayed_on_request(config):
    assert recipe.plan(config, rank=0, replay=True).replay
