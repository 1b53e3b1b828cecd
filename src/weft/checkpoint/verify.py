"""Is this checkpoint what it was when written? From the cheapest question to the dearest.

    read_manifest    its own digest, schema, coverage of every tensor    reads the manifest
    check_sizes      every file is there and has its size                reads the folder
    check_headers    every file has the keys, dtypes, lengths it should  reads the headers
    check_digests    every byte of every file                            reads everything

Each raises a CheckpointError that names the first thing it finds, before anything is used.
"""

from collections import defaultdict
from pathlib import Path

from safetensors import SafetensorError, safe_open

from weft.checkpoint.digest import crc32_of_file
from weft.checkpoint.format import DTYPES, MANIFEST, Entry, Manifest, decode_manifest, step_of
from weft.errors import CheckpointError


def verify(folder: Path) -> Manifest:
    """Checks a checkpoint down to its last byte and returns its manifest.

    Raises:
        CheckpointError naming the first file that is not as it was written.
    """
    manifest = verify_structure(folder)
    check_digests(folder, manifest)
    check_headers(folder, manifest)
    return manifest


def verify_structure(folder: Path) -> Manifest:
    """Checks manifest and sizes, which finds what is half written at little cost.

    Raises:
        CheckpointError
    """
    manifest = read_manifest(folder)
    check_sizes(folder, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint, checked in itself and against the name of the folder.

    Raises:
        CheckpointError
    """
    path = folder / MANIFEST
    try:
        manifest = decode_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise damaged(folder, f"{MANIFEST} cannot be read ({error.strerror})") from None
    if step_of(folder.name) not in (None, manifest.step):
        raise damaged(folder, f"it holds step {manifest.step}, which is not the one of its name")
    return manifest


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Checks that every shard file is there, a plain file, of the size it was written with.

    Raises:
        CheckpointError
    """
    for file in manifest.files:
        path = folder / file.file
        if path.is_symlink() or not path.is_file():
            raise damaged(folder, f"{file.file} is missing")
        num_bytes = path.stat().st_size
        if num_bytes != file.num_bytes:
            raise damaged(folder, f"{file.file} has {num_bytes} bytes, not {file.num_bytes}")


def check_digests(folder: Path, manifest: Manifest) -> None:
    """Checks every byte of every shard file.

    Raises:
        CheckpointError
    """
    for file in manifest.files:
        try:
            found = crc32_of_file(folder / file.file)
        except OSError as error:
            raise damaged(folder, f"{file.file} cannot be read ({error.strerror})") from None
        if found != file.crc32:
            raise damaged(folder, f"{file.file} has changed since it was written")


def check_headers(folder: Path, manifest: Manifest) -> None:
    """Checks that every shard file holds the pieces the manifest says, and no other.

    Raises:
        CheckpointError
    """
    expected: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in manifest.entries:
        expected[entry.file][entry.key] = entry
    for file in manifest.files:
        try:
            _check_header(folder / file.file, expected[file.file])
        except (SafetensorError, OSError) as error:
            raise damaged(folder, f"{file.file} is no safetensors file ({error})") from None


def damaged(folder: Path, reason: str) -> CheckpointError:
    """The error of a checkpoint that must not be used."""
    return CheckpointError(
        f"checkpoint {folder} is damaged: {reason}; expected it as it was written; "
        "resume from an older one"
    )


def _check_header(path: Path, expected: dict[str, Entry]) -> None:
    with safe_open(path, framework="pt") as shard:
        if set(shard.keys()) != set(expected):
            raise damaged(path.parent, f"{path.name} does not hold the pieces it should")
        for key, entry in expected.items():
            piece = shard.get_slice(key)
            held = (piece.get_dtype(), tuple(piece.get_shape()))
            if held != (DTYPES[entry.dtype][0], (entry.stop - entry.start,)):
                raise damaged(path.parent, f"{path.name} holds {key} as {held}")
