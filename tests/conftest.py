"""What every test runs under: one thread, the devices it wants, and golden texts.

`pytest --update-golden` writes the texts instead of comparing them: read what has changed.
"""

import gc
import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch

# asked of the driver's library, since ranks are forked: a process that has used CUDA cannot be
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
if not torch.cuda.is_available():  # before anything imports Triton: it asks once
    os.environ.setdefault("TRITON_INTERPRET", "1")

Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden texts anew")
    parser.addoption(
        "--draws", type=int, default=2, help="random layouts in tests/agreement/test_any_layout.py"
    )
    parser.addoption("--draws-seed", type=int, default=0, help="which random layouts they are")
    parser.addoption("--draws-out", type=Path, help="a file that gets a line of each")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Twelve thousand tests live to the end: no collector need walk them, nor a fork copy them."""
    gc.disable()
    found = yield
    gc.freeze()
    gc.enable()
    return found


def pytest_unconfigure() -> None:
    gc.unfreeze()  # Triton's bindings look at the end for what is left of them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    devices = torch.cuda.device_count()
    for item in items:
        wanted = 2 if "gpus2" in item.keywords else int("gpu" in item.keywords)
        if wanted > devices:
            item.add_marker(
                pytest.mark.skip(reason=f"{wanted} CUDA devices wanted, {devices} here")
            )


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compares a text with the file of that name beside the test, in `golden/`."""
    folder = Path(request.path).parent / "golden"

    def compare(name: str, text: str) -> None:
        path = folder / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            folder.mkdir(exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")
        assert text + "\n" == path.read_text(encoding="utf-8")

    return compare
