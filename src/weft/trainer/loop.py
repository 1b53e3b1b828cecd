"""The loop: one page. Feed, step, record; evaluate, save; sample at the end."""

import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from weft.compose.plan import STOP
from weft.errors import NonFiniteError, StoppedError, WeftError
from weft.optim.lr import scheduled
from weft.runtime.stage import Rates
from weft.telemetry import events, metrics
from weft.telemetry.progress import Display
from weft.telemetry.trackers import Sink
from weft.trainer import record, trouble
from weft.trainer.prefetch import Prefetch
from weft.trainer.room import Room
from weft.trainer.saver import Outcome, Saver
from weft.trainer.session import Session
from weft.trainer.spike import Window
from weft.trainer.stop import ENDED, STOPPED

Record = Mapping[str, Any]


class Loop:
    """A run in progress on one rank, and the results still on their way from the device."""

    def __init__(self, session: Session, sink: Sink | None, display: Display) -> None:
        self.session = session
        self.sink = sink
        self.display = display
        self.readings: deque[record.Reading] = deque()
        self.behind = 1 if session.place.device.type == "cuda" else 0  # steps the host runs ahead
        self.saver = Saver(session)
        self.prefetch = Prefetch(partial(session.feed.read, session.stage.plan))
        self.last = session.config.train.steps
        # What follows is known to all ranks after the same step.
        self.asked = False  # to stop
        self.troubles: list[int] = []  # steps that were not finite
        self.overflowed: list[int] = []  # steps refused since a row found no room
        self.room = Room()
        self.skipped = 0  # batches left out
        self.restored = -1  # the step that was last gone back to, and how often in a row
        self.rollbacks = 0
        self.window = Window(session.config.optim.skip_sigmas)

    def run(self, *, start: int, skipped: int = 0) -> None:
        """Trains from `start` finished steps, before which `skipped` batches were left out."""
        self.skipped = skipped
        train, pulse = self.session.config.train, self.session.place.pulse
        step = start
        while step < train.steps:
            step += 1
            pulse.enter("first step" if step == start + 1 else "step", step)
            self._step(step)
            pulse.pass_by("after_step")
            last = step == train.steps
            due = step % max(train.checkpoint_every, 1) == 0
            evaluates = last or step % train.eval_every == 0
            if evaluates or due or self.asked:
                self._drain(keep=0)
            if self.overflowed:
                step = self._make_room()
                continue
            if evaluates:
                pulse.enter("evaluate", step)
                self._evaluate(step)
            if self.troubles:
                pulse.enter("inspect", step)
                step = self._answer(step)
                last = step == train.steps
            stopping = self.asked and not last
            if stopping or last:
                self.last = step
            self._settle(self.saver.look())
            if (due or last or stopping) and train.checkpoint_every and step > self.restored:
                pulse.enter("save", step)
                self._save(step)
            if stopping:
                self._leave(step)
        self._finish()

    def _make_room(self) -> int:
        """The step before the first that overflowed; that one is next, with room for every row."""
        self._drain(keep=0)
        step = self.overflowed[0]
        self.overflowed.clear()
        last = self.room.overflowed(step)
        self.session.stage.state.forgive()
        self._tell("overflow", step=step, until=last)
        self.display.say(
            f"step {step}: run again with room for all its rows, and so are the steps to {last}; "
            "if this goes on, raise parallel.row_bound"
        )
        return step - 1

    def _answer(self, step: int) -> int:
        """Names what was not finite and does as the recipe says; the step to go on from."""
        policy = self.session.config.train.on_non_finite
        for bad in self.troubles:
            index = bad - 1 + self.skipped
            finding = trouble.find(self.session, index=index, rates=self._rates(bad))
            text = f"step {bad}: loss or gradient not finite, {finding.text}"
            self.display.say(text)
            place = {k: v for k, v in asdict(finding).items() if k != "text"}
            self._tell("not_finite", step=bad, batch=index, error=finding.text, **place)
            if policy == "stop":
                self._settle(self.saver.wait())
                raise NonFiniteError(
                    f"{text}; expected numbers; no rank has taken the step; look at that operator, "
                    "or set train.on_non_finite to skip or rollback"
                )
        first = self.troubles[0]
        self.troubles.clear()
        return self._roll_back(first) if policy == "rollback" else step

    def _roll_back(self, bad: int) -> int:
        """Goes back to the last good checkpoint and on with the batch behind the bad one."""
        self._drain(keep=0)
        self._settle(self.saver.wait())
        step, folder = trouble.roll_back(self.session)
        self.rollbacks = self.rollbacks + 1 if step == self.restored else 1
        if self.rollbacks > trouble.PATIENCE:
            raise NonFiniteError(
                f"step {bad}: not finite again after going back to {folder} {trouble.PATIENCE} "
                "times; expected it to pass with other batches; try a lower optim.lr"
            )
        self.skipped += bad - step
        self.restored = step
        self.troubles.clear()
        self.overflowed.clear()
        if self.sink is not None:
            self.sink.cut(step)
            self.remember()
        self._tell("rollback", step=step, bad_step=bad, batches_skipped=self.skipped)
        self.display.say(
            f"back to {folder.name}; batches {step} to {bad - 1} behind it are left out"
        )
        return step

    def remember(self) -> None:
        """Reads the steps that are done, whoever did them."""
        self.window = Window(self.session.config.optim.skip_sigmas)
        for line in metrics.read(self.session.run_dir / metrics.FILE):
            if "loss" in line:
                self.window.add(line)

    def _finish(self) -> None:
        """Waits for what is still on its way: results from the device, bytes to the disk."""
        self.prefetch.close()
        self.session.place.pulse.enter("end", self.last)
        self._drain(keep=0)
        self._settle(self.saver.wait())

    def _leave(self, step: int) -> None:
        """Ends the run as it was asked to, on all ranks after the same step."""
        self._finish()
        saved = bool(self.session.config.train.checkpoint_every)
        self._tell("stop", step=step)
        self.display.say(f"stopped after step {step}, as asked")
        raise StoppedError(
            f"asked to stop: ended after step {step}, "
            + ("saved; start the same command again to go on" if saved else "without saving"),
            code=STOPPED if saved else ENDED,
        )

    def _step(self, step: int) -> None:
        session, device = self.session, self.session.place.device
        index = step - 1 + self.skipped
        begun = time.perf_counter()
        read = self.prefetch.take(index)
        batches = session.feed.stage(session.stage.plan, read, device)
        starved_seconds = time.perf_counter() - begun
        rates = self._rates(step)
        session.transport.reset_exposed()
        watch = record.Stopwatch(device)
        notes = dict(self.window.bounds(step)) if session.leads else {}
        if session.place.stop.asked:
            notes[STOP] = 1.0
        stage = session.stage.exactly if self.room.is_exact(step) else session.stage
        results = stage.train(batches, divisor=read.divisor, rates=rates, notes=notes)
        self.readings.append(
            record.read(
                results,
                step=step,
                tokens=session.config.train.global_batch * session.config.data.sequence,
                lr=rates.lr,
                watch=watch,
                exposed_seconds=session.transport.exposed_seconds(),
                starved_seconds=starved_seconds,
            )
        )
        self._drain(keep=self.behind)

    def _rates(self, step: int) -> Rates:
        optim = self.session.config.optim
        lr = scheduled(optim, step - 1, total=self.session.config.train.steps)
        return Rates(lr=lr, weight_decay=optim.weight_decay, step=step)

    def _drain(self, *, keep: int) -> None:
        """Records what has arrived, all but the last few steps.

        A step that overflowed was refused, and so was the one behind it: neither has happened.
        """
        while len(self.readings) > keep:
            reading = self.readings.popleft()
            if reading.overflow:
                self.overflowed.append(reading.step)
                continue
            line = record.record(reading, self.session.stage.plan, self.session.place.device)
            self.asked = self.asked or bool(reading.stats[STOP] > 0)
            if line["loss"] is None or line["grad_norm"] is None:
                self.troubles.append(line["step"])
            self.window.add(line)
            self._emit(line)
            self.display.step(line)

    def _emit(self, line: Record) -> None:
        if self.sink is not None:
            self.sink.write(line)

    def _evaluate(self, step: int) -> None:
        self._drain(keep=0)
        session, feed = self.session, self.session.feed
        begun = time.perf_counter()
        divisor = float(feed.validation.divisor)
        for batch in feed.load_validation(session.stage.plan, session.place.device):
            session.evaluator.add(batch, divisor=divisor)
        loss = session.evaluator.total()
        seconds = time.perf_counter() - begun
        per_byte = feed.nats_per_byte(loss)
        self._emit(
            {
                "step": step,
                "validation_loss": record.number(loss),
                "validation_nats_per_byte": None if per_byte is None else record.number(per_byte),
                "validation_s": seconds,
            }
        )
        perplexity = math.exp(min(loss, 50.0))  # e^50 is as good as infinite
        beside = "" if per_byte is None else f", {per_byte:.4f} nats a byte"
        self.display.say(
            f"step {step}: validation loss {loss:.4f} nats a token{beside} "
            f"(perplexity {perplexity:.2f})"
        )

    def _save(self, step: int) -> None:
        self._drain(keep=0)
        background = self.session.config.train.save == "background"
        save = self.saver.begin if background else self.saver.save
        self._settle(save(step, next_batch=step + self.skipped))

    def _settle(self, outcome: Outcome | None) -> None:
        """Tells what became of a save; one that failed is an error only where it was the last."""
        if outcome is None:
            return
        step, ended = outcome.ended.step, outcome.ended
        for text in outcome.said:
            self.display.say(text)
        if ended.error is not None:
            self._settle_failure(step, ended.error)
            return
        assert ended.folder is not None, f"{outcome=}"
        stall, seconds = round(outcome.stall_seconds, 3), round(ended.seconds, 3)
        self._tell(
            "checkpoint", step=step, folder=ended.folder.name, seconds=seconds, stall_s=stall
        )
        self.display.say(f"step {step}: checkpoint {ended.folder}")

    def _settle_failure(self, step: int, error: Exception) -> None:
        if not isinstance(error, WeftError) or step == self.last:
            raise error
        text = f"step {step}: NO CHECKPOINT WRITTEN: {error}"
        self.display.say(text)
        self._tell("no_checkpoint", step=step, error=str(error))
        if not self.session.leads:
            print(text, file=sys.stderr)  # the first rank sends people to this one's log

    def _tell(self, kind: events.Kind, **fields: Any) -> None:
        if self.session.leads:
            events.append(self.session.run_dir, kind, **fields)
