"""A measured figure with everything needed to read it later: machine, versions, commit, date."""

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from weft.version import __version__

_GPU_FIELDS = ("driver_version", "clocks.sm", "clocks.mem", "power.limit")


def entry(bench: str, device: torch.device, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The line that a benchmark leaves behind."""
    return {
        "bench": bench,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "weft": __version__,
        "machine": machine(device),
        **figures,
    }


def append(file: Path, line: Mapping[str, Any]) -> None:
    """Adds one line to a file of JSON lines, and its folder where there is none.

    In one write: lines of several processes do not mix, and one that is killed leaves no half.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as out:
        out.write(f"{json.dumps(line)}\n".encode())


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure depends on beside the code."""
    facts: dict[str, Any] = {
        "name": name(device),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],  # above the threads in use: somebody else was measuring too
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        facts["cuda"] = torch.version.cuda
        facts |= _gpu(device)
    return facts


def name(device: torch.device) -> str:
    """The device as a word for a folder.

    Example:
        >>> name(torch.device("cpu")).startswith("cpu-")
        True
    """
    if device.type == "cpu":
        return f"cpu-{_word(_processor())}-{os.cpu_count()}"
    return _word(torch.cuda.get_device_name(device))


def commit() -> str:
    """The commit of the source that runs, `-dirty` if changed since; `none` if unknown."""
    return _output(["git", "describe", "--always", "--dirty", "--abbrev=12"], Path(__file__).parent)


def today() -> str:
    """The date as records have it."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _gpu(device: torch.device) -> dict[str, str]:
    """Driver, clocks and power limit as they are now; nothing is set."""
    query = ["nvidia-smi", f"--id={device.index or 0}", f"--query-gpu={','.join(_GPU_FIELDS)}"]
    values = _output([*query, "--format=csv,noheader"], Path.cwd()).split(", ")
    return dict(zip(_GPU_FIELDS, values, strict=True)) if len(values) == len(_GPU_FIELDS) else {}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _output(command: Sequence[str], folder: Path) -> str:
    """What a command prints, `none` where it fails or is not there."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return "none"
    return done.stdout.strip() if done.returncode == 0 else "none"
