"""Random layouts, impossible ones among them: legal, or refused with one that is.

python -m weft.testing.matrix [COUNT]
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from weft.runtime.backends import prepare as prepare_torch
from weft.testing.matrix.model import recipe
from weft.testing.matrix.prove import AT_ONCE, side_by_side
from weft.testing.matrix.refusal import MODEL, joined, refuse_all

COUNT = 500


def main() -> int:
    """Judges so many recipes and prints what became of them."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    prepare_torch(torch.device("cpu"), threads=1, neighbours=AT_ONCE)  # before anything forks
    with tempfile.TemporaryDirectory(prefix="weft-refusal-") as folder:
        recipe(Path(folder), MODEL)  # writes the corpus that the children read
        parts = [range(count)[part::AT_ONCE] for part in range(AT_ONCE)]
        work = partial(refuse_all, Path(folder))
        tally = joined(list(side_by_side(work, parts, at_once=AT_ONCE)))
    rules = ", ".join(f"{key} {times}" for key, times in tally.rules.most_common())
    lines = (
        f"{tally.recipes} layouts: {tally.legal} legal, {tally.refused} refused ({rules})",
        f"a legal one was reached by {tally.proposals} proposals, {tally.at_once} times by one",
        *(f"FAIL {fault}" for fault in tally.faults),
    )
    sys.stdout.write("\n".join(lines) + "\n")
    return int(bool(tally.faults) or not tally.refused)


if __name__ == "__main__":
    sys.exit(main())
