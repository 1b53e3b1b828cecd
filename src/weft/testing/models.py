"""Models small enough to train in a test, one of each family, and random data for them.

Every number is small, and few are equal, so that two dims swapped are an error of shape. Weights
start large (0.2) for gradients far above rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from weft.compose.plan import Arithmetic, Plan, Update, Yarn
from weft.data.batches import IGNORED, MicroBatch
from weft.model import families
from weft.model.families import Shape
from weft.parallel.layout import Layout

SEQUENCE = 16
MICRO_BATCH = 2
MICRO_BATCHES = 4
_IGNORED_SHARE = 0.1  # of targets, so that the divisor is not the number of tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A shape and the constants of its operators."""

    shape: Shape
    arithmetic: Arithmetic

    def with_shape(self, **changes: int | bool) -> "Model":
        """The same model but for some numbers of its shape."""
        return replace(self, shape=replace(self.shape, **changes))


def mixtral_like() -> Model:
    """Softmax router, every layer routed."""
    return Model(shape=_SHAPE, arithmetic=_ARITHMETIC)


def qwen3_like() -> Model:
    """QK norm, and the head is the embedding."""
    return Model(shape=replace(_SHAPE, qk_norm=True, tied=True), arithmetic=_ARITHMETIC)


def deepseek_like() -> Model:
    """A leading dense layer, shared experts, a sigmoid router with scaled weights."""
    shape = replace(_SHAPE, layers=3, shared_experts=2, dense_layers=1, dense_ffn_hidden=44)
    return Model(shape=shape, arithmetic=replace(_ARITHMETIC, score="sigmoid", scaling=1.5))


def qwen2_like() -> Model:
    """Biases on queries, keys and values, a gated shared expert, a dense layer between others."""
    shape = replace(
        _SHAPE, layers=3, shared_experts=1, shared_ffn_hidden=36, attention_bias=True,
        dense_at=(1,), dense_ffn_hidden=44, family=families.FAMILIES["qwen2_moe"],
    )  # fmt: skip
    return Model(shape=shape, arithmetic=replace(_ARITHMETIC, renormalise=False))


def olmoe_like() -> Model:
    """Queries and keys normed over all heads together."""
    shape = replace(_SHAPE, qk_norm=True, family=families.FAMILIES["olmoe"])
    return Model(shape=shape, arithmetic=_ARITHMETIC)


def glm4_like() -> Model:
    """Half the channels rotated, QK norm, biases, a shared expert, experts chosen by groups."""
    shape = replace(
        _SHAPE, layers=3, shared_experts=1, attention_bias=True, qk_norm=True, dense_layers=1,
        dense_ffn_hidden=44, rotary_dim=4, groups=4, top_groups=2,
    )  # fmt: skip
    return Model(shape=shape, arithmetic=replace(_ARITHMETIC, score="sigmoid", scaling=1.5))


def gpt_oss_like() -> Model:
    """Sinks, a window in every second layer, biases everywhere, clamped experts, YaRN."""
    shape = replace(
        _SHAPE, attention_bias=True, window=5, windowed=(0,), family=families.FAMILIES["gpt_oss"]
    )
    yarn = Yarn(factor=8.0, original=64, beta_fast=32.0, beta_slow=1.0, truncate=False)
    rule = replace(_ARITHMETIC, swiglu_alpha=1.702, swiglu_limit=0.5, yarn=yarn)
    return Model(shape=shape, arithmetic=rule)


def phimoe_like() -> Model:
    """Norms that take the mean off, biases of attention and head, two softmaxes for two choices."""
    shape = replace(_SHAPE, attention_bias=True, family=families.FAMILIES["phimoe"])
    return Model(shape=shape, arithmetic=replace(_ARITHMETIC, router_jitter=0.3))


def large_mixtral() -> Model:
    """Two layers as wide as those of Mixtral 8x7B, for schedules: to be priced, not run."""
    return mixtral_like().with_shape(
        vocab=32000, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn_hidden=14336
    )  # the published config.json of mistralai/Mixtral-8x7B-v0.1


_SHAPE = Shape(
    vocab=61,
    hidden=28,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=6,
    ffn_hidden=20,
    experts=8,
    top_k=2,
    shared_experts=0,
    dense_layers=0,
    dense_ffn_hidden=0,
    qk_norm=False,
    tied=False,
    init_std=0.2,
)

_ARITHMETIC = Arithmetic(
    norm_eps=1e-5,
    rope_theta=1e4,
    score="softmax",
    renormalise=True,
    scaling=1.0,
    aux_coef=0.1,
    z_coef=0.1,
)

FAMILIES: Mapping[str, Model] = MappingProxyType(
    {"mixtral": mixtral_like(), "qwen3": qwen3_like(), "deepseek": deepseek_like()}
)


# Checked on fewer layouts than those above: what they add lies inside one rank.
VARIANTS: Mapping[str, Model] = MappingProxyType(
    {
        "qwen2": qwen2_like(),
        "olmoe": olmoe_like(),
        "glm4": glm4_like(),
        "gpt_oss": gpt_oss_like(),
        "phimoe": phimoe_like(),
    }
)


def plan(
    model: Model,
    layout: Layout | None = None,
    rank: int = 0,
    *,
    order: str = "serial",
    precision: str = "float64",
    replay: bool = False,
) -> Plan:
    """One rank's plan of a step over the small batch of this module."""
    return Plan(
        shape=model.shape,
        arithmetic=model.arithmetic,
        layout=layout or Layout(),
        rank=rank,
        sequence=SEQUENCE,
        micro_batch=MICRO_BATCH,
        micro_batches=MICRO_BATCHES,
        precision=precision,
        order=order,
        update=Update(beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0),
        replay=replay,
    )


def batches(model: Model, step: int) -> Sequence[MicroBatch]:
    """The micro-batches of one step, over all ranks."""
    return [micro_batch(model.shape.vocab, seed=(step, m)) for m in range(MICRO_BATCHES)]


def micro_batch(vocab: int, *, seed: tuple[int, ...]) -> MicroBatch:
    """Random tokens in random documents; none crosses a sample, some targets are ignored."""
    random = np.random.default_rng(seed)
    tokens, targets = random.integers(0, vocab, (2, MICRO_BATCH * SEQUENCE))
    targets[random.random(len(targets)) < _IGNORED_SHARE] = IGNORED
    lengths = [n for _ in range(MICRO_BATCH) for n in _documents(random)]
    return MicroBatch(
        tokens=tokens,
        targets=targets,
        positions=np.concatenate([np.arange(n) for n in lengths]),
        ends=tuple(np.cumsum(lengths).tolist()),
    )


def _documents(random: np.random.Generator) -> list[int]:
    """The lengths of one to three documents that fill a sample."""
    cuts = random.choice(np.arange(1, SEQUENCE), size=random.integers(3), replace=False)
    edges = np.concatenate(([0], np.sort(cuts), [SEQUENCE]))
    return np.diff(edges).tolist()
