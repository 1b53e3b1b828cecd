"""What is done about a step whose loss or gradient was not finite. No rank has taken it.

    skip        the run goes on with the next batch
    stop        the run ends there
    rollback    the run goes back to its last good checkpoint and on with the next batch

In each case the first operator that made such a number is looked for and named.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from weft.checkpoint.format import step_name
from weft.compose.plan import without_bound
from weft.compose.step import training_step
from weft.data.order import micro_batches
from weft.errors import NonFiniteError
from weft.runtime import backends
from weft.runtime.inspect import NOWHERE, inspect, locate
from weft.runtime.stage import Rates
from weft.trainer.recover import latest, restore_session
from weft.trainer.session import Session

PATIENCE = 3  # times a run goes back to the same checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Where the first bad number was made."""

    text: str
    rank: int | None = None
    micro_batch: int | None = None
    layer: int | None = None
    task: str | None = None


def find(session: Session, *, index: int, rates: Rates) -> Finding:
    """Repeats the step on a batch, which changes nothing, and says where it first went wrong.

    Communicates:
        What a step does, and one all-gather of 8 bytes a rank.
    """
    device, plan = session.place.device, session.stage.plan
    number = inspect(
        session.stage,
        session.feed.load(plan, index, device),
        bodies=backends.bodies(session.table),
        device=device,
        divisor=float(session.feed.training.divisor(index)),
        rates=rates,
    )
    mine = torch.tensor([number], dtype=torch.int64, device=device)
    numbers = session.transport.all_gather(mine, axis="world", label="finding").wait().tolist()
    rank = min(range(len(numbers)), key=lambda r: numbers[r])
    if numbers[rank] == NOWHERE:
        return Finding(text="repeated, the step is finite: what went wrong has passed")
    return _describe(session, rank, numbers[rank])


def _describe(session: Session, rank: int, number: int) -> Finding:
    plan = replace(session.stage.plan, rank=rank)
    place = locate(training_step(without_bound(plan)), number)
    own = micro_batches(plan.micro_batches, dp_rank=plan.layout.dp_rank(rank), dp=plan.layout.dp)
    micro_batch = None if place.micro_batch is None else list(own)[place.micro_batch]
    where = "" if place.layer is None else f" of layer {place.layer}"
    when = "" if micro_batch is None else f", micro-batch {micro_batch}"
    return Finding(
        text=f"first in {place.task} ({place.segment}){where}{when}, on rank {rank}",
        rank=rank,
        micro_batch=micro_batch,
        layer=place.layer,
        task=place.task,
    )


def roll_back(session: Session) -> tuple[int, Path]:
    """Restores the newest good checkpoint on all ranks: its step, and its folder.

    Communicates:
        One all-reduce of 8 bytes: the first rank has looked which one it is.

    Raises:
        NonFiniteError: there is none.
        CheckpointError: there are checkpoints, and none is good.
    """
    folder = latest(session.run_dir, print) if session.leads else None
    step = 0 if folder is None else int(folder.name.removeprefix("step-").partition(".")[0])
    mine = torch.tensor([float(step)], dtype=torch.float64, device=session.place.device)
    agreed = int(session.transport.all_reduce(mine, axis="world", label="rollback").wait())
    if not agreed:
        raise NonFiniteError(
            f"{session.run_dir} holds no checkpoint to go back to; expected one before the first "
            "loss that is not finite; try a lower optim.lr, or train.on_non_finite=skip"
        )
    folder = session.run_dir / step_name(agreed)
    return restore_session(session, folder), folder
