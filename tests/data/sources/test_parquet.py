"""Rows are documents; without the library the extra is named."""

import importlib.util
import sys
from pathlib import Path

import pytest

from weft.data.document import Fields, Sieve
from weft.data.sources import parquet
from weft.errors import DataError

needs_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed"
)


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"weft\[parquet\]"):
        parquet.cut(tmp_path, 100)


@needs_pyarrow
@pytest.mark.parametrize("part_bytes", [1, 10**9])
def test_rows_are_read_once_whatever_the_parts(tmp_path: Path, part_bytes: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet as library

    texts = [f"text {i}" for i in range(10)]
    table = pa.table({"text": [*texts, None], "other": list(range(11))})
    library.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    sieve = Sieve("skip")
    parts = parquet.cut(tmp_path, part_bytes)
    assert len(parts) == (4 if part_bytes == 1 else 1)
    found = [d for part in parts for d in parquet.read(part, Fields(), sieve)]
    assert [d.content.decode() for d in found] == texts
    assert len({d.name for d in found}) == 10
    assert len(sieve.skipped) == 1
    with pytest.raises(DataError, match="no column 'nothing'; found text, other"):
        list(parquet.read(parts[0], Fields(text="nothing"), sieve))


@needs_pyarrow
def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        parquet.cut(tmp_path, 100)
