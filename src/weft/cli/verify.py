"""`weft verify RECIPE`: a person proves on their own machine that layouts agree, and sees by how
much.
"""

import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli.arguments import Overrides
from weft.cli.matrix import prove_matrix
from weft.cli.settled import load_settled
from weft.errors import ConfigError

if TYPE_CHECKING:
    from weft.testing.verify import Case, Proof, Row

CHECKS = (
    "start", "data", "loss64", "grads64", "loss32", "grads32",
    "replicas", "overlap", "bytes", "volume", "routing", "fp8",
)  # fmt: skip
_NUMBER, _LAYOUT, _WIRE, _CELL = 4, 29, 10, 9  # columns of a terminal
_KEY = 32
FAILED = 1


class Fault(StrEnum):
    """What can be broken on purpose: a proof that cannot fail proves nothing."""

    SYNC = "sync"
    NODES = "nodes"
    EXPERTS = "experts"
    CHUNKS = "chunks"
    ORDER = "order"
    BALANCE = "balance"
    DROP = "drop"
    SCALE = "scale"
    DOUBLED = "doubled"


def verify(
    recipe: Annotated[
        str | None, typer.Argument(help="a recipe: a TOML file, see recipes/; none with --matrix")
    ] = None,
    overrides: Overrides = None,
    sabotage: Annotated[
        Fault | None, typer.Option(help="break something on one rank; the command must then fail")
    ] = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="fewer layouts, steps and layers")] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="prove every parallelism, on small models of its own")
    ] = False,
    only: Annotated[
        str, typer.Option(help='rows of the matrix with these words, as in "pp2 ep2"')
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="the matrix as JSON, once all of it is known")
    ] = False,
) -> None:
    """Prove on this machine that every layout of a recipe computes what one rank computes."""
    if matrix:
        _refuse_beside_matrix(recipe, overrides)
        fault = sabotage.value if sabotage else ""
        if not prove_matrix(sabotage=fault, only=only, quick=quick, as_json=as_json):
            raise typer.Exit(FAILED)
        return
    if recipe is None or only or as_json:
        raise ConfigError("weft verify: expected a recipe, or --matrix with its --only and --json")
    config = load_settled(recipe, overrides)
    if sabotage is Fault.SCALE and not config.compression.encodes:
        raise ConfigError(
            "--sabotage scale: found no crossing in eight bits whose scales could be applied "
            "twice; try --set compression.dispatch=fp8"
        )
    if quick and sabotage is Fault.CHUNKS:
        raise ConfigError("--sabotage chunks: no quick layout has chunks; leave --quick out")
    from weft.testing.sabotage import HONEST, SABOTAGES  # after the recipe is found good
    from weft.testing.verify import prepare, prove

    began = time.monotonic()
    proof = prepare(config, quick=quick, sabotage=SABOTAGES[sabotage] if sabotage else HONEST)
    print("\n".join(_opening(proof, config.name, sabotage)), flush=True)
    rows: list[Row] = []
    for case in proof.cases:
        number = "" if case.impossible else str(len(rows) + 1)
        print(_label(case, number), end="", flush=True)
        if case.impossible:
            print(f"skipped: {case.impossible}", flush=True)
            continue
        row = prove(proof, case)
        rows.append(row)
        print("\n".join((_cells(row), *_faults(row))), flush=True)
    print("\n".join(_byte_table(rows)))
    print(_summary(rows, len(proof.cases) - len(rows), time.monotonic() - began))
    if any(row.faults for row in rows):
        raise typer.Exit(FAILED)


def _refuse_beside_matrix(recipe: str | None, overrides: list[str] | None) -> None:
    if recipe is not None or overrides:
        raise ConfigError(
            "weft verify --matrix has models of its own: leave out the recipe and --set"
        )


# ---- text ----------------------------------------------------------------------------------------


