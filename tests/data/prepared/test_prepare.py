"""The same bytes for any number of workers, and after any kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.data.conftest import sentences, write_jsonl

from weft.data.document import Fields
from weft.data.prepared import prepare as module
from weft.data.prepared.prepare import Job, Request, make_shard, prepare
from weft.errors import DataError


def request(path: Path, **changes: object) -> Request:
    settings = {
        "source": "jsonl",
        "path": str(path),
        "fields": Fields(),
        "tokenizer": "bytes",
        "on_bad": "stop",
        "part_bytes": 2000,
        **changes,
    }
    return Request(**settings)  # pyright: ignore[reportArgumentType]


def corpus(folder: Path, count: int = 100) -> Path:
    return write_jsonl(folder / "a.jsonl", [{"text": text} for text in sentences(count)])


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def quiet(_text: str) -> None:
    """Reports nothing."""


def test_two_workers_write_what_one_writes(tmp_path: Path, tokenizer_file: Path) -> None:
    wanted = request(corpus(tmp_path), tokenizer=str(tokenizer_file), part_bytes=8000)
    for workers in (1, 2):
        prepare(wanted, tmp_path / str(workers), workers=workers, report=quiet)
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert len(list((tmp_path / "1").glob("*.bin"))) > 1


def test_a_run_stopped_at_any_shard_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, honest = request(corpus(tmp_path)), module.make_shard
    prepare(wanted, tmp_path / "whole", workers=1, report=quiet)
    whole = files(tmp_path / "whole")
    shards = sum(name.endswith(".bin") for name in whole)
    assert shards >= 5
    for stop in range(shards):
        made: list[str] = []

        def stopped(job: Job, tokenizer, stop=stop, made=made):
            if len(made) == stop:
                Path(job.folder, f"{job.name}.bin.partial").write_bytes(b"half of it")
                Path(job.folder, f"{job.name}.bin").write_bytes(b"an older half")
                raise KeyboardInterrupt
            made.append(job.name)
            return honest(job, tokenizer)

        out = tmp_path / f"stopped-{stop}"
        monkeypatch.setattr(module, "make_shard", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(wanted, out, workers=1, report=quiet)
        again: list[str] = []
        monkeypatch.setattr(
            module, "make_shard", lambda j, t, again=again: again.append(j.name) or honest(j, t)
        )
        prepare(wanted, out, workers=1, report=quiet)
        assert files(out) == whole
        assert not set(again) & set(made)
        assert len(again) + len(made) == shards


LIFE = """
import sys, time
from pathlib import Path
from weft.data.document import Fields
from weft.data.prepared import prepare as module

honest = module.make_shard
def slow(job, tokenizer):
    time.sleep(0.05)  # so that a kill finds it at work
    return honest(job, tokenizer)
module.make_shard = slow
wanted = module.Request(source="jsonl", path=sys.argv[1], fields=Fields(), tokenizer="bytes",
                        on_bad="stop", part_bytes=2000)
module.prepare(wanted, Path(sys.argv[2]), workers=1, report=lambda t: print(t, flush=True))
"""


def test_a_killed_process_leaves_what_the_next_one_goes_on_from(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    prepare(request(path), tmp_path / "whole", workers=1, report=quiet)
    command = [sys.executable, "-c", LIFE, str(path), str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # the first shard is there, the others are not
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "out" / "manifest.json").exists()
    kept = list((tmp_path / "out").glob("shard-*.json"))
    assert kept
    said: list[str] = []
    prepare(request(path), tmp_path / "out", workers=1, report=said.append)
    assert said[0].startswith(f"{len(kept)} of ")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    wanted, out = request(corpus(tmp_path)), tmp_path / "out"
    prepare(wanted, out, workers=1, report=quiet)
    whole = files(out)
    os.truncate(out / "shard-00001.bin", 3)
    (out / "shard-00002.json").write_text("{}")
    prepare(wanted, out, workers=1, report=quiet)
    assert files(out) == whole


def test_another_corpus_or_setting_is_not_mixed_into_a_folder(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    path, out = corpus(tmp_path), tmp_path / "out"
    prepare(request(path), out, workers=1, report=quiet)
    with pytest.raises(DataError, match="on_bad = 'stop', this is 'skip'"):
        prepare(request(path, on_bad="skip"), out, workers=1, report=quiet)
    with pytest.raises(DataError, match="begun with tokenizer"):
        prepare(request(path, tokenizer=str(tokenizer_file)), out, workers=1, report=quiet)
    time.sleep(0.01)
    corpus(tmp_path)  # written anew: the same bytes, another time
    with pytest.raises(DataError, match="files that have changed since"):
        prepare(request(path), out, workers=1, report=quiet)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        prepare(request(path), tmp_path / "other", workers=1, report=quiet)


def test_bad_lines_are_counted_in_the_record_of_their_shard(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    path.write_bytes(path.read_bytes() + b"oops\n" * 3)
    with pytest.raises(DataError, match="line 101"):
        prepare(request(path), tmp_path / "stop", workers=1, report=quiet)
    said: list[str] = []
    made = prepare(request(path, on_bad="skip"), tmp_path / "skip", workers=1, report=said.append)
    assert sum(shard.num_skipped for shard in made.shards) == 3
    assert "3 bad ones skipped" in said[-1]


def test_one_job_makes_one_shard(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    (part, *_) = module.READERS["jsonl"].cut(path, 2000)
    job = Job(
        name="shard-00000",
        folder=str(tmp_path),
        source="jsonl",
        part=part,
        fields=Fields(),
        tokenizer="bytes",
        on_bad="stop",
    )
    shard = make_shard(job)
    assert json.loads((tmp_path / "shard-00000.json").read_text())["digest"] == shard.digest
