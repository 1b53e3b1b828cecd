"""What a checkpoint consists of, and what makes its manifest true.

    run/step-00000100/                      a name without a suffix is a whole checkpoint
        rank-00000.safetensors ...          flat pieces of tensors, key "kind/name@start-stop"
        manifest.json                       written last: what is where, sizes, digests

A tensor is known by its kind and its global name and is stored as flat ranges of its elements, so
the layout that wrote it is of no interest to the one that reads it. The manifest is canonical JSON
that carries its own digest: any changed byte of it shows. Nothing here touches the disk.
"""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from weft.checkpoint.digest import fingerprint_experts
from weft.errors import CheckpointError

FORMAT = "weft-checkpoint-2"
MANIFEST = "manifest.json"
Kind = Literal["master", "mean", "square", "state"]

# Our name of a dtype -> the safetensors name and the bytes of an element.
DTYPES: Mapping[str, tuple[str, int]] = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "bfloat16": ("BF16", 2),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "uint8": ("U8", 1),
}

# NOTE: the only file names a manifest may hold; there is no way to write a path in them.
FileName = Annotated[str, Field(pattern=r"^rank-\d{5}\.safetensors$")]
Count = Annotated[int, Field(ge=0)]
_STEP = re.compile(r"step-(\d{8,})(?:\.replaced-(\d+))?")


class Record(BaseModel):
    """What all parts of a manifest share: frozen, strict, no key but the known ones."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Entry(Record):
    """One piece: elements [start, stop) of a flattened tensor, and where they are."""

    file: FileName
    key: str
    kind: Kind
    name: str
    shape: tuple[Count, ...]
    start: Count
    stop: Count
    dtype: Literal["float64", "float32", "bfloat16", "int64", "int32", "uint8"]
    crc32: Count

    @property
    def num_bytes(self) -> int:
        """The bytes of the elements."""
        return (self.stop - self.start) * DTYPES[self.dtype][1]


class ShardFile(Record):
    """One shard file as it was written."""

    file: FileName
    num_bytes: Count
    crc32: Count


class RankReport(Record):
    """What one rank wrote; rank 0 collects these into the manifest."""

    files: tuple[ShardFile, ...]
    entries: tuple[Entry, ...]


class Manifest(Record):
    """The whole truth of a checkpoint."""

    format: Literal["weft-checkpoint-2"]
    weft: str
    step: Count
    config: dict[str, JsonValue]
    data: dict[str, JsonValue]
    files: tuple[ShardFile, ...]
    entries: tuple[Entry, ...]
    fingerprints: dict[str, str]


def step_name(step: int) -> str:
    """The folder of a step.

    Example:
        >>> step_name(100)
        'step-00000100'
    """
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a folder that may hold a whole checkpoint, if the name is of such a folder.

    Example:
        >>> [step_of(f"step-00000100{suffix}") for suffix in ("", ".replaced-1", ".partial")]
        [100, 100, None]
    """
    match = _STEP.fullmatch(name)
    return int(match.group(1)) if match else None


def newest_first(name: str) -> tuple[int, bool, int]:
    """The sort key of a folder with a step: later steps first, what was replaced last.

    Example:
        >>> names = ["step-00000001.replaced-1", "step-00000001", "step-00000002"]
        >>> sorted(names, key=newest_first)
        ['step-00000002', 'step-00000001', 'step-00000001.replaced-1']
    """
    match = _STEP.fullmatch(name)
    assert match, f"{name=}"
    step, replaced = match.groups()
    return -int(step), replaced is not None, -int(replaced or 0)


