"""From text to shards: a plan, workers that each make whole shards, and a manifest at the end.

What lies in a shard is a matter of the plan alone, so that the bytes are the same for any number of
workers and any chain of stops. A shard is made again unless its record is there and its files fit.
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weft.data.corpus import PART_BYTES, READERS, Source
from weft.data.document import Fields, OnBad, Sieve
from weft.data.prepared.manifest import (
    VERSION,
    Manifest,
    Shard,
    read_json,
    read_shard,
    write_manifest,
    write_whole,
)
from weft.data.prepared.shard import check_files, write_shard
from weft.data.sources.part import Part
from weft.data.stream import dtype_for
from weft.data.tokenizer import BYTES, Tokenizer, open_tokenizer
from weft.errors import DataError

PLAN = "plan.json"
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is to be prepared, and how."""

    source: Source
    path: str | None
    fields: Fields
    tokenizer: str
    on_bad: OnBad
    part_bytes: int = PART_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One shard, for whoever makes it: everything by value, for it may be another process."""

    name: str
    folder: str
    source: Source
    part: Part
    fields: Fields
    tokenizer: str
    on_bad: OnBad


def prepare(request: Request, folder: Path, *, workers: int, report: Report) -> Manifest:
    """Makes every shard that is not there yet, and the manifest.

    Raises:
        DataError: the text cannot be read, or the folder holds another corpus.
    """
    tokenizer = open_tokenizer(request.tokenizer)
    parts = READERS[request.source].cut(request.path, request.part_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    _agree_on_plan(folder, request, parts, tokenizer)
    copied = _copy_tokenizer(folder, tokenizer)
    jobs = [
        Job(
            name=f"shard-{number:05}",
            folder=str(folder),
            source=request.source,
            part=part,
            fields=request.fields,
            tokenizer=copied,
            on_bad=request.on_bad,
        )
        for number, part in enumerate(parts)
    ]
    done = {job.name: shard for job in jobs if (shard := _finished(folder, job.name))}
    if done:
        report(f"{len(done)} of {len(jobs)} shards are there already")
    for shard in _made([job for job in jobs if job.name not in done], workers):
        done[shard.name] = shard
        report(f"{len(done)} of {len(jobs)} shards: {_line(shard)}")
    manifest = _manifest(tokenizer, [done[job.name] for job in jobs])
    write_manifest(folder, manifest)
    return manifest


def make_shard(job: Job, tokenizer: Tokenizer | None = None) -> Shard:
    """Makes one shard, its record last."""
    sieve, folder = Sieve(job.on_bad), Path(job.folder)
    documents = READERS[job.source].read(job.part, job.fields, sieve)
    opened = tokenizer or open_tokenizer(job.tokenizer)
    shard = write_shard(folder, job.name, documents, tokenizer=opened, sieve=sieve)
    write_whole(folder / f"{job.name}.json", json.dumps(asdict(shard), indent=1).encode())
    return shard


def _made(jobs: list[Job], workers: int) -> Iterator[Shard]:
    """The shards of all jobs, as they are finished."""
    if min(workers, len(jobs)) <= 1:
        tokenizer = open_tokenizer(jobs[0].tokenizer) if jobs else None
        yield from (make_shard(job, tokenizer) for job in jobs)
        return
    # NOTE: no fork: the tokenizers library may have threads already, which a fork would lose.
    context = multiprocessing.get_context("spawn")
    with _one_thread_each(), ProcessPoolExecutor(min(workers, len(jobs)), context) as pool:
        made = [pool.submit(make_shard, job) for job in jobs]
        try:
            for future in as_completed(made):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Lets the processes that start now tokenize on one thread: there is one for each core."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _finished(folder: Path, name: str) -> Shard | None:
    """The record of a shard that is whole; anything less is made again."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    try:
        shard = read_shard(path)
        check_files(folder, shard)
    except DataError:
        return None
    return shard if shard.name == name else None


def _agree_on_plan(folder: Path, request: Request, parts: list[Part], tokenizer: Tokenizer) -> None:
    """Writes down what is prepared here, or checks that it is what was begun.

    Raises:
        DataError: another text, another tokenizer or other settings were.
    """
    plan = {
        "request": {**asdict(request), "tokenizer": tokenizer.digest},
        "parts": [{**asdict(part), "files": _states(part)} for part in parts],
    }
    content = json.dumps(plan, indent=1)
    path = folder / PLAN
    if path.exists():
        found = read_json(path, "prepare into another folder")
        if found != json.loads(content):
            raise DataError(
                f"{folder} was begun with {_difference(found, json.loads(content))}; expected the "
                "same text, tokenizer and settings; prepare into another folder, or delete this one"
            )
        return
    if any(folder.iterdir()):
        raise DataError(
            f"{folder} is not empty and has no {PLAN}; expected a folder that weft began, or a new "
            "one; prepare into another folder"
        )
    write_whole(path, content.encode())


def _states(part: Part) -> list[list[Any]]:
    """Name, size and time of change of the files of a part."""
    states = []
    for name in part.files:
        found = Path(part.root, name).stat()
        states.append([name, found.st_size, found.st_mtime_ns])
    return states


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    before, after = found.get("request", {}), wanted["request"]
    for key in after:
        if not isinstance(before, dict) or before.get(key) != after[key]:
            then = before.get(key) if isinstance(before, dict) else before
            return f"{key} = {then!r}, this is {after[key]!r}"
    return "files that have changed since (name, size or time)"


def _copy_tokenizer(folder: Path, tokenizer: Tokenizer) -> str:
    """Keeps the tokenizer beside the shards: without it they are numbers."""
    if tokenizer.name == BYTES:
        return BYTES
    copy = folder / "tokenizer.json"
    if not copy.exists():
        write_whole(copy, Path(tokenizer.name).read_bytes())
    return str(copy)


def _manifest(tokenizer: Tokenizer, shards: list[Shard]) -> Manifest:
    digest = hashlib.sha256("\n".join([tokenizer.digest, *(s.digest for s in shards)]).encode())
    return Manifest(
        version=VERSION,
        tokenizer=BYTES if tokenizer.name == BYTES else "tokenizer.json",
        tokenizer_digest=tokenizer.digest,
        vocabulary=tokenizer.size,
        end_of_text=tokenizer.end_of_text,
        token_bytes=dtype_for(tokenizer.size)().itemsize,
        digest=digest.hexdigest(),
        shards=tuple(shards),
    )


def _line(shard: Shard) -> str:
    counted = f"{shard.num_documents:,} documents, {shard.num_tokens:,} tokens"
    if not shard.num_skipped:
        return f"{shard.name}: {counted}"
    return f"{shard.name}: {counted}, {shard.num_skipped:,} bad ones skipped: {shard.first_skipped}"
