"""What a person meets on the command line: refusals in one line, failures that say why, soon."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.system.conftest import Command, Recipe

from weft.config.load import dump
from weft.testing.kill import Run, Tamper, finish
from weft.trainer import rank

ENDED_SECONDS = 10.0  # within seconds, with room for a busy machine

# ---- refusals ----

REFUSED = {
    "unknown key": ("train.stepz=5", "train.stepz: unknown key; nearest legal key: train.steps"),
    "bad value": ("train.steps=0", "train.steps = 0: must be at least 1"),
    "bad type": ("train.steps=many", 'train.steps = "many": must be an integer'),
    "impossible sp": ("parallel.sp=3", "parallel.sp = 3: must divide model.heads (4)"),
    "impossible ep": ("parallel.ep=3", "parallel.ep = 3: must divide model.experts (4)"),
    "batch": ("parallel.dp=3", "train.global_batch = 4: must be a multiple of"),
    "missing corpus": ("data.path=/nowhere", "no file or folder at data.path = /nowhere"),
    "empty folder": ("data.path={empty}", "no files to read below"),
    "empty files": ("data.path={blank}", "has no text"),
    "small vocabulary": ("model.vocab=200", "model.vocab = 200: bytes and the end of text need"),
    "no cuda": ("train.device=cuda", "train.device = 'cuda'"),
    "run_dir is a file": ("train.run_dir={file}/run", "cannot be made (Not a directory)"),
    "no override": ("train.steps", "expected key.path=value"),
}


@pytest.mark.parametrize(("override", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_recipe_is_refused_before_anything_starts(
    weft: Command, recipe_file: Path, tmp_path: Path, override: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "0.txt").touch()
    (tmp_path / "file").touch()
    places = {name: tmp_path / name for name in ("empty", "blank", "file")}
    two_ranks = () if override.startswith("parallel") else ("--set", "parallel.dp=2")
    answer = weft("train", str(recipe_file), *two_ranks, "--set", override.format(**places))
    assert_refused(answer.code, answer.stdout, answer.stderr, message)
    assert not list(tmp_path.rglob("logs"))
    assert not (tmp_path / "run").exists()


def assert_refused(code: int, stdout: str, stderr: str, message: str, expected: int = 2) -> None:
    assert message in stderr
    assert code == expected
    assert stdout == ""
    assert stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("content", ["name = ", "[train\n", "\x00"])
def test_a_file_that_is_no_recipe_is_refused(weft: Command, tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(content)
    answer = weft("train", str(path))
    assert_refused(answer.code, answer.stdout, answer.stderr, "bad.toml")


@pytest.mark.parametrize(
    ("nproc", "remedy"), [("4", "try --nproc 2, or --set parallel.dp=4"), ("0", "try --nproc 2")]
)
def test_a_wrong_number_of_processes_is_refused(
    weft: Command, recipe_file: Path, nproc: str, remedy: str
) -> None:
    answer = weft("train", str(recipe_file), "--nproc", nproc, "--set", "parallel.dp=2")
    assert_refused(answer.code, answer.stdout, answer.stderr, f"--nproc {nproc}: the layout has")
    assert answer.stderr.rstrip().endswith(remedy)


def test_a_missing_recipe_names_its_neighbour_and_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "quickstart.toml").touch()
    command = blocked("train", str(tmp_path / "quickstrat.toml"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_refused(done.returncode, done.stdout, done.stderr, "quickstart.toml")


# ---- resuming what is not the same run ----

CHANGED = {
    "model": ("model.experts=8", "was written with model.experts = 4, the recipe says 8"),
    "optimizer": ("optim.lr=0.5", "was written with optim.lr = 0.01, the recipe says 0.5"),
    "batch": ("train.global_batch=8", "was written with train.global_batch = 4"),
    "corpus": ("data.path={other}", "was trained on a corpus with digest"),
    "steps": ("train.steps=2", "has finished step 4, the recipe says train.steps = 2"),
}
SHORT = ("train.steps=4", "train.eval_every=4")


@pytest.mark.parametrize("layout", ["parallel.dp=1", "parallel.dp=2"])
def test_a_checkpoint_of_another_run_is_refused(
    weft: Command, recipe: Recipe, tmp_path: Path, layout: str
) -> None:
    finish(recipe("run", *SHORT))
    path = tmp_path / "tiny.toml"
    path.write_text(dump(recipe("run", *SHORT, layout)), encoding="utf-8")
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "corpus", other)
    (other / "0.txt").write_text("something else\n")
    before = sorted(p.name for p in (tmp_path / "run").rglob("*"))
    for override, message in CHANGED.values():
        answer = weft("train", str(path), "--set", override.format(other=other))
        assert_refused(answer.code, answer.stdout, answer.stderr, message, expected=1)
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == before


def test_resume_never_and_resume_from_nowhere_are_refused(
    weft: Command, recipe: Recipe, tmp_path: Path
) -> None:
    config = recipe("run", *SHORT)
    finish(config)
    path = tmp_path / "tiny.toml"
    path.write_text(dump(config), encoding="utf-8")
    for where, message in (
        ("never", "holds checkpoints of an earlier run"),
        (str(tmp_path / "run" / "step-00000099"), "manifest.json cannot be read"),
    ):
        answer = weft("train", str(path), "--resume", where)
        assert_refused(answer.code, answer.stdout, answer.stderr, message, expected=1)
    for shard in (tmp_path / "run").rglob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-1])
    answer = weft("train", str(path))
    assert answer.code == 1
    assert "Traceback" not in answer.stderr
    assert "none of the 1 checkpoints" in answer.stderr
    assert "is damaged" in answer.stdout


# ---- show, doctor, help ----

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "triton"):
            raise ImportError(f"asked for {name}")

sys.meta_path.insert(0, Blocker())
sys.argv = ["weft", *sys.argv[1:]]
from weft.cli.main import main
main()
"""


