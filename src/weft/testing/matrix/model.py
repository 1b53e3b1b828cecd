"""The models under the layouts: all that a layer can have, in the fewest numbers.

    moe        a dense layer, then routed ones; shared experts, QK norm, a router with a moving bias
    wide       the same with a micro-batch for each of eight data-parallel ranks
    staged     a layer for each part of a pipeline of four stages, or of two with two chunks
    deep       likewise of four stages with two chunks
    tied       one matrix for the first and the last stage
    capacity   groups of experts that drop what is too much

All of them have every loss that keeps the load of experts even.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from weft.config.load import build
from weft.config.run import RunConfig
from weft.testing.chaos.recipe import write_corpus

EXPERTS = 16  # one for each rank of the widest layout
SEQUENCE, MICRO_BATCH, MICRO_BATCHES = 16, 2, 4

_RECIPE: Mapping[str, Any] = MappingProxyType(
    {
        "name": "matrix",
        "model": {
            "family": "deepseek_moe",
            "vocab": 257,
            "hidden": 24,
            "layers": 3,
            "heads": 8,
            "kv_heads": 2,
            "head_dim": 4,
            "ffn_hidden": 16,
            "experts": EXPERTS,
            "top_k": 2,
            "shared_experts": 1,
            "dense_layers": 1,
            "dense_ffn_hidden": 40,
            "score": "sigmoid",
            "router_bias": True,
            "bias_rate": 0.01,
            "qk_norm": True,
            "aux_coef": 0.1,
            "z_coef": 0.1,
            "device_groups": 4,
            "device_coef": 0.1,
            "sequence_coef": 0.1,
            "global_coef": 0.1,
            "init_std": 0.2,  # for gradients far above rounding
        },
        "data": {"source": "text", "sequence": SEQUENCE, "validation_bytes": 700},
        "optim": {"lr": 1e-2, "warmup_steps": 2},
        "train": {
            "steps": 40,
            "global_batch": MICRO_BATCH * MICRO_BATCHES,
            "micro_batch": MICRO_BATCH,
            "eval_every": 40,
            "checkpoint_every": 0,
            "sample_bytes": 0,
            "threads": 1,
            "device": "cpu",
        },
    }
)
MODELS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "moe": (),
        "wide": (f"train.global_batch={MICRO_BATCH * 8}",),
        "staged": ("model.layers=4", "model.shared_experts=0"),
        "deep": ("model.layers=8", "model.shared_experts=0"),
        "tied": ("model.layers=4", "model.tied=true"),
        "capacity": ("model.capacity=1.0",),
    }
)


def recipe(folder: Path, model: str, *overrides: str) -> RunConfig:
    """The recipe of a model with a corpus in the folder.

    Raises:
        ConfigError, LayoutError: the overrides ask for what cannot be.
    """
    corpus = folder / "corpus"
    if not corpus.exists():
        write_corpus(corpus)
    own = (f"data.path={corpus}", f"train.run_dir={folder / 'run'}")
    return build(_RECIPE, (*own, *MODELS[model], *overrides))
