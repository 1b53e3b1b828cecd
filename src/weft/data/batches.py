"""What a step is fed: micro-batches of tokens, targets, positions and document ends.

    stream    256 a b c  256 d e 256  f g h i    documents in the order of the epoch, a closing 256
    samples  [256 a b c][256 d e 256][f g h i]   stride S; one more token is read for the targets
    targets  [a b c 256][d e 256 f][g h i 256]   shifted here, before anything is cut over ranks

or, where documents stay whole (`packing`), samples end with a document and are filled up:

    samples  [256 a b c][256 d e  . ][256 f  .  . ]

Every token is predicted once an epoch, but for those of a prompt, whose target is IGNORED. The last
sample is filled up, and its filling IGNORED. Attention never crosses a document or a sample: `ends`
says where each stops and `positions` restart there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft.data.mixture import Mixture, draw_phases, turn
from weft.data.order import shuffled, step_positions
from weft.data.packing import Cut, Packing, cut
from weft.data.stream import Ordered, TokenStream

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


_Sample = tuple[NDArray[np.int64], NDArray[np.int64]]  # tokens and targets


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Epoch:
    documents: Ordered
    samples: NDArray[np.int64]


class _Component:
    """One stream of a run: its epochs are built when first asked for, in any order."""

    def __init__(
        self, stream: TokenStream, index: int, *, sequence: int, seed: int, packing: Packing
    ) -> None:
        self.stream = stream
        self.cut = cut(stream, sequence=sequence, packing=packing)
        self.num_samples = self.cut.num_samples
        self._index = index
        self._seed = seed
        self._epochs: dict[int, _Epoch] = {}

    def locate(self, number: int) -> tuple[int, int]:
        """The epoch of the stream's `number`-th sample of the run, and which one of it that is."""
        epoch, place = divmod(number, self.num_samples)
        return epoch, int(self.epoch(epoch).samples[place])

    def epoch(self, epoch: int) -> _Epoch:
        found = self._epochs.get(epoch)
        if found is None:
            count, seed, index = self.stream.num_documents, self._seed, self._index
            documents = self.cut.documents
            if documents is None:
                documents = shuffled(
                    count, seed=seed, epoch=epoch, what="documents", component=index
                )
            samples = shuffled(
                self.num_samples, seed=seed, epoch=epoch, what="samples", component=index
            )
            found = _Epoch(documents=Ordered(self.stream, documents), samples=samples)
            # another thread may be here too: never is one missing that somebody has seen
            known = sorted({**self._epochs, epoch: found}.items())
            self._epochs = dict(known[-_EPOCHS_IN_MEMORY:])
        return found


class Batches:
    """The training batches of a run, of one stream or of a mixture."""

    def __init__(
        self,
        stream: TokenStream | Mixture,
        *,
        sequence: int,
        global_batch: int,
        micro_batch: int,
        seed: int,
        packing: Packing = "stream",
    ) -> None:
        assert sequence > 0, f"{sequence=}"
        assert micro_batch > 0, f"{micro_batch=}"
        assert global_batch > 0, f"{global_batch=}"
        assert global_batch % micro_batch == 0, f"{global_batch=} {micro_batch=}"
        streams = stream.streams if isinstance(stream, Mixture) else (stream,)
        self._weights = stream.weights if isinstance(stream, Mixture) else (1,)
        self._phases = draw_phases(self._weights, seed=seed)
        self._components = [
            _Component(each, index, sequence=sequence, seed=seed, packing=packing)
            for index, each in enumerate(streams)
        ]
        self._sequence = sequence
        self._global_batch = global_batch
        self._micro_batch = micro_batch

    @property
    def samples_per_epoch(self) -> int:
        """The samples of an epoch of every stream together; the same in every epoch."""
        return sum(component.num_samples for component in self._components)

    @property
    def num_micro_batches(self) -> int:
        """The micro-batches of a step, over all ranks."""
        return self._global_batch // self._micro_batch

    def samples(self, step: int) -> list[tuple[int, int, int]]:
        """The samples of a step in order, each as (component, epoch, sample of the epoch)."""
        positions = step_positions(step, global_batch=self._global_batch)
        return [self._locate(position) for position in positions]

    def divisor(self, step: int) -> int:
        """The targets that count in the whole global batch: what the summed loss is divided by.

        Known on every rank without asking another one, before any backward. At least 1: where
        nothing is asked, nothing is what the loss has to be.
        """
        counted = (
            self._components[c].epoch(e).documents.num_asked(*self._components[c].cut.span(i))
            for c, e, i in self.samples(step)
        )
        return max(1, sum(counted))

    def load(self, step: int, index: int) -> MicroBatch:
        """Micro-batch `index` of a step, 0 <= index < num_micro_batches."""
        assert 0 <= index < self.num_micro_batches, f"{index=} {self.num_micro_batches=}"
        first = step * self._global_batch + index * self._micro_batch
        located = [self._locate(position) for position in range(first, first + self._micro_batch)]
        return _assemble(
            [self._window(*place) for place in located],
            end_of_text=self._components[0].stream.end_of_text,
        )

    def _window(self, c: int, epoch: int, sample: int) -> _Sample:
        component = self._components[c]
        documents = component.epoch(epoch).documents
        return _window(documents, component.cut, sample, sequence=self._sequence)

    def _locate(self, position: int) -> tuple[int, int, int]:
        component, number = turn(position, self._weights, self._phases)
        return component, *self._components[component].locate(number)


