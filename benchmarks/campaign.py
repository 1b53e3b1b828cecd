"""Every measurement on GPUs that the docs are made of, by one command, in order of worth.

    python benchmarks/campaign.py FOLDER [--gpus 1|2] [--budget SECONDS] [--only WORD]*
    python benchmarks/campaign.py FOLDER --list
    python benchmarks/campaign.py FOLDER --device cpu       a trial: the same commands, tiny

Each runs as a process of its own under a limit of its own, and leaves in FOLDER what it measured,
NAME.jsonl, and what it said, NAME.log. A line is printed as it begins and as it ends; what failed
or ran out of its limit is quoted. `state.json` says how far all of it is: a second call goes on
where the first ended, and tries once more what did not end well. Nothing is started whose limit is
beyond what is left of the budget, so that a call ends inside it.

What is measured is a value: `measurement.py`.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from measurement import MEASUREMENTS, Measurement

from weft.planner.machine import nearest
from weft.runtime.backends import accelerator

ROOT = Path(__file__).parents[1]
STATE = "state.json"
TRIES = 2
QUOTED = 12  # lines of one that did not end well


class Outcome(StrEnum):
    """How a measurement ended; one that is `BEGUN` and not running was killed."""

    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"
    RAN_OUT = "ran out"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """How the last try of a measurement went, and which try that was."""

    outcome: Outcome
    tries: int
    seconds: float


State = dict[str, Entry]


# ---- what is known -------------------------------------------------------------------------------


def key(one: Measurement, device: str) -> str:
    """A measurement among others of the same folder."""
    return f"{one.name} on {one.gpus} {device}"


def read_state(folder: Path) -> State:
    """What the folder says of earlier calls."""
    file = folder / STATE
    if not file.exists():
        return {}
    found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {
        name: Entry(outcome=Outcome(e["outcome"]), tries=e["tries"], seconds=e["seconds"])
        for name, e in found.items()
    }


def write_state(folder: Path, state: State) -> None:
    """The same, in place of what it had said."""
    fresh = folder / f"{STATE}.part"
    fresh.write_text(json.dumps({n: asdict(e) for n, e in state.items()}, indent=1) + "\n")
    fresh.replace(folder / STATE)


def is_open(entry: Entry | None) -> bool:
    """Whether a measurement is still to be made."""
    return entry is None or (entry.outcome is not Outcome.DONE and entry.tries < TRIES)


# ---- one measurement -----------------------------------------------------------------------------


def word(name: str) -> str:
    """A name as that of a file.

    Example:
        >>> word("step Q 8 layers")
        'step-q-8-layers'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def filled(command: Sequence[str], name: str, folder: Path) -> list[str]:
    """A command with its places filled."""
    here = accelerator(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    places = {
        "{machine}": nearest(here).name,
        "{python}": sys.executable,
        "{file}": str(folder / f"{word(name)}.jsonl"),
        "{folder}": str(folder),
    }
    for place, text in places.items():
        command = [each.replace(place, text) for each in command]
    return list(command)


def run(command: Sequence[str], *, limit: float, log: Path) -> tuple[Outcome, float]:
    """Runs a command until it ends or its limit; nothing it has started is left behind."""
    begun = time.monotonic()
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as said:
        # a process group of its own, so that all that it starts can be ended at once
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=said, stderr=said, process_group=0
        )
        try:
            good = process.wait(timeout=limit) == 0
            outcome = Outcome.DONE if good else Outcome.FAILED
        except subprocess.TimeoutExpired:
            outcome = Outcome.RAN_OUT
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return outcome, time.monotonic() - begun


def last_lines(log: Path) -> Iterator[str]:
    """The end of what a command said."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-QUOTED:]:
        yield f"    | {line}"


# ---- all of them ---------------------------------------------------------------------------------


def go(wanted: Sequence[Measurement], folder: Path, *, device: str, budget: float) -> bool:
    """Makes what is still to be made inside the budget; whether all that was tried went well."""
    folder.mkdir(parents=True, exist_ok=True)
    state, ends, well = read_state(folder), time.monotonic() + budget, True
    for one in wanted:
        name = key(one, device)
        entry = state.get(name)
        left = ends - time.monotonic()
        if not is_open(entry):
            continue
        if one.limit > left:
            say(f"{one.name}: left for another call, may take {one.limit} s of {left:.0f}")
            continue
        tries = 1 + (entry.tries if entry else 0)
        state[name] = Entry(outcome=Outcome.BEGUN, tries=tries, seconds=0.0)
        write_state(folder, state)
        say(f"{one.name}: begins, at most {one.limit} s: {one.question}")
        log = folder / f"{word(one.name)}.log"
        command = filled(one.command(device), one.name, folder)
        outcome, seconds = run(command, limit=one.limit, log=log)
        state[name] = Entry(outcome=outcome, tries=tries, seconds=round(seconds, 1))
        write_state(folder, state)
        say(f"{one.name}: {outcome.value} after {seconds:.1f} s, {log}")
        if outcome is not Outcome.DONE:
            well = False
            say("\n".join(last_lines(log)))
    say(summary(wanted, state, device))
    return well


def summary(wanted: Sequence[Measurement], state: State, device: str) -> str:
    """How far all of it is, and what was given up."""
    entries = {one.name: state.get(key(one, device)) for one in wanted}
    done = [name for name, e in entries.items() if e and e.outcome is Outcome.DONE]
    lost = [name for name, e in entries.items() if not is_open(e) and name not in done]
    told = f"; given up after {TRIES} tries: {', '.join(lost)}" if lost else ""
    return f"{len(done)} of {len(wanted)} done, {len(wanted) - len(done) - len(lost)} open{told}"


def listing(wanted: Sequence[Measurement], folder: Path, device: str) -> Iterator[str]:
    """A line for each measurement: its limit, how it went, what it answers."""
    state = read_state(folder)
    for one in wanted:
        entry = state.get(key(one, device))
        how = f"{entry.outcome.value}, {entry.seconds:.0f} s" if entry else "open"
        yield f"{one.name:<26} {one.gpus} GPU(s), {one.limit:>3} s  {how:<14} {one.question}"


def say(text: str) -> None:
    print(text, flush=True)


def end(number: int, _frame: object) -> None:
    """Ends the campaign in order: what it runs is ended with it."""
    raise SystemExit(128 + number)  # as shells count a signal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpus", type=int, choices=(1, 2), help="all there are, if not given")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds of this call")
    parser.add_argument("--only", action="append", help="measurements whose names have a word")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--list", action="store_true", help="says what there is, measures nothing")
    options = parser.parse_args()
    on_paper = options.device == "cpu" or options.list
    here = 2 if on_paper else min(torch.cuda.device_count(), 2)
    gpus = options.gpus or here
    if gpus == 0 or gpus > here:
        parser.error(f"found {here} CUDA devices, expected {gpus or 1}; try --device cpu, a trial")
    words = options.only or [""]
    wanted = [m for m in MEASUREMENTS if m.gpus == gpus and any(w in m.name for w in words)]
    if not wanted:
        parser.error(f"no measurement on {gpus} GPU(s) has a name with {words}; try --list")
    folder = options.folder.resolve()
    if options.list:
        say("\n".join(listing(wanted, folder, options.device)))
        return
    signal.signal(signal.SIGTERM, end)
    sys.exit(0 if go(wanted, folder, device=options.device, budget=options.budget) else 1)


if __name__ == "__main__":
    main()
