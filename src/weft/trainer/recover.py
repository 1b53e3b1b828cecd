"""A run's state to and from its checkpoints, in whatever layout it runs.

What is written are the FP32 master weights, the moments and the router biases, as flat ranges of
logical names. What is read is what this rank owns of them; parameters in the compute dtype are
gathered from the owners afterwards.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from weft.checkpoint.durable import sync_file, sync_folder
from weft.checkpoint.format import Kind, Manifest
from weft.checkpoint.hf.read import check_same_model, open_pretrained
from weft.checkpoint.hf.read import load as load_pretrained
from weft.checkpoint.load import Checkpoint, find_latest
from weft.checkpoint.prune import list_checkpoints
from weft.checkpoint.save import Piece, Progress, Writer, save
from weft.checkpoint.verify import read_manifest, verify
from weft.compose.recipe import plan
from weft.config.branch import Branch
from weft.config.run import RunConfig
from weft.errors import CheckpointError
from weft.parallel.layout import Dispatch
from weft.planner.dispatch import taking
from weft.runtime.state import State, initialise
from weft.telemetry import events, metrics
from weft.trainer.session import Session

Report = Callable[[str], None]

# What may not change between a run and its resumption; a section without a key is all of it.
FIXED = (
    ("model", None),
    ("optim", None),
    ("data", "sequence"),
    ("data", "packing"),
    ("data", "validation_bytes"),  # what is held back is not trained on
    ("train", "global_batch"),
    ("train", "micro_batch"),
    ("train", "seed"),
    ("train", "precision"),
)
_ANEW = "or set another train.run_dir to start anew"


def save_session(
    session: Session,
    *,
    step: int,
    report: Report,
    next_batch: int | None = None,
    pieces: Sequence[Piece] | None = None,
    barrier: Callable[[], None] | None = None,
) -> Path:
    """Writes a checkpoint of the finished step together with the other ranks.

    `next_batch` is the batch that the next step takes, where it is not the one of its number.

    What the metrics and events say of the steps before is on the disk first: no checkpoint knows
    more than they do. A write beside the training brings its own copy of the state, and a barrier
    that no collective of a step can meet.
    """
    place, train = session.place, session.config.train
    barrier = barrier or session.transport.barrier
    writer = Writer(rank=place.rank, num_ranks=place.world, barrier=barrier)
    if session.leads:
        _sync_records(session.run_dir)
    progress = Progress(
        step=step,
        config=session.config.model_dump(mode="json"),
        data={
            "digest": session.feed.digest,
            "next_step": step if next_batch is None else next_batch,
        },
    )
    return save(
        session.run_dir,
        _on_host(state_pieces(session)) if pieces is None else pieces,
        progress=progress,
        writer=writer,
        keep=train.keep,
        keep_every=train.keep_every,
        fail_point=place.pulse.pass_by,
        report=report,
    )


def restore_session(session: Session, folder: Path) -> int:
    """Loads a checkpoint into this layout; returns the number of finished steps.

    Raises:
        CheckpointError: the checkpoint is of another model or another corpus.
    """
    checkpoint = Checkpoint.open_verified(folder)
    try:
        check_same_run(folder, checkpoint.manifest, session.config, session.feed.digest)
        load_state(session.stage.state, checkpoint)
    finally:
        checkpoint.close()
    gather_parameters(session)
    return checkpoint.manifest.step


def batches_skipped(folder: Path) -> int:
    """How many batches a run had left out when it wrote a checkpoint: those it went back from."""
    manifest = read_manifest(folder)
    then = manifest.data.get("next_step")
    return then - manifest.step if isinstance(then, int) else 0


def latest(run_dir: Path, report: Report) -> Path | None:
    """The newest good checkpoint of a run, bad ones named."""
    return find_latest(run_dir, report=report) if run_dir.exists() else None


def gather_parameters(session: Session) -> None:
    """Brings every parameter up to date with the master shards of its owners."""
    session.stage.gathers.run({})


def _sync_records(run_dir: Path) -> None:
    for path in (run_dir / metrics.FILE, run_dir / events.FILE):
        if path.exists():
            sync_file(path)
    if run_dir.exists():
        sync_folder(run_dir)


def state_pieces(session: Session) -> Iterator[Piece]:
    """What this rank has of a checkpoint, on its device."""
    return pieces_of(session.stage.state, leads=session.leads)


def pieces_of(state: State, *, leads: bool) -> Iterator[Piece]:
    """The shards of a rank's state; the first rank's also hold what all ranks have."""
    for kind, piece, tensor in state.shards():
        yield Piece(
            kind=cast("Kind", kind),  # the kinds a state has are kinds of a checkpoint
            name=piece.name,
            shape=piece.shape,
            start=piece.start,
            stop=piece.stop,
            tensor=tensor.detach(),
        )
    if leads:
        for name, tensor in _biases(state):
            shape, numel = tuple(tensor.shape), tensor.numel()
            yield Piece(kind="state", name=name, shape=shape, start=0, stop=numel, tensor=tensor)


def _on_host(pieces: Iterable[Piece]) -> list[Piece]:
    return [replace(piece, tensor=piece.tensor.cpu()) for piece in pieces]


def load_state(state: State, checkpoint: Checkpoint) -> None:
    """Fills what this rank holds, in its layout, from what another may have written."""
    for word, piece, tensor in state.held():
        kind = cast("Kind", word)
        found = checkpoint.shape(kind, piece.name)
        if found != piece.shape:
            raise CheckpointError(
                f"{checkpoint.folder}: {piece.name} has shape {found}, this recipe has "
                f"{piece.shape}; resume with the model section the run was started with"
            )
        tensor.copy_(checkpoint.read(kind, piece.name, piece.start, piece.stop))
    for name, tensor in _biases(state):
        tensor.copy_(checkpoint.read("state", name))


def _biases(state: State) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in state.statics.items():
        if key.startswith("state:"):
            yield key.removeprefix("state:"), tensor


def check_same_run(folder: Path, manifest: Manifest, config: RunConfig, digest: str) -> None:
    """What may not change between a run and its resumption; layout, order and device may.

    Raises:
        CheckpointError: the checkpoint is of another model, corpus, batch or optimizer, or it is
            further than this run is to go.
    """
    then, now = manifest.config, config.model_dump(mode="json")
    for section, key in FIXED:
        before, after = {**_defaults(section), **_table(then.get(section))}, now[section]
        keys = sorted({*before, *after}) if key is None else [key]
        changed = next((k for k in keys if before.get(k) != after.get(k)), None)
        if changed is not None:
            raise CheckpointError(
                f"{folder} was written with {section}.{changed} = "
                f"{json.dumps(before.get(changed))}, the recipe says "
                f"{json.dumps(after.get(changed))}; put it back, {_ANEW}"
            )
    found = manifest.data.get("digest")
    if found != digest:
        raise CheckpointError(
            f"{folder} was trained on a corpus with digest {found}, found {digest}; restore the "
            f"files, {_ANEW}"
        )
    if manifest.step > config.train.steps:
        raise CheckpointError(
            f"{folder} has finished step {manifest.step}, the recipe says train.steps = "
            f"{config.train.steps}; raise train.steps, {_ANEW}"
        )


def _defaults(section: str) -> Mapping[str, Any]:
    """The values of keys that a checkpoint does not name because it is older than they are."""
    branch = RunConfig.model_fields[section].annotation
    assert isinstance(branch, type), f"{section=}"
    assert issubclass(branch, Branch), f"{section=}"
    fields = branch.model_fields.items()
    return {name: field.default for name, field in fields if not field.is_required()}


def _table(section: object) -> Mapping[str, Any]:
    return section if isinstance(section, dict) else {}


def start_session(session: Session) -> None:
    """Gives the parameters of a new run their first values: of another model's, or of the seed."""
    train, state = session.config.train, session.stage.state
    if train.init_from is None:
        initialise(state, seed=train.seed)
        return
    with open_pretrained(Path(train.init_from)) as pretrained:
        load_pretrained(state, pretrained)


