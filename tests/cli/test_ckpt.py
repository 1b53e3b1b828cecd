"""A checkpoint says what it is, whether it is whole, and is written again in other files."""

from pathlib import Path

import pytest
import typer
from tests.checkpoint.conftest import equal, make_tensors, read_all, save_alone

from weft.cli.ckpt import convert, inspect, verify
from weft.errors import CheckpointError


def test_inspect_names_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_alone(tmp_path, make_tensors(), 3)
    newest = save_alone(tmp_path, make_tensors(), 7)
    inspect(tmp_path)
    shown = capsys.readouterr().out
    assert shown.startswith(f"{newest}\n  step        7\n")
    assert "  experts     3\n" in shown
    assert "  master      7 tensors, 176 elements, float32" in shown


def test_verify_reads_all_checkpoints_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (save_alone(tmp_path, make_tensors(), step) for step in (3, 7))
    verify(tmp_path)
    assert capsys.readouterr().out.count("good ") == 2
    shard = new / "rank-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(typer.Exit) as ended:
        verify(tmp_path)
    assert ended.value.exit_code == 1
    assert "BAD   checkpoint" in capsys.readouterr().out
    verify(old)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        verify(tmp_path / "nowhere")


@pytest.mark.parametrize("shards", [1, 3])
def test_convert_writes_the_same_in_other_files(tmp_path: Path, shards: int) -> None:
    tensors = make_tensors()
    source = save_alone(tmp_path / "run", tensors, 3)
    convert(tmp_path / "run", tmp_path / "other", to="weft", shards=shards, dtype="float32")
    made = tmp_path / "other" / source.name
    assert len(list(made.glob("*.safetensors"))) == shards
    assert equal(read_all(made), tensors)
