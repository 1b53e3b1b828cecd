"""The metrics of a run: `metrics.jsonl`, a header and then one object a step.

The header names the fields that this machine does not measure, with the reason; their values are
null. A resumed run cuts the lines of steps that it is about to do again, so that each step stands
in the file once: it writes what stays beside the file and renames it, so that a crash loses no
line.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

FILE = "metrics.jsonl"


class Metrics:
    """The open file of one run, on one rank."""

    def __init__(self, path: Path, header: Mapping[str, Any], *, first_step: int) -> None:
        self._path = path
        self._header = header
        self._file: IO[str] = self._begin(first_step)

    def _begin(self, step: int) -> IO[str]:
        lines = [json.dumps({"header": self._header}), *_lines_until(self._path, step)]
        aside = self._path.with_name(self._path.name + ".partial")
        aside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        aside.replace(self._path)
        return self._path.open("a", encoding="utf-8")

    def cut(self, step: int) -> None:
        """Forgets the steps after this one: they are done again."""
        self._file.close()
        self._file = self._begin(step)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one object."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics file that belong to a step; a last line cut short by a crash is left
    out.
    """
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if "header" not in record:
            records.append(record)
    return records


def read_header(path: Path) -> dict[str, Any]:
    """The header of a metrics file; empty where a crash has left none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    try:
        return json.loads(first).get("header", {})
    except json.JSONDecodeError:
        return {}


def _lines_until(path: Path, step: int) -> list[str]:
    """The lines of the steps that are done; none of an earlier run when this one starts anew."""
    if not path.exists() or step == 0:
        return []
    return [json.dumps(record) for record in read(path) if record["step"] <= step]