def check_start(config: RunConfig) -> None:
    """Refuses early what `start_session` would refuse in every rank.

    Raises:
        ConfigError: weft has no name for the model that the run is to start from.
        CheckpointError: it cannot be read, or is of another shape than the recipe's.
    """
    if config.train.init_from is not None:
        with open_pretrained(Path(config.train.init_from)) as pretrained:
            # whichever way tokens travel: it may be open yet, and the model is the same
            check_same_model(plan(taking(config, Dispatch.ALL_TO_ALL), 0), pretrained)


def resumable(config: RunConfig, resume: str, digest: str, report: Report) -> Path | None:
    """The checkpoint a run starts from, for `auto`, `never`, or a folder; all of it is verified.

    Raises:
        CheckpointError: the folder is no good checkpoint or is of another run, or `never` would
            overwrite a run.
    """
    run_dir = Path(config.train.run_dir)
    match resume:
        case "auto":
            folder = latest(run_dir, report)
        case "never":
            folder = None
            if list_checkpoints(run_dir):
                raise CheckpointError(
                    f"{run_dir} holds checkpoints of an earlier run; continue it with --resume "
                    f"auto, {_ANEW}"
                )
        case named:
            folder = Path(named)
            verify(folder)
    if folder is not None:
        check_same_run(folder, read_manifest(folder), config, digest)
    return folder
