"""weft: mixture-of-experts training whose communication is small, hidden and compressed.

Two doors lead to everything: the command `weft`, and these functions.
"""

from typing import Any

from weft.version import __version__ as __version__


def load(path: str, *overrides: str) -> Any:
    """The recipe in a TOML file, with `key.path=value` overrides: a `weft.config.run.RunConfig`."""
    from weft.config.load import (
        load as load_recipe,
    )  # the score must import without the config library's cost

    return load_recipe(path, overrides)


def train(config: Any, *, nproc: int | None = None, resume: str = "auto") -> None:
    """Trains a recipe on this machine, as `weft train` does."""
    from weft.trainer.launch import (
        train as train_recipe,
    )  # torch is imported only where it is needed

    train_recipe(config, nproc=nproc, resume=resume)
