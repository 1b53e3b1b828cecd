"""`weft`: one command, its verbs, and one way for an error to end it.

Exit codes are listed in `weft.errors`.
"""

import sys

import typer

from weft.cli import (
    bench,
    ckpt,
    data,
    diff,
    export,
    generate,
    plan,
    report,
    reproduce,
    show,
    slurm,
    status,
    tokenizer,
    trace,
    train,
    verify,
)
from weft.cli.doctor import doctor
from weft.errors import ConfigError, DataError, LayoutError, StoppedError, WeftError

REFUSED = 2
FAILED = 1

app = typer.Typer(
    name="weft",
    help="Train mixture-of-experts models: communication small, hidden and compressed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("slurm")(slurm.slurm)
app.command("status")(status.status)
app.command("report")(report.report)
app.command("generate")(generate.generate)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("plan")(plan.plan)
app.command("simulate")(plan.simulate)
app.command("explain")(plan.explain)
app.command("reproduce")(reproduce.reproduce)
app.command("trace")(trace.trace)
app.command("doctor")(doctor)
app.add_typer(show.app, name="show")
app.add_typer(diff.app, name="diff")
app.add_typer(bench.app, name="bench")
app.add_typer(ckpt.app, name="ckpt")
app.add_typer(data.app, name="data")
app.add_typer(tokenizer.app, name="tokenizer")


def main() -> None:
    """Runs the command; an error that weft raises on purpose is its message and an exit code, never
    a traceback.
    """
    try:
        app()
    except (ConfigError, DataError, LayoutError) as error:
        print(f"weft: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    except StoppedError as error:
        print(f"weft: {error}", file=sys.stderr)
        sys.exit(error.code)
    except WeftError as error:
        print(f"weft: {error}", file=sys.stderr)
        sys.exit(FAILED)
