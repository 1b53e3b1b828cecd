"""A tracker that is missing is refused early; one that is there gets the numbers of every line."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.trainer.conftest import ALONE, corpus, few_steps, recipe

from weft.config.run import RunConfig
from weft.errors import ConfigError
from weft.telemetry import trackers
from weft.trainer import launch
from weft.trainer.rank import run_rank

__all__ = ["corpus", "few_steps", "recipe"]

RECORD = {
    "step": 3,
    "time": 1e9,
    "loss": 2.5,
    "loss_hex": "0x1.4p+1",
    "mfu": None,
    "skipped": True,
    "expert_load_entropy": [0.9, 0.8],
    "expert_load": [[1.0, 1.0], [0.5, 1.5]],
}
NUMBERS = {
    "train/loss": 2.5,
    "train/skipped": 1.0,
    "train/expert_load_entropy/0": 0.9,
    "train/expert_load_entropy/1": 0.8,
}


class Fake(ModuleType):
    """A tracker's package that remembers what it was told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.started: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **options: Any) -> None:
        self.started = options

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture(params=["wandb", "trackio"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake(request.param)
    monkeypatch.setitem(sys.modules, request.param, fake)
    return fake


def with_tracker(config: RunConfig, name: str) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"tracker": name})})


@pytest.mark.parametrize("name", trackers.PACKAGES)
def test_a_missing_package_is_refused_with_what_to_install_before_anything_starts(
    few_steps: RunConfig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)

    def start(*_: object) -> launch.Process:
        raise AssertionError("a process was started")

    with pytest.raises(ConfigError, match=rf'train.tracker = "{name}".*pip install "weft\[{name}'):
        launch.train(with_tracker(few_steps, name), start=start)
    assert list(Path(few_steps.train.run_dir).iterdir()) == []


def test_no_tracker_needs_no_package() -> None:
    trackers.check_tracker("none")


def test_a_service_gets_numbers_and_no_more(service: Fake, tmp_path: Path) -> None:
    opened = trackers.open_tracker(
        service.__name__, tmp_path, run="tiny", config={"name": "tiny"}, start=0
    )
    opened.write(RECORD)
    opened.write({"step": 3, "validation_loss": 2.0})
    opened.close()
    assert service.logged == [(3, NUMBERS), (3, {"validation/loss": 2.0})]
    assert service.started["project"] == trackers.PROJECT
    assert service.finished == 1


def test_a_resumed_run_goes_on_under_its_name_and_a_new_one_does_not(
    service: Fake, tmp_path: Path
) -> None:
    found = []
    for start in (0, 5, 0):
        trackers.open_tracker(service.__name__, tmp_path, run="tiny", config={}, start=start)
        found.append({k: service.started.get(k) for k in ("id", "name")})
    assert found[0] == found[1] != found[2]


def test_tensorboard_gets_one_scalar_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scalars: dict[str, tuple[float, int]] = {}
    options: dict[str, Any] = {}

    class Writer:
        def __init__(self, **given: Any) -> None:
            options.update(given)

        def add_scalar(self, name: str, value: float, *, global_step: int) -> None:
            scalars[name] = (value, global_step)

        def close(self) -> None:
            scalars["closed"] = (0.0, 0)

    fake = ModuleType("torch.utils.tensorboard")
    vars(fake)["SummaryWriter"] = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    opened = trackers.open_tracker("tensorboard", tmp_path, run="tiny", config={}, start=7)
    opened.write(RECORD)
    opened.close()
    assert options == {"log_dir": str(tmp_path / "tensorboard"), "purge_step": 8}
    assert scalars == {**{name: (value, 3) for name, value in NUMBERS.items()}, "closed": (0.0, 0)}


def test_a_run_hands_every_line_to_its_tracker(few_steps: RunConfig, service: Fake) -> None:
    run_rank(with_tracker(few_steps, service.__name__), ALONE, None)
    steps = [step for step, numbers in service.logged if "train/loss" in numbers]
    assert steps == [1, 2, 3, 4]
    assert service.logged[-1][1].keys() >= {"validation/loss"}
    assert service.finished == 1
