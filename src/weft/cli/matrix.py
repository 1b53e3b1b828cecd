"""The text of `weft verify --matrix`: one line a layout, a summary, or all of it as JSON."""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft.testing.matrix.prove import Verdict

_COUNT, _NAME, _WIRE, _CELL = 3, 42, 11, 9  # columns of a terminal
_EXACT = ("loss64", "grads64", "routing")  # the checks whose worst figures end the table
_SHOWN = ("loss64", "grads64", "routing", "overlap", "replicas", "bytes")


def prove_matrix(*, sabotage: str, only: str, quick: bool, as_json: bool) -> bool:
    """Proves the rows whose line holds the words of `only`; whether all of them hold."""
    from weft.testing.matrix.prove import LENGTH, prepare, prove_all
    from weft.testing.matrix.table import every_row
    from weft.testing.sabotage import HONEST, SABOTAGES
    from weft.testing.verify import QUICK_LENGTH

    began = time.monotonic()
    rows = [row for row in every_row() if set(only.split()) <= set(row.name.split())]
    if not as_json:
        print("\n".join(_opening(len(rows), sabotage)), flush=True)
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="weft-matrix-") as folder:
        matrix = prepare(
            Path(folder),
            sorted({row.model for row in rows}),
            length=QUICK_LENGTH if quick else LENGTH,
            sabotage=SABOTAGES[sabotage] if sabotage else HONEST,
        )
        for verdict in prove_all(matrix, rows):
            verdicts.append(verdict)
            if not as_json:
                done = f"{len(verdicts):>{_COUNT}}/{len(rows)} "
                print("\n".join(_lines(verdict, done)), flush=True)
    seconds = time.monotonic() - began
    print(_json(verdicts, seconds) if as_json else _summary(verdicts, seconds))
    return bool(verdicts) and not any(verdict.faults for verdict in verdicts)


def _opening(count: int, sabotage: str) -> Iterator[str]:
    yield f"{count} rows against one rank: largest relative errors, bytes of all ranks"
    if sabotage:
        yield f"SABOTAGED: {sabotage}; the command must fail"
    cells = "".join(f"{name:>{_CELL}}" for name in _SHOWN)
    done = " " * (_COUNT + len(f"/{count} "))
    yield f"\n{done}{'':<6}{'layout':<{_NAME}}{'ranks':<{_WIRE}}{cells}{'s':>7}"


def _lines(verdict: "Verdict", done: str) -> Iterator[str]:
    name = verdict.row.name
    if verdict.impossible and not verdict.faults:
        yield f"{done}{'none':<6}{name:<{_NAME}}{verdict.impossible}"
        return
    found = {check.name: "FAIL" if check.fault else check.figure for check in verdict.checks}
    cells = "".join(f"{found.get(check, '-'):>{_CELL}}" for check in _SHOWN)
    state = "FAIL" if verdict.faults else "ok"
    yield f"{done}{state:<6}{name:<{_NAME}}{_wire(verdict):<{_WIRE}}{cells}{verdict.seconds:>7.1f}"
    for fault in verdict.faults:
        yield f"      {fault.name}: {fault.fault}"


def _wire(verdict: "Verdict") -> str:
    return f"{verdict.ranks} {'gloo' if verdict.row.processes else 'stacked'}"


def _summary(verdicts: Sequence["Verdict"], seconds: float) -> str:
    proved = [verdict for verdict in verdicts if verdict.checks]
    gloo = sum(verdict.row.processes for verdict in proved)
    refused = sum(bool(verdict.impossible) for verdict in verdicts)
    checks = sum(len(verdict.checks) for verdict in proved)
    faults = [
        f"{verdict.row.name}, {fault.name}: {fault.fault.splitlines()[0]}"
        for verdict in verdicts
        for fault in verdict.faults
    ]
    state = f"{len(faults)} FAIL; first: {faults[0]}" if faults else "all hold"
    worst = "".join(f"\nworst {name:<9}{_worst(proved, name)}" for name in _EXACT)
    return (
        f"{worst}\n"
        f"{len(proved) - gloo} rows stacked, {gloo} over gloo, {refused} that cannot exist; "
        f"{checks} checks, {seconds:.0f} s: {state}"
    )


def _worst(verdicts: Sequence["Verdict"], name: str) -> str:
    """The largest figure of a check, and the row that has it."""
    figures = {
        verdict.row.name: float(check.figure)
        for verdict in verdicts
        for check in verdict.checks
        if check.name == name
    }
    if not figures:
        return "-"
    row = max(figures, key=figures.__getitem__)
    return f"{figures[row]:.1e}  {row}"


def _json(verdicts: Sequence["Verdict"], seconds: float) -> str:
    rows = [_record(verdict) for verdict in verdicts]
    holds = not any(verdict.faults for verdict in verdicts)
    return json.dumps({"holds": holds, "seconds": round(seconds, 1), "rows": rows}, indent=1)


def _record(verdict: "Verdict") -> dict[str, Any]:
    return {
        "layout": verdict.row.name,
        "overrides": verdict.row.overrides,
        "ranks": verdict.ranks,
        "wire": "gloo" if verdict.row.processes else "stacked",
        "impossible": verdict.impossible,
        "checks": {check.name: check.figure for check in verdict.checks},
        "faults": {check.name: check.fault for check in verdict.faults},
        "seconds": round(verdict.seconds, 2),
    }
