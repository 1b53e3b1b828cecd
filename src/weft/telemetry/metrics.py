"""The metrics of a run: `metrics.jsonl`, a header and then one object a step.

The header names the fields that this machine does not measure, with the reason; their values are null. A resumed run
cuts the lines of steps that it is about to do again, so that each step stands in the file once.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

FILE = "metrics.jsonl"


class Metrics:
    """The open file of one run, on one rank."""

    def __init__(self, path: Path, header: Mapping[str, Any], *, first_step: int) -> None:
        kept = _lines_before(path, first_step)
        self._file: IO[str] = path.open("w", encoding="utf-8")
        for line in (json.dumps({"header": header}), *kept):
            self._file.write(line + "\n")
        self._file.flush()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one object."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics file that belong to a step; a last line cut short by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if "header" not in record:
            records.append(record)
    return records


def _lines_before(path: Path, first_step: int) -> list[str]:
    if not path.exists() or first_step == 0:
        return []
    return [json.dumps(r) for r in read(path) if r["step"] <= first_step]
