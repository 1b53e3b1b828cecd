"""An error that weft raises on purpose ends the command with its message and a code."""

import pytest

from weft import errors
from weft.cli import main

VERBS = (
    "train",
    "slurm",
    "ckpt",
    "status",
    "report",
    "generate",
    "show",
    "verify",
    "trace",
    "bench",
    "doctor",
)
CODES = {"ConfigError": 2, "LayoutError": 2, "DataError": 2, "StoppedError": 75}


@pytest.mark.parametrize(
    "error",
    [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.WeftError)],
)
def test_an_error_is_its_message_and_a_code(
    error: type[errors.WeftError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def app() -> None:
        raise error("what was found, what was expected")

    monkeypatch.setattr(main, "app", app)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == CODES.get(error.__name__, 1)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "weft: what was found, what was expected\n")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def app() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(main, "app", app)
    with pytest.raises(ZeroDivisionError):
        main.main()


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        with pytest.raises(SystemExit) as end:
            main.app([verb, "--help"])
        assert end.value.code == 0
        assert capsys.readouterr().out.strip()
