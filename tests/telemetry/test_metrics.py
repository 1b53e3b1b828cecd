"""Each step stands in the file once, and no crash loses a line that was there."""

import json
from pathlib import Path

import pytest

from weft.telemetry.metrics import Metrics, read, read_header

HEADER = {"run": "tiny"}


def written(path: Path, first: int, last: int) -> Metrics:
    """The still open file of a run that took the steps after `first`, up to `last`."""
    metrics = Metrics(path, HEADER, first_step=first)
    for step in range(first + 1, last + 1):
        metrics.write({"step": step, "loss": 1 / step})
        if step % 3 == 0:
            metrics.write({"step": step, "validation_loss": 2 / step})
    return metrics


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read(path)]


def test_a_line_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = written(path, 0, 4)
    header, *records = map(json.loads, path.read_text().splitlines())
    assert header == {"header": HEADER}
    assert records == read(path)
    assert steps(path) == [1, 2, 3, 3, 4]
    metrics.close()


def test_a_header_is_read_alone_and_is_empty_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 0, 4).close()
    assert read_header(path) == HEADER
    for text in ("", '{"header": {"ru', '{"step": 1}\n'):
        path.write_text(text)
        assert read_header(path) == {}


def test_a_resumed_run_cuts_what_it_is_about_to_do_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 0, 7).close()
    before = read(path)
    written(path, 4, 4).close()
    assert read(path) == [record for record in before if record["step"] <= 4]
    written(path, 4, 6).close()
    assert steps(path) == [1, 2, 3, 3, 4, 5, 6, 6]
    assert path.read_text().count("header") == 1


def test_a_run_that_starts_anew_keeps_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 0, 7).close()
    written(path, 0, 1).close()
    assert steps(path) == [1]


@pytest.mark.parametrize("rest", ['{"step": 8, "lo', "\0\0\0", "\xff"])
def test_a_last_line_cut_short_is_left_out(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 0, 7).close()
    with path.open("ab") as file:
        file.write(rest.encode("latin-1"))
    assert steps(path)[-1] == 7
    written(path, 7, 8).close()
    assert steps(path)[-2:] == [7, 8]
    for line in path.read_text().splitlines():
        json.loads(line)


def test_a_crash_while_the_file_is_written_anew_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 0, 7).close()
    before = path.read_bytes()

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(Killed):
            Metrics(path, HEADER, first_step=4)
    assert path.read_bytes() == before
    assert (tmp_path / "metrics.jsonl.partial").exists()
    written(path, 4, 5).close()  # over what the crash has left
    assert steps(path) == [1, 2, 3, 3, 4, 5]
    assert not (tmp_path / "metrics.jsonl.partial").exists()
