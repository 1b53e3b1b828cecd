"""What a step is fed: micro-batches of tokens, targets, positions and document ends.

    stream    256 a b c  256 d e 256  f g h i    documents in the order of the epoch, a closing 256
    samples  [256 a b c][256 d e 256][f g h i]   stride S; one more token is read for the targets
    targets  [a b c 256][d e 256 f][g h i 256]   shifted here, before anything is cut over ranks

Every token is predicted once an epoch. The last sample is filled up with tokens whose target is
IGNORED. Attention never crosses a document or a sample: `ends` says where each stops and
`positions` restart there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft.data.order import shuffled, step_positions
from weft.data.tokens import END_OF_TEXT, TokenStream, reorder
from weft.errors import DataError

IGNORED = -100  # the target that torch.nn.functional.cross_entropy leaves out by default
_EPOCHS_IN_MEMORY = 2  # a step may straddle the boundary of two epochs


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MicroBatch:
    """A micro-batch of whole samples, flat, and where its documents end.

    Shapes:
        tokens, targets, positions: N = B S, int64. ends: increasing, the last one is N.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    positions: NDArray[np.int64]
    ends: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Epoch:
    tokens: NDArray[np.uint16]
    order: NDArray[np.int64]


class Batches:
    """The training batches of a run. Epochs are built when first asked for, in any order."""

    def __init__(
        self, stream: TokenStream, *, sequence: int, global_batch: int, micro_batch: int, seed: int
    ) -> None:
        assert sequence > 0, f"{sequence=}"
        assert micro_batch > 0, f"{micro_batch=}"
        assert global_batch > 0, f"{global_batch=}"
        assert global_batch % micro_batch == 0, f"{global_batch=} {micro_batch=}"
        self._stream = stream
        self._sequence = sequence
        self._global_batch = global_batch
        self._micro_batch = micro_batch
        self._seed = seed
        self._epochs: dict[int, _Epoch] = {}

    @property
    def samples_per_epoch(self) -> int:
        """The samples of an epoch; the same in every epoch."""
        return num_windows(self._stream.num_tokens, self._sequence)

    @property
    def num_micro_batches(self) -> int:
        """The micro-batches of a step, over all ranks."""
        return self._global_batch // self._micro_batch

    def samples(self, step: int) -> list[tuple[int, int]]:
        """The samples of a step in order, each as (epoch, sample of the epoch)."""
        positions = step_positions(step, global_batch=self._global_batch)
        return [self._locate(position) for position in positions]

    def divisor(self, step: int) -> int:
        """The targets that count in the whole global batch: what the summed loss is divided by.

        Known on every rank without asking another one, before any backward.
        """
        length, sequence = self._stream.num_tokens, self._sequence
        return sum(min(sequence, length - sample * sequence) for _, sample in self.samples(step))

    def load(self, step: int, index: int) -> MicroBatch:
        """Micro-batch `index` of a step, 0 <= index < num_micro_batches."""
        assert 0 <= index < self.num_micro_batches, f"{index=} {self.num_micro_batches=}"
        first = step * self._global_batch + index * self._micro_batch
        located = [self._locate(position) for position in range(first, first + self._micro_batch)]
        length, sequence = self._stream.num_tokens, self._sequence
        return _assemble(
            [
                _window(self._epoch(e).tokens, i, length=length, sequence=sequence)
                for e, i in located
            ]
        )

    def _locate(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.samples_per_epoch)
        return epoch, int(self._epoch(epoch).order[place])

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            seed, num_documents = self._seed, self._stream.num_documents
            documents = shuffled(num_documents, seed=seed, epoch=epoch, what="documents")
            samples = shuffled(self.samples_per_epoch, seed=seed, epoch=epoch, what="samples")
            while len(self._epochs) >= _EPOCHS_IN_MEMORY:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = _Epoch(tokens=reorder(self._stream, documents), order=samples)
        return self._epochs[epoch]


class ValidationBatches:
    """The validation stream in its own order, in windows that do not overlap: each target once."""

    def __init__(self, stream: TokenStream, *, sequence: int, micro_batch: int) -> None:
        assert sequence > 0, f"{sequence=}"
        assert micro_batch > 0, f"{micro_batch=}"
        self._stream = stream
        self._sequence = sequence
        self._micro_batch = micro_batch

    @property
    def divisor(self) -> int:
        """The number of targets that count, over all micro-batches."""
        return self._stream.num_tokens

    def num_micro_batches(self, dp: int = 1) -> int:
        """The micro-batches of the stream, rounded up so that all dp ranks run as many.

        Example:
            >>> from weft.data.tokens import encode
            >>> batches = ValidationBatches(encode([b"abcdefg"]), sequence=4, micro_batch=1)
            >>> batches.num_micro_batches(dp=1), batches.num_micro_batches(dp=4)
            (2, 4)
        """
        windows = num_windows(self._stream.num_tokens, self._sequence)
        return -(-windows // (self._micro_batch * dp)) * dp

    def load(self, index: int) -> MicroBatch:
        """Micro-batch `index`; behind the end of the stream every target is IGNORED."""
        first = index * self._micro_batch
        length, sequence, tokens = self._stream.num_tokens, self._sequence, self._stream.tokens
        samples = range(first, first + self._micro_batch)
        return _assemble([_window(tokens, i, length=length, sequence=sequence) for i in samples])

    def __iter__(self) -> Iterator[MicroBatch]:
        return (self.load(index) for index in range(self.num_micro_batches()))


def num_windows(num_tokens: int, sequence: int) -> int:
    """The samples a stream is cut in, the last one filled up.

    Raises:
        DataError when the stream is empty.

    Example:
        >>> num_windows(9, 4)
        3
    """
    if num_tokens < 1:
        raise DataError("the token stream is empty; expected a document; try another data.path")
    return -(-num_tokens // sequence)


def _window(
    tokens: NDArray[np.uint16], sample: int, *, length: int, sequence: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens and targets of one sample. Behind the closing END_OF_TEXT the filling is byte 0."""
    first = sample * sequence
    window = np.zeros(sequence + 1, np.int64)
    inside = tokens[first : first + sequence + 1]
    window[: len(inside)] = inside
    if 0 <= length - first <= sequence:
        window[length - first] = END_OF_TEXT
    targets = window[1:].copy()
    targets[max(0, length - first) :] = IGNORED
    return window[:-1], targets


def _assemble(windows: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> MicroBatch:
    tokens = np.stack([window for window, _ in windows])
    starts = tokens == END_OF_TEXT
    starts[:, 0] = True
    tokens, starts = tokens.reshape(-1), starts.reshape(-1)
    places = np.arange(len(tokens))
    return MicroBatch(
        tokens=tokens,
        targets=np.concatenate([targets for _, targets in windows]),
        positions=places - np.maximum.accumulate(np.where(starts, places, 0)),
        ends=(*np.flatnonzero(starts)[1:].tolist(), len(tokens)),
    )