def blocked(*arguments: str) -> list[str]:
    """The command where torch cannot be imported."""
    return [sys.executable, "-c", BLOCKED, *arguments]


SEVERAL = """
import json
from weft.cli.main import main
for words in json.loads(sys.argv.pop()):
    sys.argv = ["weft", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
    print(end="\\f")
"""

SHOWN = {
    ("layer",): ["def attention_half(o", "def moe_layer(o", "o.dispatch(h, r)"],
    ("program", "--segment", "moe.forward"): ["all_to_all", "attention"],
    ("schedule", "--segment", "moe.backward"): ["compute", "comm"],
    ("schedule", "--segment", "moe.forward", "--actions"): ["post", "wait", "free"],
    ("layout",): ["world 2 = dp 1 x sp 2; ep 2", "0 to 1", "2 to 3"],
}


def test_show_needs_no_torch(recipe_file: Path) -> None:
    layout = ("--set", "parallel.sp=2", "--set", "parallel.ep=2")
    asked = [("show", what, str(recipe_file), *layout, *more) for what, *more in SHOWN]
    code = BLOCKED.partition("sys.argv")[0] + SEVERAL
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    for shown, expected in zip(done.stdout.split("\f"), [*SHOWN.values(), []], strict=True):
        for text in expected:
            assert text in shown


