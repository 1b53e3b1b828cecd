"""`python -m weft.testing.chaos [--full SCALE] [NAME ...]`: breaks what can break, and looks.

Without a name all checks run, at the size of CI: at most eight minutes on two cores. A scale
between 0 and 1 takes so much more, 1 the full sizes. Exit code 1 if a promise is broken, or a
check could not have told.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from weft.testing.chaos import damage, disk, ending, inputs, killing, order, poison, reshape
from weft.testing.chaos.result import Check, Size

CHECKS: Mapping[str, Check] = {
    "kill": killing.check,
    "prefix": damage.check_prefixes,
    "damage": damage.check_damage,
    "fallback": damage.check_fallback,
    "disk": disk.check,
    "stop": ending.check_stop,
    "hang": ending.check_hang,
    "throw": ending.check_throw,
    "finite": poison.check,
    "order": order.check,
    "reshape": reshape.check,
    "shards": inputs.check_shards,
    "code": damage.check_code,
    "recipes": inputs.check_recipes,
}


def main() -> int:
    """Runs the checks that were asked for, one after the other."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CHECKS))
    parser.add_argument("--full", nargs="?", type=float, const=1.0, default=0.0, metavar="SCALE")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in CHECKS]
    if unknown:
        parser.error(f"no check {unknown[0]}; expected one of {', '.join(CHECKS)}")
    torch.set_num_threads(1)
    broken = 0
    for name in arguments.names or CHECKS:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=f"weft-chaos-{name}-") as folder:
            size = Size(folder=Path(folder), scale=arguments.full, seed=arguments.seed)
            result = CHECKS[name](size)
        broken += not result.holds
        seconds = time.perf_counter() - begun
        sys.stdout.write(f"{result} ({seconds:.0f} s)\n")
        sys.stdout.flush()
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
