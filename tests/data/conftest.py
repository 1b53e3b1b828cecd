"""Files of text in several forms, and a small tokenizer."""

import json
import random
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from weft.data.tokenizer import train_tokenizer

WORDS = (
    "warp",
    "weft",
    "loom",
    "shed",
    "heddle",
    "reed",
    "bobbin",
    "cloth",
    "d\u00e9j\u00e0",
    "42",
    "\n",
)


def sentences(count: int, *, seed: int = 0, words: int = 30) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, words))) for _ in range(count)
    ]


def write_jsonl(path: Path, records: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_megatron(
    stem: Path, documents: Sequence[Sequence[Sequence[int]]], *, code: int = 8, dtype: str = "<u2"
) -> Path:
    """Documents of sequences of tokens, byte by byte as the format says."""
    sequences = [s for document in documents for s in document]
    arrays = [np.array(s, dtype) for s in sequences]
    sizes = [a.nbytes for a in arrays]
    content = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, code)
    content += struct.pack("<QQ", len(sequences), len(documents) + 1)
    content += np.array([len(a) for a in arrays], "<i4").tobytes()
    content += np.cumsum([0, *sizes])[:-1].astype("<i8").tobytes()
    content += np.cumsum([0, *map(len, documents)]).astype("<i8").tobytes()
    stem.with_name(stem.name + ".idx").write_bytes(content)
    stem.with_name(stem.name + ".bin").write_bytes(b"".join(a.tobytes() for a in arrays))
    return stem


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    content = train_tokenizer(iter(sentences(200, seed=9)), vocab=400).content
    path.write_text(content, encoding="utf-8")
    return path