class ValidationBatches:
    """The validation stream in its own order, in windows that do not overlap: each target once."""

    def __init__(
        self,
        stream: TokenStream,
        *,
        sequence: int,
        micro_batch: int,
        packing: Packing = "stream",
    ) -> None:
        assert sequence > 0, f"{sequence=}"
        assert micro_batch > 0, f"{micro_batch=}"
        self._cut = cut(stream, sequence=sequence, packing=packing)
        self._documents = Ordered(stream, self._cut.documents)
        self._sequence = sequence
        self._micro_batch = micro_batch

    @property
    def divisor(self) -> int:
        """The number of targets that count, over all micro-batches."""
        return max(1, self._documents.stream.num_targets)

    def num_micro_batches(self, dp: int = 1) -> int:
        """The micro-batches of the stream, rounded up so that all dp ranks run as many.

        Example:
            >>> from weft.data.tokens import encode
            >>> batches = ValidationBatches(encode([b"abcdefg"]), sequence=4, micro_batch=1)
            >>> batches.num_micro_batches(dp=1), batches.num_micro_batches(dp=4)
            (2, 4)
        """
        windows = self._cut.num_samples
        return -(-windows // (self._micro_batch * dp)) * dp

    def load(self, index: int) -> MicroBatch:
        """Micro-batch `index`; behind the end of the stream every target is IGNORED."""
        first = index * self._micro_batch
        samples = range(first, first + self._micro_batch)
        windows = [_window(self._documents, self._cut, i, sequence=self._sequence) for i in samples]
        return _assemble(windows, end_of_text=self._documents.stream.end_of_text)

    def __iter__(self) -> Iterator[MicroBatch]:
        return (self.load(index) for index in range(self.num_micro_batches()))


def _window(documents: Ordered, cut: Cut, sample: int, *, sequence: int) -> _Sample:
    """Tokens and targets of one sample; one behind the last is filling alone."""
    end = documents.stream.end_of_text
    # what fills a sample up is never the token that starts a document
    window = np.full(sequence + 1, 0 if end else 1, np.int64)
    asked = np.zeros(sequence, np.bool_)
    if sample < cut.num_samples:
        first, last = cut.span(sample)
        inside = documents.read(first, last if cut.is_whole else last + 1)
        window[: len(inside)] = inside
        if len(inside) <= sequence or cut.is_whole:
            window[len(inside)] = end
        asked[: last - first] = documents.asked(first, last)
    return window[:-1], np.where(asked, window[1:], IGNORED)


def _assemble(windows: list[_Sample], *, end_of_text: int) -> MicroBatch:
    tokens = np.stack([window for window, _ in windows])
    starts = tokens == end_of_text
    starts[:, 0] = True
    tokens, starts = tokens.reshape(-1), starts.reshape(-1)
    places = np.arange(len(tokens))
    return MicroBatch(
        tokens=tokens,
        targets=np.concatenate([targets for _, targets in windows]),
        positions=places - np.maximum.accumulate(np.where(starts, places, 0)),
        ends=(*np.flatnonzero(starts)[1:].tolist(), len(tokens)),
    )