def test_help_needs_no_torch() -> None:
    done = subprocess.run(blocked("--help"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("train", "show", "verify", "bench", "doctor"):
        assert verb in done.stdout


def test_show_refuses_what_is_not_there(weft: Command, recipe_file: Path) -> None:
    for arguments, message in (
        (("program", str(recipe_file), "--segment", "moe.sideways"), "expected one of"),
        (("program", str(recipe_file), "--rank", "7"), "the layout has ranks 0 to 0"),
    ):
        answer = weft("show", *arguments)
        assert_refused(answer.code, answer.stdout, answer.stderr, message)


def test_doctor_names_every_body(weft: Command) -> None:
    answer = weft("doctor")
    assert (answer.code, answer.stderr) == (0, "")
    for text in ("torch", "no CUDA device", "attention.dgrad", "expert_up", "repeatable"):
        assert text in answer.stdout
    refused = weft("doctor", "--precision", "int4")
    assert_refused(refused.code, refused.stdout, refused.stderr, "--precision int4: must be one of")


# ---- ranks that fail ----


def throw_on_rank_1() -> None:
    """Tampers with the second rank: its third step raises."""
    honest = rank.open_session

    def open_session(config, place):
        made = honest(config, place)
        if place.rank == 1:
            calls = iter(range(1, 1000))
            read = type(made.feed).read

            def broken(feed, plan, step):
                if next(calls) == 3:
                    raise ValueError("the second rank has had enough")
                return read(feed, plan, step)

            type(made.feed).read = broken
        return made

    rank.open_session = open_session


def throw_in_a_save_of_rank_1() -> None:
    """Tampers with the second rank: it raises while the first waits for it in a barrier."""
    honest = rank.open_session

    def open_session(config, place):
        made = honest(config, place)
        if place.rank == 1:
            from weft.trainer import saver

            saver.save_session = refuse
        return made

    rank.open_session = open_session


def refuse(session, **settings):
    raise ValueError("the second rank has had enough")


@pytest.mark.parametrize("tamper", [throw_on_rank_1, throw_in_a_save_of_rank_1])
def test_the_error_of_the_rank_that_threw_is_shown(recipe: Recipe, tamper: Tamper) -> None:
    run = Run(recipe("run", "parallel.sp=2", "parallel.ep=2"), tamper=tamper)
    assert run.wait() == 1
    said = run.output.read_text()
    start = said.index("rank 1 of 2 ended with exit code 1; the end of")
    assert "ValueError: the second rank has had enough" in said[start:]
    assert "CommunicationError" not in said[start:]
    assert not any(is_alive(pid) for pid in run.pids().values())


def test_ranks_outlive_no_supervisor(recipe: Recipe) -> None:
    run = Run(recipe("run", "parallel.sp=2", "parallel.ep=2", "train.steps=100000"))
    assert run.reaches(2)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + ENDED_SECONDS
    while any(is_alive(pid) for pid in run.pids().values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_second_sigterm_to_the_supervisor_ends_all_at_once(recipe: Recipe) -> None:
    run = Run(recipe("run", "parallel.sp=2", "parallel.ep=2", "train.steps=100000"))
    assert run.reaches(2)
    for pid in run.pids().values():
        os.kill(pid, signal.SIGSTOP)  # so that the first one cannot be obeyed
    began = time.monotonic()
    for _ in range(2):
        os.kill(run.pid, signal.SIGTERM)
        time.sleep(0.05)
    assert run.wait() == 128 + signal.SIGTERM
    assert time.monotonic() - began < ENDED_SECONDS
    assert not any(is_alive(pid) for pid in run.pids().values())


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_the_real_command_ends_soon_when_a_rank_is_killed(
    recipe_file: Path, tmp_path: Path
) -> None:
    """The one test that starts ranks as a user does, processes that import torch."""
    command = [sys.executable, "-m", "weft", "train", str(recipe_file), "--nproc", "2"]
    settings = ("parallel.sp=2", "parallel.ep=2", "train.steps=100000")
    for setting in settings:
        command += ["--set", setting]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_for_step(tmp_path / "run", 2, process)
            victim = child_with("1", "2", of=process.pid)
            began = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            _, errors = process.communicate(timeout=ENDED_SECONDS)
        finally:
            process.kill()
    assert time.monotonic() - began < ENDED_SECONDS
    assert process.returncode == 1
    assert "weft: rank 1 of 2 ended with signal 9" in errors
    assert "Traceback" not in errors


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    from weft.testing.kill import last_step

    deadline = time.monotonic() + 120
    while last_step(run_dir) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def child_with(number: str, world: str, *, of: int) -> int:
    """The rank of that number among the processes that a supervisor has started."""
    for pid in Path(f"/proc/{of}/task/{of}/children").read_text().split():
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if arguments[5:7] == [number, world]:
            return int(pid)
    raise AssertionError(f"no rank {number} below {of}")
