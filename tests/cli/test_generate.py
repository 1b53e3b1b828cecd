"""`weft generate` continues a text with what the newest good checkpoint knows."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.trainer.conftest import ALONE, few_steps

from weft.cli.generate import _print_as_it_grows, generate
from weft.config.run import RunConfig
from weft.errors import CheckpointError, ConfigError
from weft.trainer.rank import run_rank

__all__ = ["few_steps"]


@pytest.fixture
def run(few_steps: RunConfig, capsys: pytest.CaptureFixture[str]) -> Path:
    run_rank(few_steps, ALONE, None)
    capsys.readouterr()
    return Path(few_steps.train.run_dir)


def test_only_the_text_goes_to_stdout(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(run, "loom ", count=8)
    shown = capsys.readouterr()
    assert shown.out.startswith("loom ")
    assert "step-00000004" in shown.err


def test_a_damaged_checkpoint_is_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (run / "step-00000004").glob("*.safetensors"):
        file.write_bytes(b"cut")
    generate(run, "loom ", count=1)
    said = capsys.readouterr().err
    assert "damaged" in said
    assert "from " + str(run / "step-00000002") in said


def test_a_folder_without_run_or_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no metrics.jsonl here"):
        generate(tmp_path, "loom ")
    for folder in run.glob("step-*"):
        folder.rename(tmp_path / folder.name)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        generate(run, "loom ")


def test_the_text_is_shown_as_it_grows_and_no_half_of_a_character(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown: list[str] = []

    def texts() -> Iterator[str]:
        for text in ("lo", "loom", "loom \ufffd", "loom \u00e9", "loom \u00e9\ufffd"):
            yield text
            shown.append(capsys.readouterr().out)

    _print_as_it_grows(texts())
    assert shown == ["lo", "om", " ", "\u00e9", ""]
    assert capsys.readouterr().out == "\ufffd\n"
