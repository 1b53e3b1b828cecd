"""Which ids a text becomes: its bytes, or what a `tokenizer.json` says; the end of text is apart.

A tokenizer of a file is run by the `tokenizers` library. For one of ours (byte-level pairs, no
normaliser) ASCII text takes a shorter way to the same ids: it is cut in words by the same rule, and
the library is asked for each new word once. That is several times as fast as asking it for all.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from weft.data import tokens
from weft.data.stream import dtype_for
from weft.errors import DataError

BYTES = "bytes"
END = "<|endoftext|>"
# What published tokenizers call the token between documents, ours first.
_ENDS = (
    END,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
# The rule by which GPT-2 cuts words, as far as it concerns ASCII; `tokenizers` has it in ByteLevel.
_WORD = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)
# ASCII separators that Python calls white space in text, the regular expressions of others do not.
_SEPARATORS = re.compile("[\x1c-\x1f]")
_LONGEST_WORD = 32  # longer ones are rarely met twice
_MOST_WORDS = 1 << 19  # 100 MiB of them
_SMALLEST = 257  # every byte, and the end of text


class Tokenizer(ABC):
    """Text to ids and back.

    `size` is one more than the largest id, `digest` tells two tokenizers apart, `end_of_text` is
    never among the ids of a text.
    """

    name: str
    digest: str
    size: int
    end_of_text: int

    @abstractmethod
    def encode(self, texts: Sequence[bytes]) -> list[NDArray[Any]]:
        """The ids of each text, which has to be UTF-8, without any special token."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, without the end of text."""

    @abstractmethod
    def width(self, token: int) -> int:
        """About how many bytes of text a token is; at least 1."""


@final
class Bytes(Tokenizer):
    """One byte, one token."""

    def __init__(self) -> None:
        self.name = self.digest = BYTES
        self.size = tokens.VOCABULARY
        self.end_of_text = tokens.END_OF_TEXT

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[Any]]:
        return [np.frombuffer(text, np.uint8) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return tokens.decode(ids)

    def width(self, token: int) -> int:
        del token
        return 1


@final
class FromFile(Tokenizer):
    """The tokenizer of a `tokenizer.json`."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.name = str(path)
        self.digest = hashlib.sha256(content).hexdigest()
        self._library = _parse(path, content)
        # NOTE: without it the text "<|endoftext|>" inside a document would end that document.
        self._library.encode_special_tokens = True
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values(), default=0) + 1
        self.end_of_text = _end_of_text(path, vocabulary)
        self._words = _Words(self._library, self.size) if _is_plain(json.loads(content)) else None

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[Any]]:
        decoded = [text.decode("utf-8") for text in texts]
        if self._words is None:
            return self._slowly(decoded)
        short = [text.isascii() and not _SEPARATORS.search(text) for text in decoded]
        rest = iter(self._slowly([t for t, s in zip(decoded, short, strict=True) if not s]))
        return [
            self._words.encode(text) if is_short else next(rest)
            for text, is_short in zip(decoded, short, strict=True)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        return self._library.decode([int(i) for i in ids if i != self.end_of_text])

    def width(self, token: int) -> int:
        return max(1, len(self._library.decode([token])))

    def _slowly(self, texts: list[str]) -> list[NDArray[Any]]:
        encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype_for(self.size)) for encoding in encodings]


@final
class _Words:
    """The ids of ASCII texts, word by word, each word asked of the library once."""

    def __init__(self, library: tokenizers.Tokenizer, size: int) -> None:
        self._library = library
        self._dtype = dtype_for(size)
        self._known: dict[str, bytes] = {}

    def encode(self, text: str) -> NDArray[Any]:
        words = _WORD.findall(text)
        known = self._known
        try:
            joined = b"".join([known[word] for word in words])
        except KeyError:
            extra = self._learn({word for word in words if word not in known})
            joined = b"".join([extra[w] if w in extra else known[w] for w in words])
        return np.frombuffer(joined, self._dtype)

    def _learn(self, new: set[str]) -> dict[str, bytes]:
        """Asks for new words; keeps the short ones, and returns all."""
        if len(self._known) + len(new) > _MOST_WORDS:
            new |= self._known.keys()  # NOTE: the words of this text may be among them
            self._known.clear()
        asked = list(new)
        encodings = self._library.encode_batch_fast(asked, add_special_tokens=False)
        found = {
            word: np.array(encoding.ids, self._dtype).tobytes()
            for word, encoding in zip(asked, encodings, strict=True)
        }
        if len(self._known) + len(found) <= _MOST_WORDS:
            self._known.update((w, ids) for w, ids in found.items() if len(w) <= _LONGEST_WORD)
        return found


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name: "bytes", or the path of a `tokenizer.json`.

    Raises:
        DataError: the file cannot be read, is no tokenizer, or has no end of text.
    """
    if name == BYTES:
        return Bytes()
    path = Path(name)
    try:
        return FromFile(path, path.read_bytes())
    except OSError as error:
        raise DataError(
            f'cannot read data.tokenizer = {name}: {error.strerror}; expected "bytes" or a '
            "tokenizer.json; check the path, or make one with weft tokenizer train"
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A new tokenizer as the text of its file, and how many ids it has."""

    content: str
    size: int


def train_tokenizer(texts: Iterator[str], *, vocab: int) -> Trained:
    """Byte-level pairs learned from texts: every byte is a token, so that any text comes back.

    Raises:
        DataError: the vocabulary has no room for the bytes, or the texts for the vocabulary.
    """
    if vocab < _SMALLEST:
        raise DataError(
            f"--vocab {vocab}: expected at least {_SMALLEST}, the bytes and the end of text; try "
            "--vocab 8192"
        )
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return Trained(content=library.to_str(pretty=True), size=library.get_vocab_size())


def _parse(path: Path, content: bytes) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # noqa: BLE001 (the library raises nothing narrower)
        raise DataError(
            f"{path} is no tokenizer: {error}; expected a tokenizer.json of the tokenizers "
            "library; try weft tokenizer train"
        ) from None


def _end_of_text(path: Path, vocabulary: dict[str, int]) -> int:
    found = next((vocabulary[end] for end in _ENDS if end in vocabulary), None)
    if found is None:
        raise DataError(
            f"{path} has no token between documents; expected one of {', '.join(map(ascii, _ENDS))}"
            "; add one, or try weft tokenizer train"
        )
    return found


def _is_plain(description: dict[str, Any]) -> bool:
    """Whether the words of a tokenizer are those of `_WORD`, each with ids of its own."""
    cut = description.get("pre_tokenizer") or {}
    added = [entry["content"] for entry in description.get("added_tokens", [])]
    special = all(entry["special"] for entry in description.get("added_tokens", []))
    return (
        cut.get("type") == "ByteLevel"
        and cut.get("use_regex", True)
        and not cut.get("add_prefix_space", True)
        and description.get("normalizer") is None
        and not description["model"].get("dropout")
        and description["model"].get("type") == "BPE"
        and special
        and bool(added)
    )
