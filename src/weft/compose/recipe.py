"""From a recipe to a plan: the one place where configuration meets the score."""

from dataclasses import replace
from pathlib import Path

from weft.compose.plan import Arithmetic, Balance, Crossings, Plan, Update, Yarn
from weft.compose.stage import layer_counts
from weft.config.model import ModelConfig
from weft.config.run import RunConfig
from weft.errors import ConfigError
from weft.graph.fused import FUSED
from weft.model.families import FAMILIES, Shape
from weft.parallel.layout import Attention, Dispatch, FeedForward, Layout
from weft.parallel.sync import Sync, Wire


def plan(config: RunConfig, rank: int, *, replay: bool = False) -> Plan:
    """The plan of one rank of a recipe."""
    made = Plan(
        shape=shape(config.model),
        arithmetic=arithmetic(config.model),
        layout=layout(config),
        rank=rank,
        sequence=config.data.sequence,
        micro_batch=config.train.micro_batch,
        micro_batches=config.train.global_batch // config.train.micro_batch,
        precision=config.train.precision,
        order=config.overlap.order,
        update=Update(
            beta1=config.optim.beta1,
            beta2=config.optim.beta2,
            eps=config.optim.eps,
            clip_norm=config.optim.clip_norm,
        ),
        replay=replay,
        remat=config.overlap.remat,
        memory=config.overlap.memory,
        crossings=Crossings(
            dispatch=config.compression.dispatch,
            combine=config.compression.combine,
            dispatch_grad=config.compression.dispatch_grad,
            combine_grad=config.compression.combine_grad,
            scales=config.compression.scales,
        ),
        sync=Sync(
            gradients=Wire(config.compression.gradients),
            zero=config.parallel.zero,
            bucket=config.parallel.bucket_elements,
        ),
        across=config.overlap.across,
        merge=config.overlap.merge,
        saved=_saved(config.overlap.schedule),
        fused=tuple(FUSED) if config.kernels.fuse == "all" else (),
        split=config.overlap.split,
        chunks=config.overlap.chunks,
        row_bound=config.parallel.row_bound,
    )
    return _cut(made)


def _cut(plan: Plan) -> Plan:
    """The plan with its layers cut into stages, once for all who ask."""
    if plan.layout.pp == 1:
        return plan
    return replace(plan, layout=replace(plan.layout, layers=layer_counts(plan)))


def _saved(path: str) -> str:
    """The text of a saved schedule, empty where none is asked for.

    Raises:
        ConfigError: the file cannot be read.
    """
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'overlap.schedule = "{path}": cannot be read ({error}); '
            "weft show schedule RECIPE --actions writes one"
        ) from None


def layout(config: RunConfig) -> Layout:
    """The layout a recipe asks for; it must say how tokens travel (`planner.dispatch` does)."""
    parallel = config.parallel
    assert parallel.dispatch != "auto", "parallel.dispatch is to be settled before it is composed"
    return Layout(
        pp=parallel.pp,
        dp=parallel.dp,
        sp=parallel.sp,
        ep=parallel.ep,
        dispatch=Dispatch(parallel.dispatch),
        attention=Attention(parallel.attention),
        ffn=FeedForward(parallel.ffn),
        node=parallel.node,
        pipeline=parallel.pipeline,
        chunks=parallel.chunks,
        layers=parallel.layers,
    )


def shape(model: ModelConfig) -> Shape:
    """The numbers of a model that programs are made of."""
    return Shape(
        vocab=model.vocab,
        hidden=model.hidden,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        ffn_hidden=model.ffn_hidden,
        experts=model.experts,
        top_k=model.top_k,
        shared_experts=model.shared_experts,
        dense_layers=model.dense_layers,
        dense_ffn_hidden=model.dense_ffn_hidden,
        qk_norm=model.qk_norm,
        tied=model.tied,
        init_std=model.init_std,
        family=FAMILIES[model.family],
        attention_bias=model.attention_bias,
        shared_ffn_hidden=model.shared_ffn_hidden,
        dense_at=model.dense_at,
        rotary_dim=model.rotary_dim,
        groups=model.groups,
        top_groups=model.top_groups,
        window=model.window,
        windowed=model.windowed,
    )


def arithmetic(model: ModelConfig) -> Arithmetic:
    """The constants of a model's operators."""
    return Arithmetic(
        norm_eps=model.norm_eps,
        rope_theta=model.rope_theta,
        score=model.score,
        renormalise=model.renormalise,
        scaling=model.scaling,
        aux_coef=model.aux_coef,
        z_coef=model.z_coef,
        router_jitter=model.router_jitter,
        swiglu_alpha=model.swiglu_alpha,
        swiglu_limit=model.swiglu_limit,
        yarn=Yarn(**model.yarn.model_dump()) if model.yarn else None,
        balance=Balance(
            device_groups=model.device_groups,
            device_coef=model.device_coef,
            sequence_coef=model.sequence_coef,
            global_coef=model.global_coef,
            bias_rate=model.bias_rate,
            capacity=model.capacity,
        ),
    )
