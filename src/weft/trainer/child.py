"""One rank as a process: `python -m weft.trainer.child RECIPE MEETING RANK WORLD CHECKPOINT`, started by `launch`."""

import sys
from pathlib import Path

from weft.config.load import load
from weft.errors import ConfigError, DataError, LayoutError, WeftError
from weft.runtime.backends import pick_device
from weft.trainer.rank import run_rank
from weft.trainer.session import Place


def main(arguments: list[str]) -> int:
    """Runs the rank; errors that weft raises on purpose are one line, others a traceback."""
    recipe, meeting, rank, world, checkpoint = arguments
    try:
        config = load(recipe)
        place = Place(
            rank=int(rank),
            world=int(world),
            device=pick_device(config.train.device, int(rank)),
            meeting=f"file://{meeting}",
        )
        run_rank(config, place, Path(checkpoint) if checkpoint else None)
    except (ConfigError, DataError, LayoutError) as error:
        print(error, file=sys.stderr)
        return 2
    except WeftError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
