"""The page is one file that asks for nothing, and nothing of a run gets out of its place in it."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.report.conftest import BEGAN, LAST, Folder, writer

from weft.report import page as pages
from weft.report.page import write_report
from weft.report.picture import PICTURES
from weft.report.run import Run, read_run
from weft.report.status import look


class Checked(HTMLParser):
    """A parser that sees whether what is opened is closed."""

    void = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, _attrs: list) -> None:
        self.seen.add(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _attrs: list) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def report(run: Run) -> Path:
    return write_report(look(run, "none yet", now=BEGAN + LAST))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run with everything."""
    folder = writer(tmp_path_factory.mktemp("page"))
    return report(read_run(folder(events=("start", "checkpoint", "resume", "end")))).read_text()


def test_the_page_asks_for_nothing_and_runs_nothing(text: str) -> None:
    page = Checked()
    page.feed(text)
    assert page.open == []
    assert page.seen.isdisjoint({"script", "link", "iframe", "object"})
    assert not re.search(r"(src|href)=\"(?!#|data:)", text.replace("xlink:", ""))
    assert not re.search(r"url\((?!#)", text)


def test_what_a_model_writes_is_shown_and_not_run(text: str) -> None:
    assert "def &lt;script&gt;alert(1)&lt;/script&gt; &amp; so on" in text


def test_the_page_says_what_was_run_and_how_it_went(text: str) -> None:
    for part in (
        "<h1>tiny</h1>",
        "12 of 12 steps",
        ">finished<",
        "1.500",
        "-0.250",
        "below the baseline of 1.750",
        "2.0 M",
        "sp2 ep2, 2 rank(s)",
        "global_batch = 4",
        "resumed after step 4",
        "step 4: checkpoint step-00000004 in 500 ms",
        ">0.99%<",
        "prefers-color-scheme: dark",
        "width=device-width",
    ):
        assert part in text, part


def test_every_figure_is_a_file_too_and_stale_ones_go(folder: Folder, whole: Run) -> None:
    path = report(whole)
    assert {p.stem for p in path.parent.glob("*.png")} == {p.name for p in PICTURES}
    metrics = whole.folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"exposed_comm_ms": 10.0', '"x": 0'))
    report(read_run(whole.folder))
    assert not (path.parent / "exposed.png").exists()


def test_a_run_that_has_not_taken_a_step_has_a_page(folder: Folder) -> None:
    run = read_run(folder(last=0, events=("start", "no_checkpoint", "failure")))
    page = report(run).read_text()
    assert "NO CHECKPOINT: why" in page
    assert "FAILED: why" in page


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({"event": "checkpoint", "folder": "f", "seconds": 2.0, "stall_s": 0.003}, "held up for"),
        ({"event": "not_finite", "error": "first in qkv"}, "step 4: NOT FINITE: first in qkv"),
        ({"event": "rollback", "batches_skipped": 3}, "back to step 4; batches left out so far: 3"),
        ({"event": "restart", "number": 2, "origin": "f"}, "restart 2, from f"),
        ({"event": "stop"}, "step 4: stopped, as asked"),
        ({"event": "failure", "error": "why"}, "FAILED: why"),
    ],
)
def test_every_kind_of_event_is_told_in_words(event: dict, told: str) -> None:
    assert told in pages._told({"step": 4, **event})