def key_of(kind: str, name: str, start: int, stop: int) -> str:
    """The key of a piece in its shard file."""
    return f"{kind}/{name}@{start}-{stop}"


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`: canonical JSON, and the digest of it as one more key.

    Raises:
        CheckpointError when config or data hold a number that JSON has no form for.
    """
    return sign(manifest.model_dump(mode="json"))


def sign(content: Mapping[str, object]) -> bytes:
    """The bytes of a manifest with this content, right or wrong, and the digest of that."""
    return _canonical({**content, "digest": _digest(content)})


def decode_manifest(raw: bytes, where: str) -> Manifest:
    """The manifest in these bytes, after every check that needs no other file.

    Raises:
        CheckpointError saying what is wrong, whatever the bytes are.
    """
    try:
        content = json.loads(raw)
        digest = content.pop("digest") if isinstance(content, dict) else None
        if digest != _digest(content) or raw != _canonical({**content, "digest": digest}):
            raise _damaged(where, "it differs from the digest it carries")
        if content.get("format") != FORMAT:
            raise _other_format(where, content)
        manifest = Manifest.model_validate_json(_canonical(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _damaged(where, f"{place}: {first['msg']}") from None
    except (ValueError, KeyError, RecursionError) as error:
        raise _damaged(where, f"{type(error).__name__}: {error}") from None
    fault = next(find_faults(manifest), None)
    if fault:
        raise _damaged(where, fault)
    return manifest


def _other_format(where: str, content: Mapping[str, object]) -> CheckpointError:
    return CheckpointError(
        f"{where} has format {content.get('format')!r} of weft {content.get('weft')}; expected "
        f"{FORMAT!r}; export it with that version and start from the export (train.init_from)"
    )


def find_faults(manifest: Manifest) -> Iterator[str]:
    """What is wrong: tensors not covered exactly once, pieces no file holds, experts mistaken."""
    yield from _file_faults(manifest)
    for (kind, name), pieces in group_entries(manifest.entries).items():
        yield from _tensor_faults(f"{kind} {name}", pieces)
    if manifest.fingerprints != fingerprint_experts(manifest.entries):
        yield "the fingerprints of the experts do not follow from the entries"


def group_entries(entries: Iterable[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """The pieces of each tensor by (kind, name), in the order of their ranges."""
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        groups[entry.kind, entry.name].append(entry)
    return dict(groups)


def _file_faults(manifest: Manifest) -> Iterator[str]:
    sizes = {file.file: file.num_bytes for file in manifest.files}
    if len(sizes) != len(manifest.files):
        yield "a shard file is listed twice"
    stored: dict[str, int] = defaultdict(int)
    for entry in manifest.entries:
        if entry.key != key_of(entry.kind, entry.name, entry.start, entry.stop):
            yield f"key {entry.key!r} is not of {entry.kind} {entry.name}"
        stored[entry.file] += entry.num_bytes
    for file, num_bytes in stored.items():
        if num_bytes > sizes.get(file, -1):
            yield f"{file} cannot hold the {num_bytes} bytes said to be in it"


def _tensor_faults(tensor: str, pieces: Sequence[Entry]) -> Iterator[str]:
    if len({(piece.shape, piece.dtype) for piece in pieces}) > 1:
        yield f"the pieces of {tensor} disagree on its shape or dtype"
    reached = 0
    for piece in pieces:
        if piece.start != reached or piece.stop <= piece.start:
            what = "overlap" if piece.start < reached else "leave a hole"
            yield f"the pieces of {tensor} {what} at element {piece.start}"
        reached = piece.stop
    expected = math.prod(pieces[0].shape)
    if reached != expected:
        yield f"{tensor} has {reached} of {expected} elements"


def _damaged(where: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{where} is not a manifest that weft wrote: {reason}; expected {FORMAT} unchanged; "
        "try an older checkpoint"
    )


def _canonical(content: Mapping[str, object]) -> bytes:
    try:
        text = json.dumps(content, sort_keys=True, indent=1, allow_nan=False)
    except ValueError as error:
        raise CheckpointError(
            f"a manifest cannot hold this config or data position: {error}; expected finite numbers"
        ) from None
    return text.encode("ascii") + b"\n"


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()
