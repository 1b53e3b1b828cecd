"""A recipe small enough to prove in minutes: what makes layouts differ stays.

Kept: the family, heads and key/value heads, experts and top-k, shared experts, norms, losses, the
optimizer and the corpus. Cut: the tokens of a step, widths above the ones below, which no rule of a
layout reads, and layers where there are many.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from weft.config.branch import join
from weft.config.model import ModelConfig
from weft.config.parallel import ParallelConfig
from weft.config.run import RunConfig
from weft.data.tokens import VOCABULARY

# Over 8 ranks 8 tokens of a micro-batch each, so that choices of any top-k divide evenly.
SEQUENCE = 32
MICRO_BATCH = 2
MICRO_BATCHES = 8  # one for each rank of the widest data parallelism
QUICK_MICRO_BATCHES = 4

# Widths of a step of 0.1 s on one core; multiples of 16, the alignment of a row in bytes.
WIDEST: Mapping[str, int] = MappingProxyType(
    {
        "vocab": VOCABULARY,
        "hidden": 64,
        "head_dim": 16,
        "ffn_hidden": 64,
        "dense_ffn_hidden": 96,
        "shared_ffn_hidden": 96,
    }
)
NARROWEST = 16
MOST_LAYERS = 8
QUICK_LAYERS = 2  # of the routed ones
EXPERT_BUDGET = (
    2**21
)  # elements of all experts: 16 MiB in float64, one pass of memory in milliseconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Miniature:
    """The shrunk recipe on one rank, and each value that was cut as `key before -> after`."""

    config: RunConfig
    changes: tuple[str, ...]


def shrink(config: RunConfig, *, quick: bool) -> Miniature:
    """The recipe with its work cut and its layout taken off."""
    model = _model(config.model, quick=quick)
    if config.data.tokenizer != "bytes":  # its tokens need as many rows as they are
        model = model.model_copy(update={"vocab": config.model.vocab})
    batches = QUICK_MICRO_BATCHES if quick else MICRO_BATCHES
    sequence = min(config.data.sequence, SEQUENCE)
    small = config.model_copy(
        update={
            "model": model,
            "parallel": ParallelConfig(
                zero=config.parallel.zero, bucket_elements=config.parallel.bucket_elements
            ),
            "data": config.data.model_copy(update={"sequence": sequence}),
            "train": config.train.model_copy(
                update={"micro_batch": MICRO_BATCH, "global_batch": MICRO_BATCH * batches}
            ),
        }
    )
    return Miniature(config=small, changes=tuple(_changes(config, small)))


def _model(model: ModelConfig, *, quick: bool) -> ModelConfig:
    cut: dict[str, Any] = {n: min(getattr(model, n), widest) for n, widest in WIDEST.items()}
    dense = bool(model.dense_layers or model.dense_at)
    most = QUICK_LAYERS + dense if quick else MOST_LAYERS
    cut["layers"] = min(model.layers, most)
    cut["dense_layers"] = min(model.dense_layers, cut["layers"] - 1)
    further = (i for i in model.dense_at if cut["dense_layers"] < i < cut["layers"])
    cut["dense_at"] = tuple(further)
    if not cut["dense_layers"] and not cut["dense_at"]:
        cut["dense_ffn_hidden"] = 0
    narrow = model.model_copy(update=cut)
    for name in ("ffn_hidden", "hidden"):
        while _expert_elements(narrow) > EXPERT_BUDGET and getattr(narrow, name) > NARROWEST:
            half = max(getattr(narrow, name) // 2, NARROWEST)
            narrow = narrow.model_copy(update={name: half})
    return narrow


def _expert_elements(model: ModelConfig) -> int:
    return 3 * model.layers * model.experts * model.hidden * model.ffn_hidden


def _changes(before: RunConfig, after: RunConfig) -> Iterator[str]:
    for branch in ("data", "train", "model"):
        old, new = getattr(before, branch), getattr(after, branch)
        for name in type(old).model_fields:
            if getattr(old, name) != getattr(new, name):
                key = join(branch, name)
                yield f"{key} {getattr(old, name)} -> {getattr(new, name)}"
