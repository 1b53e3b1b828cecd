"""Their documents are ours, with the end of text before each; what does not fit is refused."""

import random
from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import write_megatron

from weft.data.sources.megatron import open_megatron
from weft.data.stream import Ordered
from weft.data.tokenizer import Bytes
from weft.errors import DataError

END = 256
DOCUMENTS = [[[1, 2], [3, END]], [[4, END]], [[5, 6, 7]], [[END]], []]


@pytest.mark.parametrize(("code", "dtype"), [(8, "<u2"), (4, "<i4"), (5, "<i8")])
@pytest.mark.parametrize("suffix", ["", ".bin", ".idx"])
def test_documents_are_read_with_one_end_of_text_between_them(
    tmp_path: Path, code: int, dtype: str, suffix: str
) -> None:
    stem = write_megatron(tmp_path / "a_text_document", DOCUMENTS, code=code, dtype=dtype)
    stream, _ = open_megatron(str(stem) + suffix, Bytes())
    whole = [END, 1, 2, 3, END, 4, END, 5, 6, 7, END]
    assert Ordered(stream).read(0, 99).tolist() == whole
    for first in range(11):
        for last in range(first, 12):
            assert Ordered(stream).read(first, last).tolist() == whole[first:last]
    backwards = Ordered(stream, np.array([2, 0, 3, 1]))
    assert backwards.read(0, 99).tolist() == [END, 5, 6, 7, END, 1, 2, 3, END, END, 4]


def test_a_token_outside_the_vocabulary_is_refused_where_it_lies(tmp_path: Path) -> None:
    stream, _ = open_megatron(write_megatron(tmp_path / "a", [[[1]], [[2, 257]]]), Bytes())
    assert Ordered(stream).read(0, 2).tolist() == [END, 1]
    with pytest.raises(DataError, match="document 1: token 257.*expected 0 to 256"):
        Ordered(stream).read(0, 9)


def test_files_changed_after_the_start_are_noticed(tmp_path: Path) -> None:
    stem = write_megatron(tmp_path / "a", [[[1, 2, 3]]])
    stream, _ = open_megatron(stem, Bytes())
    with stem.with_name("a.bin").open("r+b") as file:
        file.truncate(2)
    with pytest.raises(DataError, match="changed while"):
        Ordered(stream).read(0, 4)
    with pytest.raises(DataError, match="2 bytes, the index needs 6"):
        open_megatron(stem, Bytes())


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read .*NAME"):
        open_megatron(tmp_path / "nowhere", Bytes())
    with pytest.raises(DataError, match="no tokens"):
        open_megatron(write_megatron(tmp_path / "a", []), Bytes())
    (tmp_path / "a.bin").unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.bin"):
        open_megatron(tmp_path / "a", Bytes())


def test_a_mutated_index_is_refused_or_harmless_and_never_a_traceback(tmp_path: Path) -> None:
    draw = random.Random(0)
    stem = write_megatron(tmp_path / "a", DOCUMENTS)
    idx = stem.with_name("a.idx")
    content = idx.read_bytes()
    refused = 0
    for _ in range(200):
        changed = bytearray(content)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        idx.write_bytes(changed[: draw.randrange(len(changed))] if draw.random() < 0.2 else changed)
        try:
            stream, _ = open_megatron(stem, Bytes())
            assert Ordered(stream).read(0, 99).max() <= END
        except DataError as error:
            refused += "a." in str(error)
    assert refused > 150
