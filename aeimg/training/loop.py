"""The training loop: steps of the weights, a moving average of them, evaluations on held-out images, checkpoints.

The objective says what is trained, and on what. The learning rate warms up and then falls along a cosine, which always
comes to its end: a run whose patience runs out goes through what is left of the schedule, the last phase included, in a
tenth of the steps that it has done. All that steers a run bounded by steps is counted in steps and never timed, so it
ends at the same weights however often it was interrupted.
"""

from __future__ import annotations

import math
import queue
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .. import plots
from ..errors import OutputError, TrainingDiverged
from ..paths import write_atomic
from ..progress import Progress, duration
from ..weights import not_finite
from .checkpoints import Optimizers, RecordedCall, save_checkpoint, tensors_of
from .journal import BATCHES_AHEAD, Journal, Schedule, learning_rate_factor
from .objective import AnyObjective

EVALUATION_SHARE = 0.05
"""Evaluations may take this share of the work."""
SKIPPED_STEPS = 100
"""A run ends when so many steps in a row had to be left out, because the loss or its gradient was not finite."""
SECONDS_BETWEEN_LINES = 30
SECONDS_BETWEEN_CURVES = 10
SECONDS_BETWEEN_CHECKPOINTS = 180


@dataclass(frozen=True)
class Batch:
    """A batch and what it was drawn with."""

    step: int
    """The step that it is for."""
    tensors: tuple[Tensor, ...]
    """What `Objective.batch` made."""
    rng: np.random.Generator
    """The generator that drew the batch, as it was left, for what the loss leaves to chance."""
    late: bool
    """Whether it is one of the last phase."""


