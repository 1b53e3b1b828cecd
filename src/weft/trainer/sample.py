"""A sample of text: the trained model, alone on one rank, continuing a prompt.

The parameters are read from the run's last checkpoint, so that any layout can be sampled by one
rank, and what is sampled is what was saved.
"""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.checkpoint.load import Checkpoint
from weft.compose.plan import Plan, without_limit
from weft.compose.recipe import arithmetic, plan, shape
from weft.config.run import RunConfig
from weft.data.batches import MicroBatch
from weft.data.tokenizer import Bytes, Tokenizer
from weft.model.params import Logical, parameters
from weft.parallel.share import whole
from weft.runtime import backends
from weft.runtime.batch import Batch, stage
from weft.runtime.eager import Oracle
from weft.runtime.state import precision

TEMPERATURE = 0.7  # below 1: a short sample of a small model reads better with fewer rare bytes


def load_oracle(config: RunConfig, folder: Path, device: torch.device) -> Oracle:
    """The whole model on one rank, from a checkpoint."""
    alone = _alone(config)
    dtypes = precision(alone.precision)
    weights: dict[str, Tensor] = {}
    with Checkpoint.open_verified(folder) as checkpoint:
        for parameter in parameters(alone.shape):
            parts = [_read(checkpoint, part) for part in parameter.parts]
            weights[parameter.name] = torch.cat(parts).view(parameter.shape).to(device, dtypes.act)
        for name in checkpoint.names("state"):
            weights[name] = checkpoint.read("state", name).to(device)
    table = backends.choose(device, dtypes.act, config.kernels)
    return Oracle(plan=alone, bodies=backends.bodies(table), weights=weights)


def _alone(config: RunConfig) -> Plan:
    parallel: dict[str, Any] = {
        "pp": 1,
        "dp": 1,
        "sp": 1,
        "ep": 1,
        "pipeline": "1f1b",
        "chunks": 1,
        "layers": (),
    }
    single = config.model_copy(update={"parallel": config.parallel.model_copy(update=parallel)})
    made = plan(single, 0)
    assert made.shape == shape(config.model)
    assert made.arithmetic == arithmetic(config.model)
    return without_limit(made)


def _read(checkpoint: Checkpoint, part: Logical) -> Tensor:
    return checkpoint.read("master", part.name)


def sample(
    oracle: Oracle,
    prompt: bytes,
    *,
    count: int,
    seed: int,
    device: torch.device,
    tokenizer: Tokenizer | None = None,
    temperature: float = TEMPERATURE,
) -> str:
    """The prompt and about `count` bytes drawn token by token from the model's distribution.

    Without a tokenizer tokens are bytes, and there are `count` of them. At temperature 0 each
    token is the likeliest.
    """
    texts = grow(
        oracle,
        prompt,
        count=count,
        seed=seed,
        device=device,
        tokenizer=tokenizer,
        temperature=temperature,
    )
    (text,) = deque(texts, maxlen=1)
    return text


@torch.no_grad()
def grow(
    oracle: Oracle,
    prompt: bytes,
    *,
    count: int,
    seed: int,
    device: torch.device,
    tokenizer: Tokenizer | None = None,
    temperature: float = TEMPERATURE,
) -> Iterator[str]:
    """The text of `sample` as it grows: the prompt, and again with each further token."""
    tokenizer = tokenizer or Bytes()
    generator = torch.Generator("cpu").manual_seed(seed)
    tokens = [tokenizer.end_of_text, *tokenizer.encode([prompt])[0].tolist()]
    window, left = oracle.plan.sequence, count
    yield tokenizer.decode(tokens[1:])
    while left > 0:
        recent = np.array(tokens[-window:], dtype=np.int64)
        logits = oracle.logits(_document(recent, device))[-1, : tokenizer.size].float().cpu()
        logits[tokenizer.end_of_text] = -torch.inf  # a sample is of the length that was asked for
        tokens.append(_draw(logits, temperature, generator))
        left -= tokenizer.width(tokens[-1])
        yield tokenizer.decode(tokens[1:])


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    chances = torch.softmax(logits / temperature, -1)
    return int(torch.multinomial(chances, 1, generator=generator))


def _document(tokens: NDArray[np.int64], device: torch.device) -> Batch:
    count = len(tokens)
    text = MicroBatch(
        tokens=tokens, targets=tokens, positions=np.arange(count, dtype=np.int64), ends=(count,)
    )
    return stage(text, whole(count), device=device)
