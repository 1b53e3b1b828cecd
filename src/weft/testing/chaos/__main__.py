"""`python -m weft.testing.chaos [--full SCALE] [--jobs N] [NAME ...]`: breaks what can break.

Without a name all checks run, at the size of CI: at most eight minutes on two cores. A scale
between 0 and 1 takes so much more, 1 the full sizes; jobs are shares of a check that run side by
side. Exit code 1 if a promise is broken, or a check could not have told.
"""

import argparse
import sys
import time

import torch

from weft.testing.chaos.result import add_up
from weft.testing.chaos.share import CHECKS, Share, run_shares, shares_of


def main() -> int:
    """Runs the checks that were asked for, and tells each when it is done."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CHECKS))
    parser.add_argument("--full", nargs="?", type=float, const=1.0, default=0.0, metavar="SCALE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, metavar="N")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in CHECKS]
    if unknown:
        parser.error(f"no check {unknown[0]}; expected one of {', '.join(CHECKS)}")
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs}: expected at least 1")
    torch.set_num_threads(1)
    begun, broken = time.perf_counter(), 0
    shares: list[Share] = [
        share
        for name in arguments.names or CHECKS
        for share in shares_of(name, scale=arguments.full, seed=arguments.seed, jobs=arguments.jobs)
    ]
    for results in run_shares(shares, jobs=arguments.jobs):
        result = add_up(results)
        broken += not result.holds
        beside = f" in {len(results)} shares" if len(results) > 1 else ""
        sys.stdout.write(f"{result} (after {time.perf_counter() - begun:.0f} s{beside})\n")
        sys.stdout.flush()
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
