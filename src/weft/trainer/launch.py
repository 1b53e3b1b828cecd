"""From one command to all ranks: what can be refused is refused before the first process starts.

A rank alone runs in this process, unless it is to be restarted. More are children of it under a
supervisor, each with a log of its own in `run_dir/logs`; the first rank keeps the terminal.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from weft.checkpoint.prune import list_checkpoints, sweep
from weft.config.run import RunConfig
from weft.errors import ConfigError
from weft.runtime.backends import pick_device
from weft.telemetry.trackers import check_tracker
from weft.trainer import lock
from weft.trainer.cluster import Member
from weft.trainer.feed import open_feed
from weft.trainer.pulse import Pulse, no_fail
from weft.trainer.rank import Summary, run_rank
from weft.trainer.recover import check_start, resumable
from weft.trainer.session import Place
from weft.trainer.stop import listening
from weft.trainer.supervisor import Process, Start, make_run_dir, supervise


def start_process(
    arguments: Sequence[str], rank: int, log: Path, *, held: Sequence[int] = ()
) -> Process:
    """Starts a rank as a process of its own that keeps the descriptors in `held` open.

    It gets a session of its own, so that Ctrl-C reaches the supervisor alone, which passes it on.
    """
    command = [sys.executable, "-m", "weft.trainer.child", *arguments]
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            stdout=None if rank == 0 else file,
            stderr=file,
            pass_fds=held,
            start_new_session=True,
        )


def train(
    config: RunConfig,
    *,
    nproc: int | None = None,
    resume: str = "auto",
    start: Start | None = None,
    fail_point: Callable[[str], None] = no_fail,
) -> None:
    """Trains a recipe on this machine; `start` starts its ranks where there are several, and
    `fail_point` is told where a rank alone is.

    Raises:
        ConfigError: the number of processes does not fit the layout, a device or the tracker is
            missing, or the folder of the run cannot be made or is in use.
        DataError: the corpus cannot be used.
        CheckpointError: there is nothing good to resume from, or it is of another run.
        RankError: a rank ended badly.
        StoppedError: the run was asked to stop.
    """
    check_tracker(config.train.tracker)
    world = check_processes(config, nproc)
    devices = [pick_device(config.train.device, rank) for rank in range(world)]
    digest = open_feed(config).digest
    if resume in ("auto", "never") and not list_checkpoints(Path(config.train.run_dir)):
        check_start(config)
    with lock.hold(make_run_dir(config)) as held:
        sweep(Path(config.train.run_dir))
        checkpoint = resumable(config, resume, digest, print)
        if world > 1 or config.train.restarts:
            newest = partial(resumable, config, "auto", digest, print)
            start = start or partial(start_process, held=(held,))
            supervise(config, checkpoint, lambda: newest() or checkpoint, start)
            return
        with listening() as stop:
            pulse = Pulse(None, fail_point)
            place = Place(rank=0, world=1, device=devices[0], meeting=None, stop=stop, pulse=pulse)
            run_rank(config, place, checkpoint)


def check_processes(config: RunConfig, nproc: int | None) -> int:
    """The number of ranks of a layout, if that is how many processes are asked for."""
    world = config.parallel.ranks
    if nproc is not None and nproc != world:
        raise ConfigError(
            f"--nproc {nproc}: the layout has parallel.pp * parallel.dp * parallel.sp = "
            f"{config.parallel.pp} * {config.parallel.dp} * {config.parallel.sp} = {world} "
            f"rank(s); {_remedy(config, nproc)}"
        )
    return world


def _remedy(config: RunConfig, nproc: int) -> str:
    dp, remainder = divmod(nproc, config.parallel.sp * config.parallel.pp)
    start_as_many = f"try --nproc {config.parallel.ranks}"
    return start_as_many if remainder or not dp else f"{start_as_many}, or --set parallel.dp={dp}"


def join(config: RunConfig, member: Member, resume: str) -> Summary | None:
    """Runs the one rank that torchrun or Slurm has started.

    Its groups have the time-out of the recipe: nobody of weft's own looks after these ranks.

    Raises:
        ConfigError: its world is not the layout's, the tracker is missing, or the folder of the run
            is in use.
        StoppedError: the run was asked to stop.
    """
    check_tracker(config.train.tracker)
    check_processes(config, member.world)
    device = pick_device(config.train.device, member.local_rank)
    digest = open_feed(config).digest
    with ExitStack() as stack:
        if member.rank == 0:
            stack.enter_context(lock.hold(make_run_dir(config)))
            sweep(Path(config.train.run_dir))
        checkpoint = resumable(config, resume, digest, print)
        place = Place(
            rank=member.rank,
            world=member.world,
            device=device,
            meeting=member.meeting,
            neighbours=member.neighbours,
            timeout_seconds=config.train.timeout_seconds,
            stop=stack.enter_context(listening()),
        )
        return run_rank(config, place, checkpoint)
