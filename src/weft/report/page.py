"""The page of a run: one file that needs nothing else, whatever is in the run escaped.

RUN/report/index.html      everything, figures inside
RUN/report/<figure>.png    the same figures, each to be put somewhere else
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from weft.report.figure import to_png, to_svg
from weft.report.picture import PICTURES, pictures
from weft.report.run import Record, Run
from weft.report.status import Status, duration

FOLDER = "report"
PAGE = "index.html"
EVENTS = 40  # the last ones: more than a screen of a table is no longer read

Fact = tuple[str, str, str]  # what, its value, a word about it


def write_report(status: Status) -> Path:
    """Writes the page and the figures beside it; returns the page's path."""
    folder = status.run.folder / FOLDER
    folder.mkdir(exist_ok=True)
    for picture in PICTURES:  # one that no longer applies would tell of an earlier state
        (folder / f"{picture.name}.png").unlink(missing_ok=True)
    cards = []
    for picture, figure in pictures(status.run):
        svg = to_svg(figure, picture.name)
        to_png(figure, folder / f"{picture.name}.png", f"{picture.title} ({status.run.name})")
        cards.append(_card(picture.title, svg, picture.caption))
    path = folder / PAGE
    path.write_text(_page(status, cards), encoding="utf-8")
    return path


def _page(status: Status, cards: Iterable[str]) -> str:
    run = status.run
    style = (files("weft.report") / "page.css").read_text(encoding="utf-8")
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(run.name)}: weft</title><style>{style}</style></head><body>",
            _header(status),
            f'<h2>How it went</h2><div class="figures">{"".join(cards)}</div>',
            _sample(run),
            f"<h2>What was run</h2>{_table(_settings(run))}",
            _config(run),
            _events(run),
            _footer(status),
            "</body></html>",
        )
    )


def _header(status: Status) -> str:
    run = status.run
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(word)}</small></dd></div>"
        for name, value, word in _facts(run)
    )
    steps = (
        f"{run.last_step:,} of {run.total_steps:,} steps" if run.total_steps else "steps unknown"
    )
    state = f'<span class="state {status.state}">{status.state}</span>'
    title = f"<header><h1>{escape(run.name)}</h1><p>{state}, {steps}</p></header>"
    return f'{title}<dl class="facts">{facts}</dl>'


def _facts(run: Run) -> Iterator[Fact]:
    """The figures that a person asks for first."""
    baseline = run.summary.get("trigram_loss")
    if run.validations:
        last = run.validations[-1]
        yield (
            "validation loss",
            f"{last['validation_loss']:.3f}",
            f"nats a token, step {last['step']:,}",
        )
    if baseline is not None and run.validations:
        margin = baseline - run.validations[-1]["validation_loss"]
        word = "below" if margin > 0 else "NOT below"
        yield "against trigrams", f"{-margin:+.3f}", f"{word} the baseline of {baseline:.3f}"
    if "parameters" in run.header:
        act = run.header["active_parameters"] / 1e6
        yield (
            "parameters",
            f"{run.header['parameters'] / 1e6:,.1f} M",
            f"{act:,.1f} M active a token",
        )
    if run.steps:
        yield from _rates(run)


def _rates(run: Run) -> Iterator[Fact]:
    last = run.steps[-1]
    rate = statistics.median(record["tokens_per_s"] for record in run.steps)
    yield "tokens a second", f"{rate:,.0f}", f"median; {last['tokens'] / 1e6:,.2f} M tokens seen"
    training = sum(record["step_ms"] for record in run.steps) / 1e3
    yield "training time", duration(training), "evaluation and checkpoints apart"
    starved = sum(run.series("starved_ms")[1]) / 1e3
    if starved:
        yield "starved", f"{starved / (training + starved):.2%}", "of it, waiting for batches"
    if last.get("mfu") is not None:
        yield "model FLOPs used", f"{last['mfu']:.1%}", "of the peak, last step"
    low, high = last["expert_load_min"], last["expert_load_max"]
    dead = f"{last['dead_experts']} dead in the last step"
    yield "expert load", f"{low:.2f}-{high:.2f}", f"of even; {dead}"
    skipped = len(run.skipped)
    yield "skipped steps", f"{skipped}", "loss or gradient not finite" if skipped else "all finite"


