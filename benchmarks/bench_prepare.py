"""How fast `weft data prepare` makes shards, beside the `tokenizers` library alone, on one core.

    weft       JSON lines to a shard on the disk: read, parse, tokenize, digest, checksum, write
    tokenizers the texts, in memory already, through `encode_batch_fast`; nothing else

Both on the interpreter's own library with byte-level pairs trained on it. Rounds are interleaved,
figures are medians of the CPU time of the process, so that a busy machine disturbs them little.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers
import torch

from weft.bench import record
from weft.data.corpus import read_corpus
from weft.data.document import Fields
from weft.data.prepared.prepare import Request, prepare
from weft.data.tokenizer import train_tokenizer

TARGET = 20.0  # MB/s a core that are aimed at; the speed of the library is the other bar
BATCH = 256  # documents a call of the library


def write_corpus(folder: Path, limit: int) -> tuple[Path, list[str]]:
    """The library as JSON lines, and its texts."""
    texts, left = [], limit
    for document in read_corpus("stdlib").documents:
        texts.append(document.content.decode())
        left -= len(document.content)
        if left < 0:
            break
    path = folder / "library.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path, texts


def seconds(run: Callable[[], object]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--mb", type=float, default=12.0, help="megabytes of text")
    parser.add_argument("--json", type=Path, help="default: results/<machine>/prepare.jsonl")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core against one core
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpus, texts = write_corpus(folder, int(arguments.mb * 1e6))
        trained = train_tokenizer(iter(texts), vocab=arguments.vocab)
        (folder / "tokenizer.json").write_text(trained.content, encoding="utf-8")
        found = measure(folder, corpus, texts, arguments.rounds)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    rates = {name: [megabytes / s for s in taken] for name, taken in found.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(
            f"{name:<12} {medians[name]:6.2f} MB/s a core ({min(values):.2f} to {max(values):.2f})"
        )
    ratio = medians["weft"] / medians["tokenizers"]
    met = medians["weft"] >= TARGET or ratio >= 1.0
    verdict = "met" if met else "NOT met"
    print(f"bar: {TARGET} MB/s, or the library's own speed: {ratio:.2f}x, {verdict}")
    device = torch.device("cpu")
    figures = {"megabytes": megabytes, "vocab": trained.size, "mb_per_s": rates, "ratio": ratio}
    results = Path(__file__).parent / "results" / record.name(device) / "prepare.jsonl"
    record.append(arguments.json or results, record.entry("prepare", device, figures))


def measure(folder: Path, corpus: Path, texts: list[str], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant, round by round, after one round that is not counted."""
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    request = Request(
        source="jsonl",
        path=str(corpus),
        fields=Fields(),
        tokenizer=str(folder / "tokenizer.json"),
        on_bad="stop",
    )

    def alone() -> None:
        for first in range(0, len(texts), BATCH):
            for encoding in library.encode_batch_fast(texts[first : first + BATCH]):
                _ = encoding.ids

    found: dict[str, list[float]] = {"weft": [], "tokenizers": []}
    for number in range(rounds + 1):
        out = folder / f"out-{number}"
        taken = {
            "weft": seconds(lambda out=out: prepare(request, out, workers=1, report=_quiet)),
            "tokenizers": seconds(alone),
        }
        if number:
            for name, value in taken.items():
                found[name].append(value)
    return found


def _quiet(_text: str) -> None:
    """Reports nothing."""


if __name__ == "__main__":
    main()
