"""What a run remembers, and how much of it is over: the state that a checkpoint holds beside tensors."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

EVALUATIONS = 40
"""A run evaluates the average of its weights on the held-out images this often, at most."""
LOSS_POINTS = 200
"""The journal keeps this many means of the training loss, at most."""
ENDING_SHARE = 0.1
"""Once patience has run out, the rest of the schedule takes this share of the steps so far."""
BATCHES_AHEAD = 2
"""How many batches wait to be used. One more is in the making."""
MINIMUM_FACTOR = 1e-3
"""The learning rate never falls below this share of its highest value."""


def _next(progress: float, count: int) -> float:
    """The next of `count` equal parts of a run of which so much is over."""
    return (math.floor(progress * count) + 1) / count


@dataclass
class Journal:
    """How a run has gone so far."""

    step: int = 0
    """The next step."""
    seconds: float = 0.0
    """How long the run has taken, the time before a resumption included."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """`(step, mean)`: means of the training loss, each over the steps since the one before it."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    """The held-out figures of each evaluation, and the `step` after which they were taken."""
    loss_sum: float = 0.0
    """The sum of the losses that are in no mean yet."""
    loss_count: int = 0
    """The number of the losses that are in no mean yet."""
    next_mean: float = 0.0
    """The progress of the run, 0..1, at which the next mean of losses is due."""
    next_evaluation: float = 0.0
    """The progress of the run, 0..1, at which the next evaluation is due."""
    last_phase: int | None = None
    """The first step of the last phase, once that has begun."""
    best: int | None = None
    """The index of the best evaluation. None counts before the objective is `comparable_from`."""
    evaluations_since_best: int = 0
    """The number of evaluations in a row that were no better than the best one."""
    ending: tuple[int, int, float] | None = None
    """Once patience has run out: the step at which the ending begins, how many steps it takes, and the progress, 0..1,
    at which it begins."""

    def record_loss(self, step: int, loss: float, *, late: bool, progress: float) -> None:
        """Enters the loss of `step`, which is done. `progress` is that of the run after it."""
        self.step = step + 1
        self.loss_sum += loss
        self.loss_count += 1
        if late and self.last_phase is None:
            self.last_phase = step
        if progress >= self.next_mean:
            self.losses.append((self.step, self.loss_sum / self.loss_count))
            self.loss_sum, self.loss_count = 0.0, 0
            self.next_mean = _next(progress, LOSS_POINTS)

    def record_evaluation(self, figures: dict[str, float], *, progress: float) -> None:
        """Enters the held-out figures of the weights as they are now."""
        self.evaluations.append({"step": self.step, **figures})
        self.next_evaluation = _next(progress, EVALUATIONS)

    def go_on(self, progress: float) -> None:
        """Takes note of how far the run is when it begins or is resumed: less far than it was, if it is to be longer
        now."""
        self.next_mean = min(self.next_mean, _next(progress, LOSS_POINTS))
        self.next_evaluation = min(self.next_evaluation, _next(progress, EVALUATIONS))

    def last_evaluation(self) -> float:
        """The step of the last evaluation, 0 where there was none."""
        return self.evaluations[-1]["step"] if self.evaluations else 0


@dataclass
class Schedule:
    """How much of a run is over at each step: what a run bounded by steps does depends on this alone, never on time."""

    minutes: float | None
    """How long the run takes, time before a resumption included; None where steps alone bound it."""
    steps: int | None
    """How many steps the run takes; None where time alone bounds it."""
    journal: Journal
    """How the run has gone so far."""
    began: float = field(init=False)
    """When the run began, on the clock of `time.monotonic`, as if it had never been interrupted."""

    def __post_init__(self) -> None:
        self.began = time.monotonic() - self.journal.seconds

    def seconds(self) -> float:
        """How long the run has taken so far."""
        return time.monotonic() - self.began

    def planned(self, step: int) -> float:
        """The progress of the run at `step`, 0..1, if patience does not run out."""
        parts = [0.0]
        if self.minutes is not None:
            parts.append(self.seconds() / (60 * self.minutes))
        if self.steps is not None:
            parts.append(step / self.steps)
        return max(parts)

    def progress(self, step: int) -> float:
        """The progress of the run at `step`: 0 at its start, 1 or more where it is over."""
        if self.journal.ending is not None and step >= self.journal.ending[0]:
            start, length, share = self.journal.ending
            return share + (1 - share) * (step - start) / length
        return self.planned(step)

    def end_early(self, finished: int) -> bool:
        """Begins the ending of a run whose first `finished` steps are done, and returns whether it did.

        It does not where the run would be over by then anyway.
        """
        start = (
            finished + BATCHES_AHEAD + 1
        )  # batches up to there were made, or are being made, for the phase as planned
        share = self.planned(start)
        length = math.ceil(ENDING_SHARE * finished)
        if self.journal.ending is not None or length >= start * (1 - share) / share:
            return False
        self.journal.ending = (start, length, share)
        return True


def learning_rate_factor(step: int, progress: float, warmup: int, hold: float = 0.0) -> float:
    """What the highest learning rate is multiplied with at `step`: a linear warm-up over `warmup` steps, times a cosine
    that falls from 1 at `progress` `hold` to 0 at 1, and `MINIMUM_FACTOR` at least."""
    decayed = min(1.0, max(0.0, progress - hold) / (1 - hold))
    factor = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * decayed))
    return max(factor, MINIMUM_FACTOR)
