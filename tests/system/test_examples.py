"""Every example runs in seconds from a fresh clone, is short, and shows what it says it shows."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from tests.system.test_command import BLOCKED

from weft.testing.kill import Forked
from weft.testing.tolerance import GRADIENT_FLOAT64

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINES = 100


def run(*command: str, folder: Path) -> str:
    """What a command prints; it must end well and complain of nothing."""
    paths = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def run_forked(path: Path, folder: Path, said: Path) -> str:
    """The same for an example in a forked process, which has imported torch already."""
    output, errors = said / "stdout", said / "stderr"
    output.write_text("")
    errors.write_text("")

    def life() -> int:
        os.chdir(folder)
        sys.argv = [str(path)]
        runpy.run_path(str(path), run_name="__main__")
        return 0

    assert Forked(life, output, errors).wait() == 0, errors.read_text()
    assert errors.read_text() == ""
    return output.read_text()


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each example prints, by the number in front of its name; the first is started as a user
    starts it.
    """
    folder, said = tmp_path_factory.mktemp("anywhere"), tmp_path_factory.mktemp("said")
    first, *others = EXAMPLES
    texts = {first.name[:2]: run(str(first), folder=folder)}
    texts |= {path.name[:2]: run_forked(path, folder, said) for path in others}
    assert not list(folder.iterdir()), "an example leaves files behind"
    return texts


def test_examples_are_numbered_and_short() -> None:
    numbers = [path.name[:2] for path in EXAMPLES]
    assert numbers == sorted(set(numbers))
    for path in EXAMPLES:
        text = path.read_text(encoding="utf-8")
        assert re.fullmatch(r"0\d_[a-z_0-9]+\.py", path.name)
        assert len(text.splitlines()) < LINES, path.name
        assert f"python examples/{path.name}" in text


def test_a_layer_is_shown_as_text_as_program_and_as_value(printed: dict[str, str]) -> None:
    text, program, value = re.split(r"---- .*\n", printed["01"])[1:]
    assert "def moe_layer(o" in text
    for collective in ("comm sp: qkv", "comm sp: attention", "comm ep: rows", "comm ep: outputs"):
        assert collective in program
    assert re.search(r"\[32, 28\] -> \[32, 28\], norm [1-9]", value)


def test_ulysses_is_exact_and_costs_what_the_formula_says(printed: dict[str, str]) -> None:
    (difference,) = re.findall(r"difference from one rank: (\S+)", printed["02"])
    assert float(difference) <= GRADIENT_FLOAT64
    (counted,) = re.findall(r"rank 0 received: (\S+)", printed["02"])
    (predicted,) = re.findall(r"elements of 8 bytes: (\S+)", printed["02"])
    assert counted == predicted


def test_both_ways_to_an_expert_agree_and_each_is_cheaper_somewhere(
    printed: dict[str, str],
) -> None:
    rows = [line.split() for line in printed["03"].splitlines() if line[:1].isdigit()][1:]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "6", "8"]
    for row in rows:
        assert abs(float(row[1]) - float(row[2])) <= 1e-9 * float(row[1])
    assert {row[-1] for row in rows} == {"all_to_all", "all_gather"}


def test_overlap_hides_communication(printed: dict[str, str]) -> None:
    exposed = [
        float(t)
        for t in re.findall(r"communication \S+ us, of which (\S+) us exposed", printed["04"])
    ]
    assert len(exposed) == 2
    assert exposed[1] < exposed[0] / 2


def test_a_schedule_is_printed_where_there_is_no_torch(printed: dict[str, str]) -> None:
    path = ROOT / "examples" / "04_print_a_schedule.py"
    blocker = BLOCKED.partition("sys.argv")[0]
    code = f"{blocker}import runpy\nrunpy.run_path({str(path)!r}, run_name='__main__')\n"
    assert run("-c", code, folder=ROOT) == printed["04"]


def test_a_tiny_model_learns_resumes_and_says_something(printed: dict[str, str]) -> None:
    bars = re.findall(r"^ +(\d+)  (\d\.\d{3})  #+$", printed["07"], re.MULTILINE)
    losses = {int(step): float(loss) for step, loss in bars}
    assert list(losses) == [1, *range(20, 181, 20)]
    assert losses[180] < losses[1] / 1.5
    assert "resumed after step 120" in printed["07"]
    assert "a sample, continuing 'def '" in printed["07"]