def batches_ahead(
    objective: AnyObjective, seed: int, start: int, late: Callable[[int], bool]
) -> Generator[Batch, None, None]:
    """The batches from step `start` on, made by a thread of their own. Each depends on seed, step and phase alone."""
    ahead: queue.Queue[Batch | BaseException] = queue.Queue(BATCHES_AHEAD)
    stop = threading.Event()

    def work() -> None:
        step = start
        try:
            while not stop.is_set():
                rng = np.random.default_rng((seed, step))
                phase = late(step)
                batch = Batch(step, objective.batch(rng, phase), rng, phase)
                ahead.put(batch)
                step += 1
        except BaseException as error:  # the loop gets it, and raises it
            ahead.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item = ahead.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        with suppress(queue.Empty):
            while True:  # makes room: the thread may wait for some, and puts one item more at most
                ahead.get_nowait()
        thread.join()


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Ctrl-C waits until the function that this yields is called, which raises it: no checkpoint holds half a step.

    A second Ctrl-C does not wait.
    """
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield check
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def average_decay(step: int, decay: float) -> float:
    """What the moving average keeps of itself after `step`: `decay`, and less early on, when it would remember the
    random start for long."""
    return min(decay, (step + 1) / (step + 10))


def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """`average` becomes `decay * average + (1 - decay) * model`, parameter by parameter."""
    update: Callable[[Sequence[Tensor], Sequence[Tensor], int], None] = get_ema_multi_avg_fn(decay)
    update(list(average.parameters()), list(model.parameters()), 0)


def rounded(value: float) -> float:
    """`value` with five significant digits."""
    return float(f"{value:.5g}")


def described(figures: dict[str, float]) -> str:
    """Figures for people, with five significant digits."""
    return " ".join(f"{key} {rounded(value):g}" for key, value in figures.items() if key != "step")


@dataclass(frozen=True)
class Settings:
    """How a loop runs, beside what its objective says."""

    device: torch.device
    """Where the network is trained."""
    dtype: torch.dtype
    """The precision of the multiplications (autocast)."""
    seed: int
    """The seed of batches and of all noise."""
    patience: int | None
    """The run ends after so many evaluations in a row without a better one."""
    checkpoint: Path
    """The file that checkpoints are written to."""
    curve: Path | None
    """Where the loss curve is drawn; None where matplotlib is not installed."""
    title: str
    """The title of the loss curve."""
    log: Callable[[str], None]
    """Takes the lines that say how the run goes."""


@dataclass
class Loop:
    """A run under way."""

    objective: AnyObjective
    """What is trained, and on what."""
    average: nn.Module
    """The moving average of the objective's model, which is evaluated and written."""
    optimizers: Optimizers
    """They hold the parameters of the objective's model."""
    schedule: Schedule
    """How much of the run is over at each step."""
    settings: Settings
    """How the loop runs."""
    call: RecordedCall
    """How the run was called, for the checkpoint."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """With patience, the average as it was at the best evaluation."""
    last_checkpoint: tuple[Path, int] | None = None
    """The last good checkpoint of this run, and its step."""
    skipped: int = 0
    """How many steps in a row were left out."""
    window: dict[str, list[float]] = field(default_factory=dict)
    """The terms of the losses since the last line to the log."""
    shown: Progress | None = None
    """Where a bar shows how far the run is."""
    clocks: dict[str, float] = field(default_factory=dict)
    """When something was last done that is done every few seconds."""

    @property
    def journal(self) -> Journal:
        return self.schedule.journal

    # -- steps -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Does the steps that are left, evaluates the result, and leaves a checkpoint also where it is interrupted."""
        self.clocks = dict.fromkeys(("lines", "curves", "checkpoints"), time.monotonic())
        progress = self.schedule.progress(self.journal.step)
        self.journal.go_on(progress)
        if self.shown is not None:
            self.shown.through = self.journal.step
            self.shown.begin(progress)
        try:
            self._do_steps()
        except BaseException:
            if self.save_checkpoint():
                self.settings.log(f"not finished; --resume {self.settings.checkpoint} goes on with it")
            raise
        if not self.journal.evaluations or self.journal.last_evaluation() != self.journal.step:
            self.evaluate(1.0)
        self.draw_curve()
        self.save_checkpoint()

    def _do_steps(self) -> None:
        objective, journal, progress = self.objective, self.journal, self.schedule.progress
        recipe = objective.recipe
        # An evaluation is a forward pass; the backward pass of a step costs about twice as much again.
        apart = math.ceil(objective.evaluated_pixels() / (3 * recipe.batch * recipe.crop**2) / EVALUATION_SHARE)
        batches = batches_ahead(
            objective, self.settings.seed, journal.step, lambda step: progress(step) >= 1 - recipe.late
        )
        objective.model.train()
        with closing(batches), deferred_interrupts() as raise_if_interrupted:
            for batch in batches:
                raise_if_interrupted()
                objective.progress, objective.step = progress(batch.step), batch.step
                if objective.progress >= 1:
                    break
                terms = self.train_step(batch)
                if terms is None:
                    continue
                after = progress(batch.step + 1)
                journal.record_loss(batch.step, terms["loss"], late=batch.late, progress=after)
                self._show(after, terms["loss"])
                if journal.next_evaluation <= after < 1 and journal.step - journal.last_evaluation() >= apart:
                    self.evaluate(after)
                self._log_terms(batch.step, terms, after)
                if self._is_due("checkpoints", SECONDS_BETWEEN_CHECKPOINTS):
                    self.save_checkpoint()

    def train_step(self, batch: Batch) -> dict[str, float] | None:
        """One step of the weights and of their average. Returns the loss and its terms; None where it was left out."""
        objective, recipe, model = self.objective, self.objective.recipe, self.objective.model
        device, dtype = self.settings.device, self.settings.dtype
        torch.manual_seed(self.settings.seed * 1_000_003 + batch.step)  # for the noise that stands for rounding
        factor = learning_rate_factor(batch.step, objective.progress, recipe.warmup, recipe.hold)
        learning_rate = recipe.learning_rate * factor
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss, terms = objective.loss(tuple(part.to(device) for part in batch.tensors), batch.rng, batch.late)
        model.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        if not (torch.isfinite(loss.detach()) and torch.isfinite(norm)):
            self._skip(batch.step)
            return None
        self.skipped = 0
        for optimizer in self.optimizers:
            optimizer.step()
        update_average(self.average, model, average_decay(batch.step, recipe.average))
        return {"loss": float(loss.detach()), **terms}

    # -- guards against values that are not finite --------------------------------------------------------------------

    def _skip(self, step: int) -> None:
        self.check_finite()
        self.skipped += 1
        if self.skipped >= SKIPPED_STEPS:
            raise self._diverged(f"{self.skipped} steps in a row gave a loss or a gradient that is not finite")
        self.settings.log(f"step {step}: the loss or its gradient is not finite; the step is left out")

    def check_finite(self) -> None:
        """Raises `TrainingDiverged` where the weights or their average are not finite."""
        for what, network in (
            ("the weights are", self.objective.model),
            ("the average of the weights is", self.average),
        ):
            name = not_finite(network.state_dict().items())
            if name is not None:
                raise self._diverged(f"{what} not finite ({name})")

    def _diverged(self, what: str) -> TrainingDiverged:
        if self.last_checkpoint is None:
            hint = "begin anew with a lower --learning-rate"
        else:
            path, step = self.last_checkpoint
            hint = f"--resume {path}, which is sound and holds step {step}, with a lower --learning-rate"
        return TrainingDiverged(f"{self.settings.title}: after step {self.journal.step} {what}; {hint}")

    # -- evaluations ---------------------------------------------------------------------------------------------------

    def evaluate(self, progress: float) -> None:
        """Takes the held-out figures of the average, and sees whether patience has run out.

        Raises `TrainingDiverged` where the weights are not finite.
        """
        self.check_finite()
        objective, journal = self.objective, self.journal
        torch.manual_seed(self.settings.seed)  # each step seeds itself anew
        figures = objective.validate(self.average)
        journal.record_evaluation(figures, progress=progress)
        loss = f", loss {rounded(journal.losses[-1][1]):g}" if journal.losses else ""
        share = f"{100 * min(progress, 1):.0f}%"
        self.settings.log(f"step {journal.step}, {share}{loss}; held out: {described(figures)}")
        if progress >= objective.comparable_from:
            self._compare(figures[objective.primary_metric])
        if self._is_due("curves", SECONDS_BETWEEN_CURVES):
            self.draw_curve()

    def _compare(self, figure: float) -> None:
        journal, metric, patience = self.journal, self.objective.primary_metric, self.settings.patience
        sign = 1 if self.objective.higher_is_better else -1
        known = None if journal.best is None else journal.evaluations[journal.best][metric]
        if math.isfinite(figure) and (known is None or sign * figure > sign * known):
            journal.best, journal.evaluations_since_best = len(journal.evaluations) - 1, 0
            if patience is not None:
                self.best = {key: tensor.clone() for key, tensor in self.average.state_dict().items()}
            return
        journal.evaluations_since_best += 1
        if patience is None or journal.evaluations_since_best < patience:
            return
        if self.schedule.end_early(journal.step):
            assert journal.ending is not None
            self.settings.log(
                f"{metric} was no better for {journal.evaluations_since_best} evaluations: "
                f"{journal.ending[1]} more steps bring the learning rate to its end"
            )

    def choose_weights(self) -> dict[str, float]:
        """Leaves in `average` the weights to be written: the last ones, or with patience the best. Returns their
        figures."""
        journal, metric, log = self.journal, self.objective.primary_metric, self.settings.log
        last = journal.evaluations[-1]
        best = last if journal.best is None else journal.evaluations[journal.best]
        if best is last:
            return last
        better = f"{metric} was {rounded(best[metric]):g} after step {best['step']}, is {rounded(last[metric]):g} now"
        if self.settings.patience is None:
            log(f"{better}; with patience, the best weights would be kept")
            return last
        self.average.load_state_dict(self.best)
        log(f"{better}; the best weights are kept")
        return best

    # -- what is written on the way ------------------------------------------------------------------------------------

    def save_checkpoint(self) -> bool:
        """Writes the checkpoint and returns whether it could.

        Where values are not finite, the last good checkpoint stays. A full disk is logged and does not end a run.
        """
        path, journal = self.settings.checkpoint, self.journal
        journal.seconds = self.schedule.seconds()
        states = {"model": self.objective.model.state_dict(), "average": self.average.state_dict(), "best": self.best}
        tensors = tensors_of(states, self.optimizers)
        broken = not_finite(tensors.items())
        if broken is not None:
            self.settings.log(f"{path}: is not written, as {broken} is not finite")
            return False
        if not self._written(lambda: save_checkpoint(path, tensors, journal, self.call)):
            return False
        self.last_checkpoint = path, journal.step
        return True

    def draw_curve(self) -> None:
        """Draws the loss curve so far, where there is one to draw."""
        objective, journal, path = self.objective, self.journal, self.settings.curve
        if path is None:
            return
        metric = objective.primary_metric
        picture = plots.curve(
            journal.losses, [(row["step"], row[metric]) for row in journal.evaluations],
            title=f"{self.settings.title}, {journal.step:,} steps", metric=metric,
            higher_is_better=objective.higher_is_better, last_phase=journal.last_phase,
        )  # fmt: skip
        self._written(lambda: write_atomic(path, picture))

    def _written(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except OutputError as error:
            self.settings.log(str(error))
            return False
        return True

    def _log_terms(self, step: int, terms: dict[str, float], progress: float) -> None:
        """Logs every half minute the mean of each term of the loss since the last time."""
        for key, value in terms.items():
            self.window.setdefault(key, []).append(value)
        if self._is_due("lines", SECONDS_BETWEEN_LINES):
            means = {key: sum(values) / len(values) for key, values in self.window.items()}
            minutes = self.schedule.seconds() / 60
            left = duration(60 * minutes * (1 - progress) / progress) if 0 < progress < 1 else "no time"
            share = f"{100 * progress:.0f}%"
            self.settings.log(f"step {step}, {minutes:.1f} min, {share}, {left} left: {described(means)}")
            self.window.clear()

    def _show(self, progress: float, loss: float) -> None:
        """Shows on the bar how far the run is, and its loss."""
        if self.shown is not None:
            self.shown.reach(progress, 1.0)
            self.shown.about = f"loss {rounded(loss):g}"
            self.shown.step()

    def _is_due(self, what: str, seconds: float) -> bool:
        """Whether `seconds` have passed since this was last true of `what`."""
        now = time.monotonic()
        if now - self.clocks.setdefault(what, now) <= seconds:
            return False
        self.clocks[what] = now
        return True
