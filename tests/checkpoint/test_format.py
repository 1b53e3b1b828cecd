"""A manifest is believed only if it is byte for byte one that a writer could have written."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.checkpoint.digest import fingerprint_experts
from weft.checkpoint.format import (
    FORMAT,
    Entry,
    Manifest,
    ShardFile,
    decode_manifest,
    encode_manifest,
    find_faults,
    key_of,
    newest_first,
    sign,
    step_name,
    step_of,
)
from weft.errors import CheckpointError

FILE = "rank-00000.safetensors"


def entry(start: int, stop: int, **changed) -> Entry:
    name = changed.get("name", "layers.0.experts.0.gate")
    fields = {
        "file": FILE,
        "key": key_of("master", name, start, stop),
        "kind": "master",
        "name": name,
        "shape": (2, 3),
        "start": start,
        "stop": stop,
        "dtype": "float32",
        "crc32": start + 1,
    }
    return Entry.model_validate({**fields, **changed})


def manifest(*entries: Entry, **changed) -> Manifest:
    fields = {
        "format": FORMAT,
        "weft": "0",
        "step": 7,
        "config": {"lr": 0.1, "path": None, "name": "r\u00e9sum\u00e9"},
        "data": {"step": 7},
        "files": (ShardFile(file=FILE, num_bytes=999, crc32=0),),
        "entries": entries,
        "fingerprints": fingerprint_experts(entries),
    }
    return Manifest.model_validate({**fields, **changed})


GOOD = manifest(entry(0, 2), entry(2, 6))


def resigned(raw: bytes, change) -> bytes:
    """The manifest after `change`, with the digest a forger would compute."""
    content = json.loads(raw)
    del content["digest"]
    change(content)
    return sign(content)


def test_what_is_encoded_is_decoded() -> None:
    assert decode_manifest(encode_manifest(GOOD), "here") == GOOD


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_seen(data: st.DataObject) -> None:
    raw = bytearray(encode_manifest(GOOD))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CheckpointError, match="here is not a manifest"):
        decode_manifest(bytes(raw), "here")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused_without_another_error(raw: bytes) -> None:
    with pytest.raises(CheckpointError):
        decode_manifest(raw, "here")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[" * 100_000,
        b"null",
        b"[]",
        b"{}",
        b'{"digest": 1}',
        b'{"a": NaN, "digest": ""}',
        b'{"a": ' + b"9" * 9_999 + b"}",
        b"\x80\x04]\x94.",
    ],
)
def test_hostile_json_is_refused_without_another_error(raw: bytes) -> None:
    with pytest.raises(CheckpointError):
        decode_manifest(raw, "here")


def test_white_space_and_repeated_keys_count_as_changes() -> None:
    raw = encode_manifest(GOOD)
    for changed in (raw + b" ", raw.replace(b"\n", b"", 1), raw.replace(b"{", b'{"step": 8,', 1)):
        with pytest.raises(CheckpointError):
            decode_manifest(changed, "here")


@pytest.mark.parametrize(
    "path",
    ["../rank-00000.safetensors", "/etc/passwd", "a/rank-00000.safetensors", "", "x", FILE + "\n"],
)
def test_a_path_is_refused_even_under_a_right_digest(path: str) -> None:
    def change(content: dict) -> None:
        content["files"][0]["file"] = path
        for each in content["entries"]:
            each["file"] = path

    with pytest.raises(CheckpointError, match="file"):
        decode_manifest(resigned(encode_manifest(GOOD), change), "here")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "weft-checkpoint-1"),
        ("step", -1),
        ("step", "7"),
        ("step", True),
        ("files", []),
        ("entries", [{}]),
        ("fingerprints", {}),
        ("surprise", 1),
    ],
)
def test_a_wrong_field_is_refused_even_under_a_right_digest(key: str, value: object) -> None:
    def change(content: dict) -> None:
        content[key] = value

    with pytest.raises(CheckpointError):
        decode_manifest(resigned(encode_manifest(GOOD), change), "here")


def test_control_a_forged_manifest_without_a_fault_is_believed() -> None:
    def change(content: dict) -> None:
        content["step"] = 8

    assert decode_manifest(resigned(encode_manifest(GOOD), change), "here").step == 8


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ((entry(0, 2),), "2 of 6 elements"),
        ((entry(0, 2), entry(3, 6)), "leave a hole at element 3"),
        ((entry(0, 3), entry(2, 6)), "overlap at element 2"),
        ((entry(0, 6), entry(0, 6)), "overlap at element 0"),
        ((entry(1, 6),), "leave a hole at element 1"),
        ((entry(0, 6), entry(6, 9)), "9 of 6 elements"),
        ((entry(0, 2), entry(2, 6, dtype="float64")), "disagree"),
        ((entry(0, 2), entry(2, 6, shape=(6,))), "disagree"),
        ((entry(0, 6, key="master/other@0-6"),), "is not of"),
        ((entry(0, 6, file="rank-00001.safetensors"),), "cannot hold"),
        ((entry(0, 1 << 60, shape=(1 << 60,)),), "cannot hold"),
    ],
)
def test_pieces_that_make_no_whole_are_named(entries: tuple[Entry, ...], fault: str) -> None:
    assert fault in "; ".join(find_faults(manifest(*entries)))
    assert not list(find_faults(GOOD))


def test_swapped_experts_do_not_match_their_fingerprints() -> None:
    first = (entry(0, 6, crc32=1), entry(0, 6, crc32=2, name="layers.0.experts.1.gate"))
    swapped = (entry(0, 6, crc32=2), entry(0, 6, crc32=1, name="layers.0.experts.1.gate"))
    mistaken = manifest(*swapped, fingerprints=fingerprint_experts(first))
    assert "fingerprints" in "; ".join(find_faults(mistaken))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_json_cannot_hold_is_refused(number: float) -> None:
    with pytest.raises(CheckpointError, match="finite"):
        encode_manifest(manifest(entry(0, 6), config={"lr": number}))


def test_folders_are_ordered_by_step_and_not_by_name() -> None:
    names = [step_name(step) for step in (99_999_999, 100_000_000, 5)]
    assert [step_of(name) for name in names] == [99_999_999, 100_000_000, 5]
    assert [step_of(n) for n in sorted(names, key=newest_first)] == [100_000_000, 99_999_999, 5]
    for other in ("step-1", "step-00000001.partial", "step-00000001.pruned", "xstep-00000001"):
        assert step_of(other) is None


def test_a_checkpoint_of_another_format_is_not_called_damaged() -> None:
    def change(content: dict) -> None:
        content["format"], content["weft"] = "weft-checkpoint-1", "0.0.9"

    with pytest.raises(CheckpointError, match="'weft-checkpoint-1' of weft 0.0.9") as found:
        decode_manifest(resigned(encode_manifest(GOOD), change), "here")
    assert "wrote" not in str(found.value)
