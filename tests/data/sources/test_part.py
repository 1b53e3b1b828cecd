"""Parts cover everything once, in order; files are found by how their names end."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.data.sources.part import in_parts, list_files, walk
from weft.errors import DataError


@given(st.lists(st.integers(0, 20), max_size=20), st.integers(1, 30))
def test_parts_cover_all_things_in_order_and_stay_within_the_limit(sizes, limit) -> None:
    parts = in_parts(len(sizes), lambda i: sizes[i], limit=limit)
    assert [i for a, b in parts for i in range(a, b)] == list(range(len(sizes)))
    assert all(b == a + 1 or sum(sizes[a:b]) <= limit for a, b in parts)


def test_files_are_found_below_a_folder_or_named(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/c.jsonl", "a/d.txt", ".hidden/e.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert list_files(tmp_path, (".jsonl",)) == (tmp_path, ["a/c.jsonl", "b.jsonl"])
    assert list_files(tmp_path / "a" / "d.txt", (".jsonl",)) == (tmp_path / "a", ["d.txt"])
    assert [f.name for f in walk(tmp_path, skipped=frozenset({"a"}))] == ["b.jsonl"]
    for path in (None, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="data.path"):
            list_files(path, (".jsonl",))
    with pytest.raises(DataError, match="no files to read"):
        list_files(tmp_path, (".parquet",))
