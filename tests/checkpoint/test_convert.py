"""Cut otherwise, a checkpoint is the same; a copy that is not is refused."""

from pathlib import Path

import pytest
from tests.checkpoint.conftest import cut, equal, make_tensors, read_all, save_alone, save_together

from weft.checkpoint import convert as room
from weft.checkpoint.convert import convert, describe
from weft.checkpoint.verify import read_manifest
from weft.errors import CheckpointError


def test_any_number_of_shards_holds_the_same_bits(tmp_path: Path) -> None:
    tensors = make_tensors()
    save_together(tmp_path / "run", cut(tensors, 3, lambda n: (n // 3, 5)), 1)
    source = tmp_path / "run" / "step-00000001"
    for shards in (1, 2, 5):
        made = convert(source, tmp_path / f"in-{shards}", shards=shards)
        assert equal(read_all(made), tensors)
        assert read_manifest(made).fingerprints == read_manifest(source).fingerprints
        again = convert(made, tmp_path / f"back-{shards}", shards=3)
        assert equal(read_all(again), tensors)


def test_a_swapped_expert_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_alone(tmp_path / "run", make_tensors(), 1)
    honest = room._pieces

    def swap(checkpoint, number, shards):
        names = {"layers.0.experts.0.gate": "layers.0.experts.1.gate"}
        names |= {there: here for here, there in names.items()}
        for piece in honest(checkpoint, number, shards):
            other = names.get(piece.name, piece.name)
            tensor = checkpoint.read(piece.kind, other, piece.start, piece.stop)
            yield room.Piece(
                kind=piece.kind,
                name=piece.name,
                shape=piece.shape,
                start=piece.start,
                stop=piece.stop,
                tensor=tensor,
            )

    monkeypatch.setattr(room, "_pieces", swap)
    with pytest.raises(CheckpointError, match="holds other experts"):
        convert(source, tmp_path / "other", shards=2)


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    source = save_alone(tmp_path / "run", make_tensors(), 1)
    with pytest.raises(CheckpointError, match="exists; expected a place of its own"):
        convert(source, tmp_path / "run", shards=2)


def test_a_description_counts(tmp_path: Path) -> None:
    source = save_alone(tmp_path, make_tensors(), 1)
    text = describe(source, read_manifest(source))
    assert "  state       1 tensors, 4 elements, int64" in text
    assert "  model       not said" in text
