"""One rank as a process of its own, started by `launch`.

    python -m weft.trainer.child RECIPE MEETING RANK WORLD CHECKPOINT PARENT

It ends when its parent does, however that ended.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from weft.config.load import load
from weft.errors import ConfigError, DataError, LayoutError, WeftError
from weft.runtime.backends import pick_device
from weft.trainer.rank import run_rank
from weft.trainer.session import Place

LOOK_SECONDS = 0.5  # how long a rank may outlive a parent that was killed


def main(arguments: Sequence[str]) -> int:
    """Runs the rank; errors that weft raises on purpose are one line, others a traceback."""
    recipe, meeting, rank, world, checkpoint, parent = arguments
    _end_with(int(parent))
    try:
        config = load(recipe)
        place = Place(
            rank=int(rank),
            world=int(world),
            device=pick_device(config.train.device, int(rank)),
            meeting=f"file://{meeting}",
            neighbours=int(world),
        )
        run_rank(config, place, Path(checkpoint) if checkpoint else None)
    except (ConfigError, DataError, LayoutError) as error:
        print(error, file=sys.stderr)
        return 2
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
