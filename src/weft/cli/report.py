"""`weft report RUN`: what happened in a run, on one page."""

import time

from weft.cli.arguments import RunFolder
from weft.report.run import read_run
from weft.report.status import look


def report(run: RunFolder) -> None:
    """Write RUN/report/index.html, one file that needs nothing else, and its figures as PNG."""
    found = read_run(run)
    from weft.report.page import write_report  # matplotlib takes a second to import

    path = write_report(look(found, "", now=time.time()))
    print(f"{path}, and {len(list(path.parent.glob('*.png')))} figures beside it")
