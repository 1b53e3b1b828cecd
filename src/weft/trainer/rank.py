"""The life of one rank: join, restore or initialise, train, leave; the first also sums up."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.checkpoint.format import step_name
from weft.config.load import dump
from weft.config.run import RunConfig
from weft.data.tokenizer import BYTES
from weft.errors import StoppedError
from weft.model.count import active, token_flops, total
from weft.telemetry import events
from weft.telemetry.metrics import FILE, Metrics, read
from weft.telemetry.progress import Display, Silent, display
from weft.telemetry.trackers import Several, Sink, open_tracker
from weft.trainer.loop import Loop
from weft.trainer.record import routed_layers, unmeasured
from weft.trainer.recover import batches_skipped, restore_session, start_session
from weft.trainer.sample import load_oracle, sample
from weft.trainer.session import Place, Session, close_session, open_session
from weft.version import __version__

PROMPT = b"def "
_SHOWN_SKIPPED = 3  # reasons; all of them would fill a terminal


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a run came to, on the first rank."""

    validation_loss: float | None
    trigram_loss: float | None
    validation_nats_per_byte: float | None
    seconds: float
    last: Mapping[str, Any]


def run_rank(config: RunConfig, place: Place, checkpoint: Path | None) -> Summary | None:
    """Trains one rank of a recipe from a checkpoint, or from the seed."""
    session = open_session(config, place)
    try:
        summary = _run(session, checkpoint)
    except StoppedError:
        close_session(session)
        raise
    # NOTE: not after an error. The others would notice, and complain, before this rank has spoken.
    close_session(session)
    return summary


def _run(session: Session, checkpoint: Path | None) -> Summary | None:
    train = session.config.train
    if checkpoint is None:
        start_session(session)
        start, skipped = 0, 0
    else:
        start = restore_session(session, checkpoint)
        skipped = batches_skipped(checkpoint)
    shown = (
        display(every=train.log_every, total=train.steps, start=start)
        if session.leads
        else Silent()
    )
    metrics = _open_metrics(session, start) if session.leads else None
    loop = Loop(session, metrics, shown)
    begun = time.perf_counter()
    try:
        if session.leads:
            _introduce(session, shown, start)
            loop.remember()
        loop.run(start=start, skipped=skipped)
    except StoppedError:
        raise
    except BaseException as error:  # an interruption from the keyboard is news too
        if session.leads:
            _tell_failure(session, error)
        raise
    finally:
        shown.close()
        if metrics is not None:
            metrics.close()
    return _conclude(session, time.perf_counter() - begun) if session.leads else None


def _open_metrics(session: Session, start: int) -> Sink:
    config, run_dir = session.config, session.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.toml").write_text(dump(config), encoding="utf-8")
    metrics = Metrics(run_dir / FILE, _header(session, start), first_step=start)
    events.append(run_dir, "resume" if start else "start", step=start)
    settled = config.model_dump(mode="json")
    tracker = open_tracker(
        config.train.tracker, run_dir, run=config.name, config=settled, start=start
    )
    return Several((metrics, tracker))


def _header(session: Session, start: int) -> Mapping[str, Any]:
    plan, device = session.stage.plan, session.place.device
    return {
        "run": session.config.name,
        "weft": __version__,
        "layout": plan.layout.name(),
        "world": plan.layout.world,
        "device": str(device),
        "corpus": session.feed.digest,
        "tokenizer": session.feed.tokenizer.digest,
        "skipped_documents": len(session.feed.skipped),
        "parameters": total(plan.shape).all,
        "active_parameters": active(plan.shape).all,
        "token_flops": token_flops(plan.shape, sequence=plan.sequence),
        "steps": session.config.train.steps,
        "routed_layers": list(routed_layers(plan)),
        "resumed_from_step": start,
        "not_measured": unmeasured(plan, device),
    }


def _tell_failure(session: Session, error: BaseException) -> None:
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    events.append(session.run_dir, "failure", error=text)


