"""`weft report` says where the page is."""

import pytest
from tests.report.conftest import Folder, folder

from weft.cli.report import report

__all__ = ["folder"]


def test_the_page_is_written_and_named(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder()
    report(path)
    assert (path / "report" / "index.html").is_file()
    assert str(path / "report" / "index.html") in capsys.readouterr().out