def _card(title: str, svg: str, caption: str) -> str:
    words = f"<figcaption>{escape(caption)}</figcaption>"
    return f'<figure aria-label="{escape(title)}"><h3>{escape(title)}</h3>{svg}{words}</figure>'


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    """Layout, model, data and optimizer, a line each; empty ones left out by the table."""
    header, config = run.header, run.config
    model, data, optim, train = (config.get(k, {}) for k in ("model", "data", "optim", "train"))
    device = header.get("device", "")
    yield "layout", f"{header.get('layout', '')}, {header.get('world', '?')} rank(s), {device}"
    if model:
        yield (
            "model",
            "{family}: {layers} layers of {hidden}, {heads} heads over {kv_heads}".format_map(
                model
            ),
        )
        yield "experts", "{experts} a layer, top-{top_k}, hidden {ffn_hidden}".format_map(model)
    if train:
        batch = "{global_batch} sequences a step in micro-batches of {micro_batch}, {precision}"
        yield "batch", batch.format_map(train)
    yield "data", f"{data.get('source', '')}, sequences of {data.get('sequence', '?')} tokens"
    yield "corpus", str(header.get("corpus", ""))
    if optim:
        yield "optimizer", f"AdamW, {_listed(optim)}"
    for field, reason in header.get("not_measured", {}).items():
        yield f"no {field}", reason


def _listed(values: Mapping[str, Any]) -> str:
    shown = {k: f"{v:g}" if isinstance(v, float) else f"{v}" for k, v in values.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows if v)
    return f"<table>{''.join(lines)}</table>"


def _config(run: Run) -> str:
    if not run.config_text:
        return ""
    text = escape(run.config_text)
    return f"<details><summary>The resolved recipe, whole</summary><pre>{text}</pre></details>"


def _sample(run: Run) -> str:
    return f"<h2>A sample</h2><pre>{escape(run.sample)}</pre>" if run.sample else ""


def _events(run: Run) -> str:
    if not run.events:
        return ""
    return f"<h2>What happened</h2>{_table((_moment(e), _told(e)) for e in run.events[-EVENTS:])}"


def _moment(event: Record) -> str:
    when = datetime.fromtimestamp(event["time"], UTC)
    return when.strftime("%Y-%m-%d %H:%M:%S UTC")


def _told(event: Record) -> str:
    step: Any = event.get("step")
    match event["event"]:
        case "checkpoint":
            held = event.get("stall_s")
            beside = "" if held is None else f", training held up for {duration(held)}"
            seconds = duration(event["seconds"])
            return f"step {step:,}: checkpoint {event['folder']} in {seconds}{beside}"
        case "no_checkpoint":
            return f"step {step:,}: NO CHECKPOINT: {event['error']}"
        case "resume":
            return f"resumed after step {step:,}"
        case "start":
            return "started"
        case "not_finite":
            return f"step {step:,}: NOT FINITE: {event['error']}"
        case "rollback":
            return f"back to step {step:,}; batches left out so far: {event['batches_skipped']}"
        case "overflow":
            return f"step {step:,}: run again with room for all its rows"
        case "restart":
            return f"restart {event['number']}, from {event['origin']}"
        case "stop":
            return f"step {step:,}: stopped, as asked"
        case "end":
            return f"step {step:,}: all done"
        case _:
            return f"FAILED: {event.get('error', '')}"


def _footer(status: Status) -> str:
    version = status.run.header.get("weft", "")
    return f"<footer>weft {escape(version)}; {escape(status.checkpoint)}</footer>"
