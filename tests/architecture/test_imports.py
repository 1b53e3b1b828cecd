"""The score imports no torch, the import contracts hold, and each of them can fail."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "weft"
SCORE = ("config", "graph", "model", "parallel", "schedule", "compose", "planner")

BLOCKED = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "triton"):
            raise ImportError(f"the score asked for {name}")

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
"""

LINT = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"


def modules(*rooms: str) -> list[str]:
    files = (path for room in rooms for path in sorted((SOURCE / room).rglob("*.py")))
    dotted = (".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in files)
    return [name.removesuffix(".__init__") for name in dotted]


def import_without_torch(source: Path, names: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, str(source), *names]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_module_of_the_score_imports_where_there_is_no_torch() -> None:
    names = ["weft.errors", *modules(*SCORE)]
    assert len(names) > 20
    result = import_without_torch(ROOT / "src", names)
    assert result.returncode == 0, result.stderr


def test_a_module_that_asks_for_torch_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("import torch.nn\n", encoding="utf-8")
    result = import_without_torch(tmp_path, ["loud"])
    assert "the score asked for torch" in result.stderr


def contracts() -> list[dict[str, Any]]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["tool"]["importlinter"]["contracts"]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Checks the contracts of a tree in a process that imports that tree and no other."""
    command = [sys.executable, "-c", LINT, "--no-logo", "--no-cache"]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={"PYTHONPATH": str(root / "src"), "PATH": "", "PYTHONDONTWRITEBYTECODE": "1"},
    )


def test_the_import_contracts_hold() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


PLANTED = {
    "layers": [
        ("graph/dims.py", "import weft.model.families"),  # upwards
        ("schedule/action.py", "import weft.parallel.layout"),  # sideways
        ("utils/__init__.py", ""),  # a room that nobody declared
    ],
    "score": [
        ("model/layer.py", "import torch"),
        ("parallel/layout.py", "def late():\n    from torch import nn"),  # inside a function
        ("compose/step.py", "import weft.ops.norm"),  # downwards, but out of the score
    ],
    "shapes": [
        ("model/count.py", "import weft.config.model"),
        ("schedule/check.py", "import pydantic"),
    ],
    "acyclic": [("config/branch.py", "import weft.config.run")],
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planted")
    shutil.copytree(SOURCE, root / "src" / "weft", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


@pytest.mark.parametrize(
    ("contract", "file", "line"),
    [(contract, *plant) for contract, plants in PLANTED.items() for plant in plants],
)
def test_a_planted_violation_breaks_its_contract(
    tree: Path, contract: str, file: str, line: str
) -> None:
    name = next(entry["name"] for entry in contracts() if entry["id"] == contract)
    path = tree / "src" / "weft" / file
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
    try:
        result = lint(tree)
    finally:
        if before is None:
            shutil.rmtree(path.parent)
        else:
            path.write_text(before, encoding="utf-8")
    assert result.returncode != 0
    assert f"{name} BROKEN" in result.stdout, result.stdout + result.stderr
    culprit = Path(file).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    leaf = culprit.rpartition(".")[2]
    assert f"weft.{culprit}" in result.stdout or f"- .{leaf} -> " in result.stdout


def test_every_contract_has_a_violation_planted() -> None:
    assert {entry["id"] for entry in contracts()} == set(PLANTED)


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        (
            "pydantic",
            {"config", "checkpoint"},
        ),  # what people write, and what a damaged disk hands back
        ("triton", {"kernels"}),
    ],
)
def test_a_library_stays_in_its_rooms(package: str, rooms: set[str]) -> None:
    users = {p.relative_to(SOURCE).parts[0] for p in SOURCE.rglob("*.py") if package in imported(p)}
    assert users <= rooms