def _introduce(session: Session, shown: Display, start: int) -> None:
    plan, config = session.stage.plan, session.config
    flops = token_flops(plan.shape, sequence=plan.sequence)
    shown.say(
        f"{config.name}: {total(plan.shape).all / 1e6:.2f} M parameters, "
        f"{active(plan.shape).all / 1e6:.2f} M active, {flops / 1e6:.1f} MFLOP a token"
    )
    shown.say(
        f"layout {plan.layout.name()} on {session.place.world} rank(s), "
        f"{session.place.device.type}, {plan.precision}, {plan.order} order"
    )
    if session.place.world > 1:
        shown.say(f"collectives over {session.transport.describe()}")
    skipped = session.feed.skipped
    for reason in skipped[:_SHOWN_SKIPPED]:
        shown.say(f"skipped: {reason}")
    if skipped:
        shown.say(f"{len(skipped)} bad document(s) skipped, as data.on_bad says")
    if start == config.train.steps:
        shown.say(f"all {start} steps are done already; raise train.steps to go on")
    elif start:
        shown.say(f"resumed after step {start}")
    elif config.train.init_from:
        shown.say(f"starting from {config.train.init_from}")


def _conclude(session: Session, seconds: float) -> Summary:
    """What the file of the run says of its end, whether this process has seen it or one before."""
    records = read(session.run_dir / FILE)
    steps = [record for record in records if "loss" in record]
    validations = [r["validation_loss"] for r in records if "validation_loss" in r]
    per_byte = [r.get("validation_nats_per_byte") for r in records if "validation_loss" in r]
    summary = Summary(
        validation_loss=validations[-1] if validations else None,
        trigram_loss=session.feed.baseline(),
        validation_nats_per_byte=per_byte[-1] if per_byte else None,
        seconds=seconds,
        last=steps[-1] if steps else {},
    )
    _print(session, summary)
    (session.run_dir / "summary.json").write_text(
        json.dumps(
            {
                "validation_loss": summary.validation_loss,
                "validation_nats_per_byte": summary.validation_nats_per_byte,
                "trigram_loss": summary.trigram_loss,
                "seconds": summary.seconds,
                "last": dict(summary.last),
            },
            indent=2,
        ),
        encoding="utf-8",
    )
    events.append(session.run_dir, "end", step=session.config.train.steps)
    return summary


def _print(session: Session, summary: Summary) -> None:
    config = session.config
    print(f"\ntrained in {summary.seconds:.1f} s")
    if summary.validation_loss is not None:
        _print_losses(session, summary, summary.validation_loss)
    if config.train.sample_bytes and config.train.checkpoint_every:
        folder = session.run_dir / step_name(config.train.steps)
        device = session.place.device
        oracle = load_oracle(config, folder, device)
        text = sample(
            oracle,
            PROMPT,
            tokenizer=session.feed.tokenizer,
            count=config.train.sample_bytes,
            seed=config.train.seed,
            device=device,
        )
        (session.run_dir / "sample.txt").write_text(text, encoding="utf-8")
        print(f"\na sample, continuing {PROMPT.decode()!r}:\n\n{text}\n")
    print(f"everything is in {session.run_dir}: metrics.jsonl, config.toml, summary.json, step-*")
    print(f"see it all on one page: weft report {session.run_dir}")


def _print_losses(session: Session, summary: Summary, loss: float) -> None:
    unit = "byte" if session.feed.tokenizer.name == BYTES else "token"
    print(f"validation loss   {loss:.4f} nats a {unit}")
    if summary.validation_nats_per_byte is not None:
        print(f"                  {summary.validation_nats_per_byte:.4f} nats a byte")
    if summary.trigram_loss is not None:
        verdict = "below" if loss < summary.trigram_loss else "NOT below"
        print(
            f"trigram baseline  {summary.trigram_loss:.4f} nats a byte: the model is {verdict} it"
        )
