"""Tests mirror the source, files stay readable, the notation page is the legend."""

import re
from pathlib import Path

from weft.graph.dims import LEGEND

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "weft"
TESTS = ROOT / "tests"

# Modules without a test file of their own, each with where its test is.
EXCEPTIONS = {
    "errors.py": "names only; every room tests the errors it raises",
    "version.py": "a number; the command line's tests print it",
    **{
        f"kernels/triton/{name}.py": "the table's tests run every body against its reference"
        for name in ("loss", "optimizer", "rows")
    },
    **{
        f"kernels/fused/{name}.py": "the table's tests run every body against its sequence"
        for name in ("down", "up", "wgrad")
    },
}

# Folders of tests that mirror no room.
EXTRA = {"agreement", "architecture", "benchmarks", "system"}


def expected_test(module: Path) -> Path:
    return TESTS / module.parent / f"test_{module.name}"


def source_modules() -> list[Path]:
    files = (path.relative_to(SOURCE) for path in sorted(SOURCE.rglob("*.py")))
    return [path for path in files if path.name not in ("__init__.py", "__main__.py")]


def test_every_module_has_a_test_file() -> None:
    missing = [
        str(module)
        for module in source_modules()
        if str(module) not in EXCEPTIONS and not expected_test(module).exists()
    ]
    assert missing == []


def test_every_exception_is_still_one() -> None:
    for name in EXCEPTIONS:
        assert (SOURCE / name).exists(), f"{name} is gone"
        assert not expected_test(Path(name)).exists(), f"{name} has a test now"


def test_every_test_file_has_a_module() -> None:
    mirrored = {expected_test(module) for module in source_modules()}
    orphans = [
        str(path.relative_to(TESTS))
        for path in sorted(TESTS.rglob("test_*.py"))
        if path not in mirrored and path.relative_to(TESTS).parts[0] not in EXTRA
    ]
    assert orphans == []


def test_every_room_says_what_it_answers() -> None:
    for room in sorted({path.parent for path in SOURCE.rglob("*.py")}):
        text = (room / "__init__.py").read_text(encoding="utf-8")
        assert text.startswith('"""'), f"{room} has no docstring"


def test_source_is_ascii() -> None:
    for path in sorted([*SOURCE.rglob("*.py"), *TESTS.rglob("*.py")]):
        assert path.read_text(encoding="utf-8").isascii(), path


def test_the_notation_page_is_the_legend() -> None:
    page = (ROOT / "docs" / "notation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w)` \|.*\| ([^|]+) \|$", page, re.MULTILINE)
    assert dict(rows) == dict(LEGEND)
    assert len(rows) == len(LEGEND)


def test_no_file_of_the_project_names_a_package_index_or_a_path_of_one_machine() -> None:
    places = [
        *ROOT.glob("*.md"),
        *ROOT.glob("scripts/*"),
        ROOT / ".ci" / "run",
        ROOT / "pyproject.toml",
    ]
    for path in places:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"--(extra-)?index-url|/root/|/home/", text), path
