"""How far a sum of gradients is off by the time it is home: three wires, from 2 to 512 ranks.

    scripts/bench gradient_wire [--json FILE] [--plot FILE.png] [--elements N] [--seeds N]

The terms are gradient-like: each rank has the same signal and its own noise, ten times as large,
and elements differ in size by a log-normal factor. One block of the sum is made as each wire makes
it, with the bodies of a step (`ops.gradient`); its error is relative to the sum in float64.

    fp32        ((g0 + g1) + g2) + ...            in FP32
    bf16        each term rounded once, then      in FP32
    bf16_ring   each term rounded once, and the sum again at every hop
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from weft.ops.gradient import add_block, decode_grad
from weft.report.figure import BLUE, GREEN, ORANGE, PNG_DPI, new_figure, styled
from weft.testing.tolerance import relative_error

RANKS = tuple(2**k for k in range(1, 10))
NOISE = 10.0  # over the signal: the sum of 512 ranks is then signal and noise in about equal parts
SPREAD = 1.0  # of the logarithm of an element's size
COLORS = {"fp32": GREEN, "bf16": BLUE, "bf16_ring": ORANGE}
ABOVE, BELOW = 7, -14  # points between a curve and its name
NAMES = {
    "fp32": "FP32",
    "bf16": "BF16 all-to-all, FP32 sum",
    "bf16_ring": "BF16 ring",
}


def main() -> None:
    """Measures every wire at every number of ranks and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--elements", type=int, default=1 << 15)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows = [row for ranks in RANKS for row in measure(ranks, options.elements, options.seeds)]
    print("\n".join(table(rows)))
    if options.json:
        with options.json.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    if options.plot:
        draw(rows, options.plot)


def measure(ranks: int, elements: int, seeds: int) -> Iterator[dict[str, Any]]:
    """The error of each wire, the median over seeds."""
    errors: dict[str, list[float]] = {name: [] for name in NAMES}
    for seed in range(seeds):
        terms = gradients(ranks, elements, seed)
        exact = terms.double().sum(0)
        for name, found in sums(terms).items():
            errors[name].append(relative_error(found, exact))
    for name, found in errors.items():
        yield {
            "benchmark": "gradient_wire",
            "wire": name,
            "ranks": ranks,
            "elements": elements,
            "error": median(found),
            "least": min(found),
            "most": max(found),
        }


def gradients(ranks: int, elements: int, seed: int) -> Tensor:
    """Terms of all ranks for one block. Shapes: [ranks, elements]."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randn(elements, generator=generator).mul_(SPREAD).exp_()
    signal = torch.randn(elements, generator=generator)
    noise = torch.randn(ranks, elements, generator=generator)
    return noise.mul_(NOISE).add_(signal).mul_(size)


def sums(terms: Tensor) -> dict[str, Tensor]:
    """The block as each wire makes it; the ring starts behind its owner, which adds last."""
    ranks, elements = terms.shape
    rounded = terms.to(torch.bfloat16)
    whole = terms[0].clone()
    for term in terms[1:]:
        whole += term
    partial = rounded[0]
    for term in rounded[1:]:
        partial = add_block(partial, term, block=0)
    exchanged = decode_grad(rounded.view(-1), torch.empty(elements), ranks=ranks)
    return {"fp32": whole, "bf16": exchanged, "bf16_ring": partial}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The errors in percent, a line a wire."""
    found = {(row["wire"], row["ranks"]): 100 * row["error"] for row in rows}
    yield f"| ranks | {' | '.join(map(str, RANKS))} |"
    yield f"|---|{'---|' * len(RANKS)}"
    for name, words in NAMES.items():
        yield f"| {words} | {' | '.join(f'{found[name, n]:.2g} %' for n in RANKS)} |"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Error over ranks, both in logarithms."""
    with styled():
        figure = new_figure()
        axes = figure.add_subplot()
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for name, words in NAMES.items():
            points = [(row["ranks"], 100 * row["error"]) for row in rows if row["wire"] == name]
            axes.plot(*zip(*points, strict=True), color=COLORS[name], marker="o", markersize=3)
            axes.annotate(
                words, points[-2], (0, BELOW if name == "bf16" else ABOVE), fontsize=8,
                textcoords="offset points", color=COLORS[name], ha="right",
            )  # fmt: skip
        axes.set_xticks(RANKS, [str(n) for n in RANKS])
        axes.set_xlabel("ranks", fontsize=8)
        axes.set_title("relative error of a summed gradient, %", loc="left", fontsize=8)
        figure.savefig(path, dpi=PNG_DPI)


if __name__ == "__main__":
    main()
