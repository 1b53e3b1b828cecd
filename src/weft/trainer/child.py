"""One rank as a process of its own, started by `launch`.

    python -m weft.trainer.child RECIPE SCRATCH RANK WORLD CHECKPOINT PARENT

SCRATCH is a folder that the ranks and their supervisor share: where they meet, what each shows of
itself, and the stack it writes when it gets SIGUSR1. A rank ends when its parent does, however that
ended; one that failed ends as soon as it has said why.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from weft.config.load import load
from weft.errors import ConfigError, DataError, LayoutError, StoppedError, WeftError
from weft.runtime.backends import pick_device
from weft.trainer.pulse import Pulse, no_fail
from weft.trainer.rank import run_rank
from weft.trainer.session import Place
from weft.trainer.stop import ENDED, STOPPED, listening

LOOK_SECONDS = 0.5  # how long a rank may outlive a parent that was killed
WIRE_PATIENCE = 2.0  # a wire gives up after the supervisor, who knows whose fault it is
_FIRST_SECONDS = 600.0  # a first step may compile kernels


def main(arguments: Sequence[str], *, fail_point: Callable[[str], None] = no_fail) -> int:
    """Runs the rank; errors that weft raises on purpose are one line, others a traceback."""
    recipe, scratch, rank, world, checkpoint, parent = arguments
    _end_with(int(parent))
    stack = Path(scratch, f"stack-{rank}").open("w")  # noqa: SIM115 - open as long as the process
    faulthandler.register(signal.SIGUSR1, file=stack)
    try:
        config = load(recipe)
        with listening() as stop:
            place = Place(
                rank=int(rank),
                world=int(world),
                device=pick_device(config.train.device, int(rank)),
                meeting=f"file://{scratch}/meeting",
                neighbours=int(world),
                timeout_seconds=WIRE_PATIENCE * max(config.train.timeout_seconds, _FIRST_SECONDS),
                stop=stop,
                pulse=Pulse(Path(scratch, f"pulse-{rank}"), fail_point),
            )
            run_rank(config, place, Path(checkpoint) if checkpoint else None)
    except (ConfigError, DataError, LayoutError) as error:
        print(error, file=sys.stderr)
        return 2
    except StoppedError as stopped:
        return stopped.code
    except WeftError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent; a parent killed with -9 ends nothing itself."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=look, name="parent", daemon=True).start()


def run(arguments: Sequence[str]) -> NoReturn:
    """Ends this process as `main` says.

    After a failure at once: an interpreter that is taken down while threads wait inside a
    collective that never ends is aborted, and an abort looks like another failure.
    """
    try:
        code = main(arguments)
    except BaseException:  # noqa: BLE001 - whatever it was, it is told and this process ends
        traceback.print_exc()
        code = 1
    if code in (0, STOPPED, ENDED):
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run(sys.argv[1:])