def _opening(proof: "Proof", name: str, sabotage: Fault | None) -> Iterator[str]:
    from weft.testing.agreement import LOSS_FLOAT64
    from weft.testing.tolerance import GRADIENT_FLOAT64
    from weft.testing.weigh import float32_bound

    model, length = proof.course.config.model, proof.reference.length
    train, sequence = proof.course.config.train, proof.course.config.data.sequence
    yield (
        f"{name}: {model.family}, {model.layers} layers, {model.heads} heads, "
        f"{model.kv_heads} key/value heads, {model.experts} experts, top-{model.top_k}"
    )
    yield f"changed to be quick: {', '.join(proof.changes) or 'nothing'}"
    yield (
        f"a step is {train.global_batch // train.micro_batch} micro-batches of "
        f"{train.micro_batch} x {sequence} tokens; {length.float64} steps in float64, "
        f"{length.float32} in float32"
    )
    yield (
        f"largest relative errors against one rank; at most {LOSS_FLOAT64:.0e} for loss64, "
        f"{GRADIENT_FLOAT64:.0e} for grads64, routing and fp8, "
        f"{float32_bound(proof.reference):.0e} for loss32 and grads32"
    )
    if sabotage:
        yield f"SABOTAGED: {sabotage.value}; the command must fail"
    yield ""
    checks = "".join(f"{name:>{_CELL}}" for name in CHECKS)
    yield f"{'':<{_NUMBER}}{'layout':<{_LAYOUT}}{'ranks':<{_WIRE}}{checks}{'flips':>10}{'s':>7}"


def _label(case: "Case", number: str) -> str:
    return f"{number:<{_NUMBER}}{case.layout.name():<{_LAYOUT}}{case.wire:<{_WIRE}}"


def _cells(row: "Row") -> str:
    from weft.testing.weigh import flips

    found = {check.name: "FAIL" if check.fault else check.figure for check in row.checks}
    cells = "".join(f"{found.get(name, '-'):>{_CELL}}" for name in CHECKS)
    flipped, tokens = flips(row.findings)
    return (
        f"{cells}{f'{flipped}/{tokens}':>10}{row.seconds:>7.1f}  {'FAIL' if row.faults else 'ok'}"
    )


def _faults(row: "Row") -> Iterator[str]:
    for check in row.faults:
        yield f"  FAIL {row.case.layout.name()}, {check.name}: {check.fault}"


def _byte_table(rows: Sequence["Row"]) -> Iterator[str]:
    """Bytes that rank 0 receives in a step, one line a label, one column a layout."""
    from weft.testing.findings import EVEN

    shown = [(number, row) for number, row in enumerate(rows, 1) if row.findings]
    tables = {number: row.findings[0].received[EVEN] for number, row in shown}
    yield ""
    yield "bytes that rank 0 receives in a step, bfloat16, even routing (! differs from prediction)"
    yield f"{'':<{_KEY}}{''.join(f'{number:>{_CELL}}' for number in tables)}"
    for key in sorted({key for table in tables.values() for key in table}):
        cells = (_bytes(table.get(key)) for table in tables.values())
        yield f"{' '.join(key):<{_KEY}}{''.join(f'{cell:>{_CELL}}' for cell in cells)}"
    yield ""


def _bytes(pair: tuple[int, int] | None) -> str:
    if pair is None:
        return "-"
    predicted, counted = pair
    return str(counted) if predicted == counted else f"!{counted}"


def _summary(rows: Sequence["Row"], skipped: int, seconds: float) -> str:
    """The last line: how many layouts and checks, and the first fault."""
    faults = [
        f"{row.case.layout.name()}, {fault.name}: {fault.fault}"
        for row in rows
        for fault in row.faults
    ]
    checks = sum(len(row.checks) for row in rows)
    verdict = f"{checks} checks hold" if not faults else f"{len(faults)} of {checks} checks FAIL"
    end = f"; first: {faults[0].splitlines()[0]}" if faults else ""
    return f"{len(rows)} layouts, {skipped} skipped, {verdict}, {seconds:.0f} s{end}"
