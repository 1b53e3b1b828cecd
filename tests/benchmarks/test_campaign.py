"""A campaign goes on where it ended, inside its budget, and names what did not end well."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import campaign
import pytest
from campaign import Entry, Outcome, go, read_state
from measurement import Measurement

GOOD = "open(r'{file}', 'a').write('1\\n')"
BAD = "print('no such thing'); raise SystemExit(3)"
SLOW = "import time; open(r'{file}', 'a').write('1\\n'); time.sleep(60)"
PARENT = (  # its child would go on for a minute
    "import subprocess, sys, time; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    "open(r'{folder}/child', 'w').write(str(child.pid)); time.sleep(60)"
)


def fake(name, code, *, limit=20, gpus=2):
    words = ("{python}", "-c", code)
    return Measurement(name=name, question="does it?", gpus=gpus, limit=limit, words=words, tiny=())


def run(wanted, folder, budget=1000.0):
    return go(wanted, folder, device="cpu", budget=budget)


def outcomes(folder):
    return {name.split(" on ")[0]: (e.outcome, e.tries) for name, e in read_state(folder).items()}


def times(folder, name):
    file = folder / f"{name}.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_what_is_done_is_not_done_again(tmp_path, capfd) -> None:
    wanted = [fake("a", GOOD), fake("b", GOOD)]
    assert run(wanted, tmp_path)
    assert run(wanted, tmp_path)
    assert (times(tmp_path, "a"), times(tmp_path, "b")) == (1, 1)
    assert outcomes(tmp_path) == {"a": (Outcome.DONE, 1), "b": (Outcome.DONE, 1)}
    said = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[:4]] == ["a", "a", "b", "b"]
    assert said[4:] == ["2 of 2 done, 0 open"] * 2


def test_one_that_fails_is_quoted_tried_once_more_and_leaves_the_others(tmp_path, capfd) -> None:
    wanted = [fake("bad", BAD), fake("good", GOOD)]
    assert not run(wanted, tmp_path)
    said = capfd.readouterr().out
    assert "bad: failed after" in said
    assert "    | no such thing" in said
    assert said.endswith("1 of 2 done, 1 open\n")
    assert outcomes(tmp_path) == {"bad": (Outcome.FAILED, 1), "good": (Outcome.DONE, 1)}
    assert not run(wanted, tmp_path)
    assert outcomes(tmp_path)["bad"] == (Outcome.FAILED, 2)
    assert "given up after 2 tries: bad" in capfd.readouterr().out
    assert run(wanted, tmp_path)  # nothing was tried
    assert outcomes(tmp_path)["bad"] == (Outcome.FAILED, 2)
    assert times(tmp_path, "good") == 1


def test_one_that_failed_and_then_does_not_is_done(tmp_path) -> None:
    assert not run([fake("a", BAD)], tmp_path)
    assert run([fake("a", GOOD)], tmp_path)
    assert outcomes(tmp_path) == {"a": (Outcome.DONE, 2)}


def test_one_that_runs_out_is_ended_with_its_children_and_leaves_what_it_has(tmp_path) -> None:
    begun = time.monotonic()
    assert not run([fake("slow", SLOW, limit=1), fake("parent", PARENT, limit=2)], tmp_path)
    assert time.monotonic() - begun < 30
    assert times(tmp_path, "slow") == 1
    assert {outcome for outcome, _ in outcomes(tmp_path).values()} == {Outcome.RAN_OUT}
    assert not is_running(int((tmp_path / "child").read_text()))


def is_running(pid):
    """Whether a process is there and no mere entry of the dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_is_started_that_may_not_end_inside_the_budget(tmp_path, capfd) -> None:
    wanted = [fake("long", GOOD, limit=500), fake("short", GOOD, limit=20)]
    assert run(wanted, tmp_path, budget=100.0)
    assert outcomes(tmp_path) == {"short": (Outcome.DONE, 1)}
    said = capfd.readouterr().out
    assert "long: left for another call, may take 500 s of 100" in said
    assert said.endswith("1 of 2 done, 1 open\n")
    assert run(wanted, tmp_path, budget=600.0)
    assert outcomes(tmp_path)["long"] == (Outcome.DONE, 1)


def test_a_campaign_that_is_ended_ends_what_it_runs_and_goes_on_later(tmp_path) -> None:
    code = (
        "import sys, campaign, signal; from pathlib import Path; "
        "from measurement import Measurement; "
        "signal.signal(signal.SIGTERM, campaign.end); "
        f"one = Measurement(name='parent', question='', gpus=2, limit=50, tiny=(), "
        f"words=('{{python}}', '-c', {PARENT!r})); "
        f"campaign.go([one], Path({str(tmp_path)!r}), device='cpu', budget=100.0)"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    own = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    child = tmp_path / "child"
    while not (child.exists() and child.read_text()):
        time.sleep(0.05)
        assert own.poll() is None
    own.terminate()
    assert own.wait(20) == 128 + signal.SIGTERM
    assert not is_running(int(child.read_text()))
    assert outcomes(tmp_path) == {"parent": (Outcome.BEGUN, 1)}
    assert run([fake("parent", GOOD)], tmp_path)  # one that was killed has one more try
    assert outcomes(tmp_path) == {"parent": (Outcome.DONE, 2)}


def test_one_gpu_and_two_are_campaigns_of_their_own(tmp_path, monkeypatch, capfd) -> None:
    both = (fake("one", GOOD, gpus=1), fake("two", GOOD, gpus=2))
    monkeypatch.setattr(campaign, "MEASUREMENTS", both)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for gpus, name in ((1, "one"), (2, "two")):
        assert main(monkeypatch, tmp_path, "--device", "cpu", "--gpus", str(gpus)) == 0
        assert list(outcomes(tmp_path))[-1] == name
    assert set(read_state(tmp_path)) == {"one on 1 cpu", "two on 2 cpu"}
    main(monkeypatch, tmp_path, "--list", "--gpus", "1", "--device", "cpu")
    assert "one" in capfd.readouterr().out.splitlines()[-1]
    assert times(tmp_path, "one") == 1  # a list measures nothing


def main(monkeypatch, folder, *words):
    monkeypatch.setattr(sys, "argv", ["campaign.py", str(folder), *words])
    try:
        campaign.main()
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.mark.parametrize(("found", "asked"), [(0, ()), (1, ("--gpus", "2"))])
def test_gpus_that_are_not_there_are_refused(monkeypatch, tmp_path, capfd, found, asked) -> None:
    monkeypatch.setattr(campaign.torch.cuda, "device_count", lambda: found)
    assert main(monkeypatch, tmp_path, *asked) == 2
    assert f"found {found} CUDA devices" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_word_that_no_name_has_is_refused(monkeypatch, tmp_path, capfd) -> None:
    assert main(monkeypatch, tmp_path, "--device", "cpu", "--only", "nothing") == 2
    assert "try --list" in capfd.readouterr().err


def test_what_is_known_is_read_back(tmp_path) -> None:
    state = {"a": Entry(outcome=Outcome.RAN_OUT, tries=2, seconds=3.5)}
    campaign.write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert json.loads((tmp_path / "state.json").read_text())["a"]["outcome"] == "ran out"
