"""What two branches must agree on: accepted when it can be cut, refused with a cut that works."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.config.presets import tiny_mixtral
from weft.config.run import RunConfig
from weft.config.train import TrainConfig
from weft.errors import ConfigError, LayoutError


def tree(**branches: dict[str, Any]) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "test",
        "model": dict(tiny_mixtral()),
        "parallel": {},
        "compression": {},
        "overlap": {},
        "data": {"sequence": 32},
        "optim": {"lr": 1e-3, "warmup_steps": 1},
        "train": {
            "steps": 10,
            "global_batch": 4,
            "micro_batch": 2,
            "eval_every": 5,
            "checkpoint_every": 5,
        },
    }
    return {
        key: {**value, **branches.get(key, {})} if key != "name" else value
        for key, value in base.items()
    }


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        (
            {"parallel": {"sp": 3}},
            r"parallel.sp = 3: must divide model.heads \(4\).*parallel.sp = 2$",
        ),
        (
            {"model": {"heads": 12, "kv_heads": 4}, "parallel": {"sp": 6}},
            r"must divide model.kv_heads \(4\) or be a multiple of it; .*parallel.sp = 4$",
        ),
        (
            {"parallel": {"row_bound": 0.5}},
            r"parallel.row_bound = 0.5: must be 0 or at least 1.*parallel.row_bound = 1.0$",
        ),
        (
            {"parallel": {"zero": 2}, "overlap": {"merge": True}},
            r"parallel.zero = 2: must be 1 with overlap.merge = true.*parallel.zero = 1$",
        ),
        (
            {"parallel": {"sp": 2, "attention": "tp"}, "overlap": {"split": ["qkv", "combine"]}},
            r'qkv needs parallel.attention = "sp", found "tp"; .*split = \["combine"\]$',
        ),
        (
            {"parallel": {"sp": 2, "ffn": "tp"}, "overlap": {"split": ["combine"]}},
            r'combine needs parallel.ffn = "ep", found "tp"; .*split = \[\]$',
        ),
        (
            {
                "parallel": {"sp": 2, "ep": 2, "dispatch": "deduplicated"},
                "overlap": {"split": ["out", "dispatch"]},
            },
            r'dispatch needs .* found "deduplicated"; .*split = \["out"\]$',
        ),
        (
            {"compression": {"dispatch_grad": "fp8"}, "overlap": {"split": ["dispatch_grad"]}},
            r"dispatch_grad needs compression.dispatch_grad = \"none\": .*split = \[\]$",
        ),
        (
            {"parallel": {"sp": 2}, "overlap": {"split": ["out"], "chunks": 3}},
            r"chunks = 3: must divide .*data.sequence / parallel.sp \(32\); .*chunks = 2$",
        ),
        (
            {
                "data": {"sequence": 31},
                "train": {"micro_batch": 1},
                "overlap": {"split": ["qkv", "combine"]},
            },
            r"split = .*: overlap.chunks must divide .* \(31\).*split = \[\]$",
        ),
        (
            {
                "model": {"capacity": 1.5},
                "parallel": {"sp": 2, "ep": 2, "dispatch": "deduplicated"},
            },
            r"model.capacity = 1.5: must be 0 where whole tokens travel.*model.capacity = 0.0$",
        ),
        (
            {"model": {"capacity": 1.5}, "parallel": {"sp": 2, "attention": "cp"}},
            r"model.capacity = 1.5: must be 0 with parallel.attention.*model.capacity = 0.0$",
        ),
        (
            {"data": {"sequence": 31}, "parallel": {"sp": 4}},
            r"must divide train.micro_batch \* data.sequence \(62 tokens\).*parallel.sp = 2$",
        ),
        (
            {"parallel": {"sp": 4, "ep": 3}},
            r"parallel.ep = 3: must divide model.experts \(8\).*parallel.ep = 2$",
        ),
        (
            {"parallel": {"sp": 2, "ep": 8}},
            r"must divide parallel.dp \* parallel.sp \(2 ranks\).*parallel.ep = 2$",
        ),
        (
            {"parallel": {"sp": 4, "dp": 2, "node": 3}, "train": {"global_batch": 8}},
            r"parallel.node = 3: must divide .*\(8 ranks\).*parallel.node = 2$",
        ),
        (
            {"parallel": {"sp": 3, "dp": 1, "ep": 4}},  # 2 is as near, but only 4 leaves ep legal
            r"parallel.sp = 4$",
        ),
        (
            {
                "parallel": {"sp": 2, "dp": 3, "attention": "tp", "node": 3},
                "train": {"global_batch": 6},
            },
            r"parallel.node = 3: .* likewise parallel.sp \(2\); .*parallel.node = 2$",
        ),
        (
            {"data": {"sequence": 36}, "parallel": {"sp": 4, "attention": "cp"}},
            r"must divide half of data.sequence \(36\).*parallel.sp = 3$",
        ),
        (
            {"model": {"attention_bias": True}, "parallel": {"sp": 4, "attention": "tp"}},
            r"must be at most model.kv_heads \(2\).*parallel.sp = 2$",
        ),
        (
            {
                "model": {"family": "olmoe", "qk_norm": True},
                "parallel": {"sp": 2, "attention": "tp"},
            },
            r"a norm over all heads has no slice.*parallel.sp = 1$",
        ),
        (
            {"model": {"ffn_hidden": 18}, "parallel": {"sp": 4, "ffn": "tp"}},
            r"must divide model.ffn_hidden \(18\).*parallel.sp = 2$",
        ),
        (
            {"parallel": {"sp": 2, "ep": 2, "ffn": "tp"}},
            r'parallel.ep = 2: must be 1 with parallel.ffn = "tp".*parallel.ep = 1$',
        ),
    ],
)
def test_a_layout_that_cannot_exist_is_refused_with_the_nearest_that_can(
    branches: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        RunConfig.model_validate(tree(**branches))


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        (
            {"train": {"global_batch": 7}},
            r"must be a multiple of train.micro_batch \* parallel.dp \(2 \* 1\).*global_batch = 6$",
        ),
        ({"train": {"global_batch": 1}}, r"train.global_batch = 2$"),
        (
            {"train": {"precision": "float64"}, "compression": {"gradients": "bf16"}},
            r'is there to compare; nearest legal value: compression.gradients = "fp32"$',
        ),
        (
            {"train": {"precision": "float64"}, "compression": {"combine_grad": "fp8"}},
            r'is there to compare; nearest legal value: compression.combine_grad = "none"$',
        ),
        (
            {
                "parallel": {"sp": 2, "ep": 2, "dispatch": "deduplicated"},
                "compression": {"dispatch": "fp8"},
            },
            r'found "deduplicated"; nearest legal value: compression.dispatch = "none"$',
        ),
        (
            {"parallel": {"sp": 2, "ffn": "tp"}, "compression": {"combine": "fp8"}},
            r'found "tp"; nearest legal value: compression.combine = "none"$',
        ),
        ({"optim": {"warmup_steps": 11}}, r"at most train.steps \(10\).*optim.warmup_steps = 10$"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    branches: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.model_validate(tree(**branches))


def can_be_cut(
    *, heads: int, kv_heads: int, experts: int, tokens: int, dp: int, sp: int, ep: int
) -> bool:
    """Whether ranks can be given equal, whole shares: said with lists instead of remainders."""
    query = [list(range(heads))[rank::sp] for rank in range(sp)]
    held = [
        {rank * kv_heads // sp + i for i in range(max(kv_heads // sp, 1))} for rank in range(sp)
    ]
    rows = [range(tokens)[rank::sp] for rank in range(sp)]
    routed = [range(experts)[rank::ep] for rank in range(ep)]
    blocks = [range(dp * sp)[first : first + ep] for first in range(0, dp * sp, ep)]
    users = [sum(head in share for share in held) for head in range(kv_heads)]
    return (
        all(len({len(share) for share in cut}) == 1 for cut in (query, rows, routed, blocks))
        and all(rank_share for rank_share in (*query, *routed))
        and len(blocks[0]) == ep
        and len(set(users)) == 1
        and users[0] > 0
    )


layouts = st.fixed_dictionaries(
    {
        "kv_heads": st.sampled_from([1, 2, 3, 4, 6]),
        "groups": st.sampled_from([1, 2, 3, 4]),
        "experts": st.sampled_from([4, 6, 8, 12]),
        "sequence": st.sampled_from([6, 12, 16]),
        "dp": st.integers(1, 4),
        "sp": st.integers(1, 9),
        "ep": st.integers(1, 9),
    }
)


@settings(max_examples=200, deadline=None)
@given(layouts)
def test_a_layout_is_accepted_exactly_when_every_rank_gets_an_equal_share(
    pick: dict[str, int],
) -> None:
    heads = pick["kv_heads"] * pick["groups"]
    whole = can_be_cut(
        heads=heads,
        kv_heads=pick["kv_heads"],
        experts=pick["experts"],
        tokens=2 * pick["sequence"],
        dp=pick["dp"],
        sp=pick["sp"],
        ep=pick["ep"],
    )
    recipe = tree(
        model={"heads": heads, "kv_heads": pick["kv_heads"], "experts": pick["experts"]},
        data={"sequence": pick["sequence"]},
        parallel={axis: pick[axis] for axis in ("dp", "sp", "ep")},
        train={"global_batch": 2 * pick["dp"]},
    )
    if whole:
        assert RunConfig.model_validate(recipe).parallel.ranks == pick["dp"] * pick["sp"]
        return
    with pytest.raises(LayoutError) as caught:
        RunConfig.model_validate(recipe)
    _follow_layout_advice(recipe, str(caught.value))


def _follow_layout_advice(recipe: dict[str, Any], message: str) -> None:
    """Takes the advice of each error in turn; two axes can be wrong, so two steps must do."""
    for _ in range(2):
        key, _, legal = message.rpartition("parallel.")[2].partition(" = ")
        recipe = {**recipe, "parallel": {**recipe["parallel"], key: int(legal)}}
        try:
            RunConfig.model_validate(recipe)
        except LayoutError as error:
            message = str(error)
        else:
            return
    pytest.fail(f"the advice does not lead to a legal layout: {message}")


def test_key_value_heads_may_be_replicated_over_a_wider_group() -> None:
    recipe = tree(model={"heads": 8, "kv_heads": 2}, parallel={"sp": 8, "ep": 8})
    assert RunConfig.model_validate(recipe).parallel.sp == 8


def test_the_run_folder_takes_the_name_of_the_run() -> None:
    assert RunConfig.model_validate(tree()).train.run_dir == "runs/test"
    placed = RunConfig.model_validate(tree(train={"run_dir": "/tmp/<name>/a"}))
    assert placed.train.run_dir == "/tmp/test/a"


def test_the_run_folder_takes_the_name_where_branches_are_built_in_python() -> None:
    recipe = tree()
    built = RunConfig.model_validate({**recipe, "train": TrainConfig(**recipe["train"])})
    assert built == RunConfig.model_validate(recipe)


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a b", "a\n"])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name = "):
        RunConfig.model_validate({**tree(), "name": name})


def test_a_key_in_the_wrong_branch_is_told_its_own() -> None:
    with pytest.raises(ConfigError, match="steps: unknown key; nearest legal key: train.steps"):
        RunConfig.model_validate({**tree(), "steps": 5})


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"pp": 9}, r"parallel.pp = 9: must be at most model.layers \(4\).*parallel.pp = 4$"),
        ({"pp": 2, "chunks": 2}, r"parallel.chunks = 2: needs parallel.pp above 1 and .*'interl"),
        ({"chunks": 2, "pipeline": "interleaved"}, r"needs parallel.pp above 1.*chunks = 1$"),
        (
            {"pp": 2, "chunks": 3, "pipeline": "interleaved"},
            r"must leave a layer of model.layers \(4\).*parallel.chunks = 2$",
        ),
        (
            {"pp": 2, "chunks": 2, "pipeline": "zero_bubble", "dp": 2},
            r"needs micro-batches of a rank \(1\) that parallel.pp \(2\) divides",
        ),
        (
            {"pp": 2, "layers": (3, 2)},
            r"parallel.layers = \[3, 2\]: must hold model.layers \(4\).*layers = \[2, 2\]$",
        ),
        ({"pp": 2, "ep": 2}, r"must divide parallel.dp \* parallel.sp \(1 ranks\)"),
    ],
)
def test_a_pipeline_that_cannot_exist_is_refused_with_one_that_can(
    parallel: dict[str, Any], message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        RunConfig.model_validate(tree(model={"layers": 4}, parallel=parallel))


def test_a_recipe_may_cut_its_layers() -> None:
    parallel = {"pp": 2, "layers": (3, 1)}
    assert RunConfig.model_validate(tree(model={"layers": 4}, parallel=parallel))
