"""How far are activations off after a crossing in eight bits: by what shares a scale, and by data.

    scripts/bench activation_wire [--json FILE] [--rows N] [--columns N] [--seeds N]

Values in bfloat16 are packed and opened by the bodies of a step (`ops.fp8`). The error is relative
to the values, both in norm; `lost` is the share of values that come back as zero and were not.

    tensor     one scale for all                     compared with only
    token      one for each row                      scales = "token", forward
    channel    one for 128 rows of each column       scales = "token", gradients
    block      one for 128 columns of each row       scales = "block"
    power      the same, rounded up to a power of 2  compared with only
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from weft.bench.record import entry
from weft.compose.plan import BLOCK, CHANNEL_GROUP
from weft.ops import fp8
from weft.testing.tolerance import relative_error

WORD = "bfloat16"
OUTLIERS, TIMES = 8, 60.0  # channels, and how much larger they are
FREEDOM = 3  # of Student's t: heavy tails whose variance is finite
SPREAD = 1.5  # of the logarithm of a row's size


def main() -> None:
    """Measures every granularity on all data and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    found = [row for data in DATA for row in measure(data, options)]
    print("\n".join(table(found)))
    if options.json:
        with options.json.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)


# ---- data ----------------------------------------------------------------------------------------


def gaussian(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Normal values."""
    return torch.randn(rows, columns, generator=generator)


def student(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Student's t: a normal value over the root of a mean of three squares."""
    squares = torch.zeros(rows, columns)
    for _ in range(FREEDOM):
        squares += gaussian(rows, columns, generator).square()
    return gaussian(rows, columns, generator) / (squares / FREEDOM).sqrt()


def outliers(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Normal values with a few channels that are much larger."""
    large = torch.randperm(columns, generator=generator)[:OUTLIERS]
    values = gaussian(rows, columns, generator)
    values[:, large] *= TIMES
    return values


def rows_apart(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Normal rows of log-normal size, as gradients of tokens are."""
    size = torch.randn(rows, 1, generator=generator).mul(SPREAD).exp()
    return gaussian(rows, columns, generator) * size


DATA: Mapping[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "Gaussian": gaussian,
    "Student-t(3)": student,
    "8 channels x 60": outliers,
    "log-normal rows": rows_apart,
}


# ---- scales --------------------------------------------------------------------------------------


def by_tensor(x: Tensor) -> Tensor:
    return fp8.dequantise(*fp8.quantise(x.reshape(1, -1), 1), x.dtype).view_as(x)


def by_columns(columns: int) -> Callable[[Tensor], Tensor]:
    def crossed(x: Tensor) -> Tensor:
        packet = fp8.encode_rows(x, columns=columns or x.shape[1])
        return fp8.decode_rows(packet, columns=columns or x.shape[1], width=x.shape[1], dtype=WORD)

    return crossed


def by_channel(x: Tensor) -> Tensor:
    packet = fp8.encode_blocks(x, ranks=1, group=CHANNEL_GROUP)
    return fp8.decode_blocks(packet, ranks=1, rows=len(x), group=CHANNEL_GROUP, dtype=WORD)


def by_power(x: Tensor) -> Tensor:
    wide = x.float().unflatten(1, (-1, BLOCK))
    scale = (wide.abs().amax(-1, keepdim=True) / fp8.LARGEST).log2().ceil().exp2()
    return ((wide / scale).to(fp8.PAYLOAD).float() * scale).flatten(1).to(x.dtype)


SCALES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tensor": by_tensor,
    "token": by_columns(0),
    "channel": by_channel,
    "block": by_columns(BLOCK),
    "power": by_power,
}
# Such data with scales by tensor, token, block and power, measured before the codec was written.
EARLIER = {
    "Gaussian": (2.66, 2.65, 2.57, 2.66),
    "Student-t(3)": (2.62, 2.50, 2.20, 2.67),
    "8 channels x 60": (2.60, 2.07, 0.91, 2.67),
    "log-normal rows": (2.65, 2.65, 2.56, 2.66),
}
COMPARED = ("tensor", "token", "block", "power")


def measure(data: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The error of each granularity, the median over seeds."""
    errors: dict[str, list[float]] = {name: [] for name in SCALES}
    lost: dict[str, list[float]] = {name: [] for name in SCALES}
    for seed in range(options.seeds):
        generator = torch.Generator().manual_seed(seed)
        x = DATA[data](options.rows, options.columns, generator).to(torch.bfloat16)
        for name, cross in SCALES.items():
            found = cross(x)
            errors[name].append(relative_error(found, x))
            lost[name].append(float(((found == 0) & (x != 0)).float().mean()))
    for name in SCALES:
        figures = {
            "data": data,
            "scales": name,
            "rows": options.rows,
            "columns": options.columns,
            "error": median(errors[name]),
            "least": min(errors[name]),
            "most": max(errors[name]),
            "lost": median(lost[name]),
        }
        yield entry("activation_wire", torch.device("cpu"), figures)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Errors in percent (those measured earlier in brackets), a line a kind of data."""
    found = {(row["data"], row["scales"]): row for row in rows}
    yield f"| data | {' | '.join(SCALES)} | lost by tensor | lost by token |"
    yield f"|---|{'---|' * (len(SCALES) + 2)}"
    for data in DATA:
        before = dict(zip(COMPARED, EARLIER[data], strict=True))
        cells = (
            f"{100 * found[data, name]['error']:.2f}"
            + (f" ({before[name]:.2f})" if name in before else "")
            for name in SCALES
        )
        gone = (f"{100 * found[data, name]['lost']:.2g} %" for name in ("tensor", "token"))
        yield f"| {data} | {' | '.join(cells)} | {' | '.join(gone)} |"


if __name__ == "__main__":
    main()
