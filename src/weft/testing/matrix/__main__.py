"""Random layouts, impossible ones among them: legal, or refused with one that is.

python -m weft.testing.matrix [COUNT]
"""

import sys
import tempfile
from pathlib import Path

from weft.testing.matrix.refusal import refuse_all

COUNT = 500


def main() -> int:
    """Judges so many recipes and prints what became of them."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    with tempfile.TemporaryDirectory(prefix="weft-refusal-") as folder:
        tally = refuse_all(Path(folder), count)
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
