"""One training loop for every model: what `aeimg train` runs, and what made the shipped weights.

What is trained and on what say `objectives` and `families`; here is the loop: warm-up, cosine to zero, clipping, an
average of the weights, judgements on held-out images, checkpoints.

A run ends after `minutes` or `steps`, whichever comes first, and the learning rate is always decayed to its end by
then. Where patience runs out it ends sooner, and still decays: what is left of the schedule, last phase included, is
run through in a tenth of the steps so far. A checkpoint is a safetensors file as well; resuming continues at the same
step with the same batches, the time spent before included. All that steers a run bounded by steps is counted in steps,
never timed, so that it ends at the same weights however often it was interrupted.
"""

from __future__ import annotations

import json
import math
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import plots
from .data import Digits, Pairs
from .devices import pick_device, pick_dtype
from .errors import InvalidWeights, OutputError, UsageError
from .families import FAMILIES
from .objectives import (
    AT_LEAST,
    BlindObjective,
    CompressObjective,
    DenoiseObjective,
    Objective,
    PairsObjective,
    Recipe,
)
from .optim import optimizers
from .paths import check_writable, sweep, write_atomic
from .registry import resolve
from .weights import Header, build, load_tensors, read_header, save_weights

OBJECTIVES: dict[str, type[Objective]] = {"denoise": DenoiseObjective, "compress": CompressObjective, **FAMILIES}
"""What can be trained: a denoiser and a codec as they ship, and the autoencoders of the textbooks."""

SPECIALISED = 1 / 3
"""Of the learning rate, for a run that begins with trained weights: it keeps what they know, and still moves."""
JUDGEMENTS = 40
"""How often a run is judged on the held-out images, at most."""
JUDGING = 0.05
"""Of the work, the share that judging may take."""
POINTS = 200
"""Of the training loss, in the picture."""
ENDING = 0.1
"""Of the steps so far: how many finish the decay once patience has run out."""
AHEAD = 2
"""How many batches wait to be used; one more is in hand."""
CARD_POINTS = 45
"""Of the curve in a card, at most: cards are read whole."""


def _batches(
    objective: Objective, seed: int, start: int, late: Callable[[int], bool]
) -> Iterator[tuple[int, tuple[Tensor, ...], np.random.Generator, bool]]:
    """Batches from a thread of their own, `AHEAD`; each depends on (seed, step, phase) alone."""
    ahead: queue.Queue[Any] = queue.Queue(AHEAD)
    stop = threading.Event()

    def work() -> None:
        step = start
        try:
            while not stop.is_set():
                rng = np.random.default_rng((seed, step))
                phase = late(step)
                item = (step, objective.batch(rng, phase), rng, phase)
                while not stop.is_set():
                    try:
                        ahead.put(item, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                step += 1
        except BaseException as error:  # handed to the loop, which raises it
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
        thread.join()


# -- what a run remembers ----------------------------------------------------------------------------------------------


@dataclass
class Journal:
    """How a run has gone so far: what a checkpoint holds beside tensors."""

    step: int = 0
    """The next one."""
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)
    """Means of the training loss, each over the steps since the one before."""
    judged: list[dict[str, float]] = field(default_factory=list)
    """The figures of each judgement, and the `step` it came after."""
    total: float = 0.0
    count: int = 0
    """Of the losses that are in no mean yet."""
    mean_at: float = 0.0
    judge_at: float = 0.0
    """From which share of the run on the next ones are due."""
    late: int | None = None
    """The first step of the last phase."""
    best: int | None = None
    """Of the judgements that count, the index of the best; none counts before the objective is `settled`."""
    stale: int = 0
    """How many came after it."""
    ending: tuple[int, int, float] | None = None
    """Once patience has run out: from which step on, in how many steps, from which share of the schedule to its end."""


@dataclass
class Schedule:
    """How much of a run is over."""

    minutes: float | None
    steps: int | None
    began: float
    """On the clock of `time.monotonic`, time before a resumption included."""
    journal: Journal

    def planned(self, step: int) -> float:
        """The share that is over at `step`, had patience not run out."""
        parts = [0.0]
        if self.minutes is not None:
            parts.append((time.monotonic() - self.began) / (60 * self.minutes))
        if self.steps is not None:
            parts.append(step / self.steps)
        return max(parts)

    def share(self, step: int) -> float:
        if self.journal.ending is not None and step >= self.journal.ending[0]:
            start, length, share = self.journal.ending
            return share + (1 - share) * (step - start) / length
        return self.planned(step)

    def end_soon(self, finished: int) -> bool:
        """Begins the end, unless the run would be over by then anyway."""
        start = finished + AHEAD + 1  # batches up to there are made, or being made, for the phase as planned
        share = self.planned(start)
        length = math.ceil(ENDING * finished)
        if self.journal.ending is not None or length >= start * (1 - share) / share:
            return False
        self.journal.ending = (start, length, share)
        return True


Optimizers = list[torch.optim.Optimizer]


def _save_checkpoint(
    path: Path, states: dict[str, dict[str, Tensor]], optimizers: Optimizers, about: dict[str, Any]
) -> None:
    from safetensors.torch import save

    tensors = {f"{prefix}/{k}": v for prefix, state in states.items() for k, v in state.items()}
    for index, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{index}/{number}/{k}": v for k, v in state.items()}
    write_atomic(path, save({k: v.contiguous() for k, v in tensors.items()}, {"checkpoint": json.dumps(about)}))


def _read_checkpoint(path: Path) -> tuple[Journal, dict[str, Any], dict[str, Tensor]]:
    """The journal, what was run, and tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads(file.metadata()["checkpoint"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        run = about.pop("run", {})
        return Journal(**about), run, tensors
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InvalidWeights(f"{path}: not a checkpoint of `aeimg train` ({error})") from error


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _restore(path: Path, tensors: dict[str, Tensor], states: dict[str, nn.Module], optimizers: Optimizers) -> None:
    for prefix, module in states.items():
        try:
            module.load_state_dict(_under(f"{prefix}/", tensors))
        except RuntimeError as error:
            raise InvalidWeights(f"{path}: holds another network than the one to be trained ({error})") from error
    for index, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _under(f"optimizer{index}/", tensors).items():
            number, name = key.split("/")
            like = parameters[int(number)]
            # A fused optimizer walks memory, so its state must be laid out as the parameter is (channels_last).
            laid_out = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            state.setdefault(int(number), {})[name] = laid_out
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _commit() -> str:
    """The commit this runs from, for the card; what was installed has none, whatever repository it lies in."""
    if not (Path(__file__).parents[1] / ".git").exists():
        return "unknown"
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@contextmanager
def _between_steps() -> Iterator[Callable[[], None]]:
    """Ctrl-C waits for the end of a step, where the function given raises it: no checkpoint holds half a step.

    A second one does not wait.
    """
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield check
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


# -- what is run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Start:
    """Trained weights to begin with."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    origin: str
    """Their label and digest."""


def _start_from(start: str | Path, kind: type[Objective]) -> _Start:
    found = resolve(str(start))
    if not isinstance(found, Path):
        raise UsageError(f"{start}: a model without a weights file can't be trained further")
    header, tensors, digest = load_tensors(found)
    if (header.architecture, header.task) != (kind.architecture, kind.task):
        raise UsageError(
            f"{start}: holds another network than the one to be trained, a {header.architecture} to {header.task} with "
            f"and not a {kind.architecture} to {kind.task} with; start from one of its kind"
        )
    return _Start(header.config, tensors, f"{header.label} ({digest.hex()})")


def _kind(task: str, data: Path, blind: bool, pairs: Path | None) -> type[Objective]:
    if task not in OBJECTIVES:
        raise UsageError(f"unknown task {task!r}; known: {', '.join(OBJECTIVES)}")
    if task != "denoise":
        if blind or pairs is not None:
            raise UsageError(f"blind training and pairs are for the task denoise, not for {task}")
        return OBJECTIVES[task]
    if Pairs.are_in(data):
        if pairs is not None:
            raise UsageError(f"{data}: holds noisy/ and clean/ itself; pairs beside it need a folder of clean images")
        return PairsObjective
    return BlindObjective if blind or pairs is not None else DenoiseObjective


def _check_outputs(
    out: Path, checkpoint: Path, curve: Path, resume: Path | None, start: str | Path | None, if_exists: str
) -> None:
    """Raises `UsageError` where something would be lost by writing them, `OutputError` where they can't be written:
    before the run rather than after it."""
    targets = (out, checkpoint, curve)
    for path in targets:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name a file in it")
    if curve.suffix.lower() != ".png":
        raise UsageError(f"{curve}: loss curves are PNG; give it a name that ends in .png (--curve)")
    if len({path.resolve() for path in targets}) < len(targets):
        raise UsageError(f"{out}: weights, checkpoint and loss curve need a name each")
    begun = None if start is None else resolve(str(start))
    if isinstance(begun, Path) and begun.exists() and out.exists() and out.samefile(begun):
        raise UsageError(f"{out}: would overwrite the weights that the run begins with; give the new ones another name")
    if curve.exists() and not plots.curve_lies_at(curve):
        raise UsageError(f"{curve}: would be overwritten by the loss curve; give another name for that (--curve)")
    goes_on = resume is not None and resume.exists() and checkpoint.exists() and checkpoint.samefile(resume)
    for path, about, means in (
        (out, _weights_at, "give another name, or --if-exists overwrite"),
        (checkpoint, _checkpoint_at, f"go on with it by --resume {checkpoint}, or begin anew by --if-exists overwrite"),
    ):
        if not path.exists():
            continue
        found = about(path)
        if found is None:
            raise UsageError(f"{path}: is there already, and nothing that aeimg train has written; give another name")
        if not goes_on and if_exists != "overwrite":
            raise UsageError(f"{path}: is there already ({found}); {means}")
    for path in targets:
        check_writable(path)
    sweep({path.parent for path in targets})


def _weights_at(path: Path) -> str | None:
    try:
        return f"the weights {read_header(path).label}"
    except InvalidWeights:
        return None


def _checkpoint_at(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return f"the checkpoint of a run after {json.loads(file.metadata()['checkpoint'])['step']} steps"
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _same(a: Any, b: Any) -> bool:
    """JSON has no tuples."""
    return (list(a) if isinstance(a, tuple) else a) == (list(b) if isinstance(b, tuple) else b)


def _merged(known: dict[str, Any], config: dict[str, Any], origin: object) -> dict[str, Any]:
    """The config of weights to go on with. What is None there is unset, as the level that a blind network assumes."""
    for key, value in config.items():
        if known.get(key) is not None and not _same(known[key], value):
            raise UsageError(f"{origin}: its network has {key} {known[key]!r}, which can't become {value!r}")
    return {**{key: value for key, value in known.items() if value is not None}, **config}


def _is_blind(config: dict[str, Any]) -> bool:
    return config.get("assumed_sigma") is not None


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _told(figures: dict[str, float]) -> str:
    return " ".join(f"{key} {_short(value):g}" for key, value in figures.items() if key != "step")


def _take_over(model: nn.Module, tensors: dict[str, Tensor], start: str | Path) -> None:
    own = model.state_dict()
    if any(key not in tensors or tensors[key].shape != own[key].shape for key in own):
        raise InvalidWeights(f"{start}: its tensors do not fit its config")
    model.load_state_dict({key: tensors[key].float() for key in own})


@dataclass
class _Run:
    """A run under way."""

    objective: Objective
    average: nn.Module
    moves: Optimizers
    schedule: Schedule
    journal: Journal
    best: dict[str, Tensor]
    """The average as it was when it was best, where there is patience."""
    about: dict[str, Any]
    """How it was called, for the checkpoint."""
    patience: int | None
    place: torch.device
    precision: torch.dtype
    seed: int
    checkpoint: Path
    curve: Path
    title: str
    log: Callable[[str], None]

    def keep(self) -> bool:
        """Writes the checkpoint, and returns whether that could be: a full disk is said, and no reason to end a run."""
        self.journal.seconds = time.monotonic() - self.schedule.began
        states = {"model": self.objective.model.state_dict(), "average": self.average.state_dict(), "best": self.best}
        return self._written(
            lambda: _save_checkpoint(self.checkpoint, states, self.moves, {**asdict(self.journal), "run": self.about})
        )

    def _written(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except OutputError as error:
            self.log(str(error))
            return False
        return True

    def judge(self, share: float) -> None:
        """Takes the held-out figures, and sees whether patience has run out."""
        objective, journal = self.objective, self.journal
        torch.manual_seed(self.seed)  # each step seeds itself anew
        figures = objective.validate(self.average)
        journal.judged.append({"step": journal.step, **figures})
        journal.judge_at = (math.floor(share * JUDGEMENTS) + 1) / JUDGEMENTS
        loss = f", loss {_short(journal.losses[-1][1]):g}" if journal.losses else ""
        self.log(f"step {journal.step}, {100 * min(share, 1):.0f}%{loss}; held out: {_told(figures)}")
        if share >= objective.settled:
            self._compare(figures[objective.main])
        self.draw()

    def draw(self) -> None:
        """Draws the loss curve so far."""
        objective, journal = self.objective, self.journal
        points = [(row["step"], row[objective.main]) for row in journal.judged]
        picture = plots.curve(
            journal.losses, points, title=f"{self.title}, {journal.step:,} steps", main=objective.main,
            larger=objective.larger, late=journal.late,
        )  # fmt: skip
        self._written(lambda: write_atomic(self.curve, picture))

    def _compare(self, figure: float) -> None:
        journal, main = self.journal, self.objective.main
        sign = 1 if self.objective.larger else -1
        if journal.best is None or sign * figure > sign * journal.judged[journal.best][main]:
            journal.best, journal.stale = len(journal.judged) - 1, 0
            if self.patience is not None:
                self.best = {key: tensor.clone() for key, tensor in self.average.state_dict().items()}
            return
        journal.stale += 1
        if self.patience is not None and journal.stale >= self.patience and self.schedule.end_soon(journal.step):
            assert journal.ending is not None
            length = journal.ending[1]
            self.log(f"{main} no better for {journal.stale} judgements: {length} more steps end the decay of the rate")

    def move(
        self, step: int, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool
    ) -> dict[str, float] | None:
        """One step of the weights and of their average. The loss and its terms; None where it was left out."""
        objective, recipe, model = self.objective, self.objective.recipe, self.objective.model
        torch.manual_seed(self.seed * 1_000_003 + step)  # for the noise that stands for rounding
        scale = min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * objective.done))
        for group in (group for optimizer in self.moves for group in optimizer.param_groups):
            group["lr"] = recipe.rate * max(scale, 1e-3)
        with torch.autocast(self.place.type, self.precision, enabled=self.precision != torch.float32):
            loss, terms = objective.loss(tuple(part.to(self.place) for part in batch), rng, late)
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        if not torch.isfinite(norm):
            self.log(f"step {step}: the gradient is not finite; the step is left out")
            return None
        for optimizer in self.moves:
            optimizer.step()
        with torch.no_grad():
            # Early on a short memory, or the random start would linger in the average.
            decay = min(recipe.average, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(self.average.parameters()), list(model.parameters()), 1 - decay)
        return {"loss": float(loss.detach()), **terms}

    def note(self, step: int, loss: float, late: bool) -> None:
        """Enters a step into the journal."""
        journal = self.journal
        journal.step = step + 1
        journal.total += loss
        journal.count += 1
        if late and journal.late is None:
            journal.late = step
        share = self.schedule.share(journal.step)
        if share >= journal.mean_at:
            journal.losses.append((journal.step, journal.total / journal.count))
            journal.total, journal.count = 0.0, 0
            journal.mean_at = (math.floor(share * POINTS) + 1) / POINTS

    def go(self) -> None:
        """All the steps there are to do."""
        objective, journal, share = self.objective, self.journal, self.schedule.share
        recipe = objective.recipe
        # Backward costs about twice what forward does.
        apart = math.ceil(objective.judged_pixels() / (3 * recipe.batch * recipe.crop**2) / JUDGING)
        batches = _batches(objective, self.seed, journal.step, lambda step: share(step) >= 1 - recipe.late)
        saved = logged = time.monotonic()
        window: dict[str, list[float]] = {}
        objective.model.train()
        try:
            with _between_steps() as interruption:
                for step, batch, rng, late in batches:
                    interruption()
                    objective.done = share(step)
                    if objective.done >= 1:
                        break
                    costs = self.move(step, batch, rng, late)
                    if costs is None:
                        continue
                    self.note(step, costs["loss"], late)
                    for key, value in costs.items():
                        window.setdefault(key, []).append(value)
                    so_far = share(journal.step)
                    judged = journal.judged[-1]["step"] if journal.judged else 0
                    if journal.judge_at <= so_far < 1 and journal.step - judged >= apart:
                        self.judge(so_far)
                    now = time.monotonic()
                    if now - logged > 30:
                        means = {key: sum(values) / len(values) for key, values in window.items()}
                        minutes = (now - self.schedule.began) / 60
                        self.log(f"step {step} {minutes:.1f} min, {100 * so_far:.0f}%: {_told(means)}")
                        window.clear()
                        logged = now
                    if now - saved > 180:
                        self.keep()
                        saved = now
        except BaseException:
            batches.close()  # type: ignore[attr-defined]
            # An interrupted run keeps what it has, too.
            if self.keep():
                self.log(f"not finished; --resume {self.checkpoint} goes on with it")
            raise
        batches.close()  # type: ignore[attr-defined]
        if not journal.judged or journal.judged[-1]["step"] != journal.step:
            self.judge(1.0)
        else:  # a run that was over when it was resumed
            self.draw()
        self.keep()

    def choose(self) -> dict[str, float]:
        """Leaves in `average` the weights to be written: the last ones, with patience the best. Their figures."""
        journal, main = self.journal, self.objective.main
        last = journal.judged[-1]
        best = last if journal.best is None else journal.judged[journal.best]
        if best is last:
            return last
        better = f"{main} {_short(best[main]):g} after step {best['step']}, {_short(last[main]):g} in the end"
        if self.patience is None:
            self.log(f"{better}; with patience, the best weights are kept")
            return last
        self.average.load_state_dict(self.best)
        self.log(f"{better}; the best weights are kept")
        return best

    def points(self) -> dict[str, list[float | None]]:
        """The curve, thinned, for the card: steps, the training loss on the way there, the main figure."""
        rows, main = self.journal.judged, self.objective.main
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(CARD_POINTS, len(rows))).round().astype(int))
        found: dict[str, list[float | None]] = {"step": [], "loss": [], main: []}
        before = 0.0
        for row in (rows[n] for n in chosen):
            losses = [value for step, value in self.journal.losses if before < step <= row["step"]]
            found["step"].append(row["step"])
            found["loss"].append(_short(sum(losses) / len(losses)) if losses else None)
            found[main].append(_short(row[main]))
            before = row["step"]
        return found


def train(
    task: str,
    data: Path,
    out: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    patience: int | None = None,
    resume: Path | None = None,
    checkpoint: Path | None = None,
    curve: Path | None = None,
    if_exists: str = "error",
    start: str | Path | None = None,
    name: str | None = None,
    version: int = 1,
    pairs: Path | None = None,
    blind: bool = False,
    config: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> Header:
    """Trains a model of `task` (see `OBJECTIVES`) on the images below `data` and writes its weights to `out`.

    Ends after `minutes` or `steps`, whichever comes first (neither: what the `Recipe` says); both count what a run that
    is resumed had already done. About 40 times a run the averaged weights are judged on held-out images; where the
    objective's main figure has not become better `patience` times in a row, the run ends (see the module's docstring),
    and with `patience` the weights that are written are the best ones judged.

    `checkpoint` (default: beside `out`) is written every three minutes, and `resume` continues from one. The picture of
    the losses goes to `curve` (default: beside `out`, .png). Weights and checkpoints that are there already are written
    over where the run resumes that very checkpoint, or with `if_exists` "overwrite". `start` names weights (a
    registered model or a file) to begin with, whose config the network takes over; the learning rate is then a third of
    the recipe's.

    A denoiser learns from clean images; from pairs alone where `data` holds noisy/ and clean/ (see `data.Pairs`).
    `blind` trains one that is told no noise level, on what cameras do to pictures, and on real `pairs` where there are
    any; pairs and a blind `start` imply it. `config` and `recipe` override fields of the network's config and of the
    `Recipe`. `dtype` "auto" is bf16 where the device has it and the network gains by it. Raises `UsageError`,
    `DataError`, `InvalidWeights`, `OutputError`.
    """
    data, out = Path(data), Path(out)
    checkpoint = Path(checkpoint) if checkpoint else out.with_name(out.name + ".checkpoint")
    curve = Path(curve) if curve else out.with_suffix(".png")
    resume = Path(resume) if resume else None
    if if_exists not in ("error", "overwrite"):
        raise UsageError(f"if_exists must be error or overwrite, not {if_exists!r}")
    if resume is not None and start is not None:
        raise UsageError("a run that is resumed has its weights already: give either resume or start")
    place = pick_device(device)
    kind = _kind(task, data, blind, pairs)
    if (recipe or {}).get("labels") is not None and not (task in FAMILIES and Digits.are_in(data)):
        raise UsageError(
            f"{data}: labels are for the textbooks' autoencoders and for idx files like those of MNIST, not for "
            f"{'folders of images' if task in FAMILIES else task}; leave --labels out"
        )
    _check_outputs(out, checkpoint, curve, resume, start, if_exists)
    journal = Journal()
    run: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    origin: str | None = None
    known: dict[str, Any] = {}
    if resume is not None:
        journal, run, tensors = _read_checkpoint(resume)
        known, origin = run.get("config", {}), run.get("start")
        patience = run.get("patience") if patience is None else patience
    elif start is not None:
        begun = _start_from(start, kind)
        known, origin, tensors = begun.config, begun.origin, begun.tensors
    if kind is DenoiseObjective and _is_blind(known):
        kind = BlindObjective
    told = {"task": task, "kind": kind.__name__, "pairs": pairs is not None}
    for key, value in told.items():
        if run.get(key, value) != value:
            raise UsageError(f"{resume}: was begun with {key} {run[key]}, not {value}; resume it as it was begun")
    settings = {**asdict(kind.recipe), **({"rate": kind.recipe.rate * SPECIALISED} if start is not None else {})}
    the_recipe = Recipe(**{**settings, **run.get("recipe", {}), **(recipe or {})})
    if minutes is None and steps is None:
        minutes, steps = the_recipe.minutes, the_recipe.steps
        length = " or ".join(f"{n:g} {unit}" for n, unit in ((minutes, "minutes"), (steps, "steps")) if n is not None)
        log(f"trains for {length}, as nothing else was said (minutes, steps)")
    the_recipe = replace(the_recipe, minutes=minutes, steps=steps)
    precision = pick_dtype(dtype, place) if dtype != "auto" or kind.mixed else torch.float32

    merged = _merged(known, config or {}, resume or start)
    torch.manual_seed(seed)
    photographs = kind.source(data, the_recipe, merged)
    more: dict[str, Any] = {}
    if pairs is not None:
        more["pairs"] = Pairs(pairs, min_side=max(the_recipe.crop, the_recipe.late_crop), at_least=AT_LEAST)
    objective = kind(photographs, merged, the_recipe, **more)  # type: ignore[call-arg, arg-type]
    the_recipe = objective.recipe
    model = objective.model
    if start is not None:
        _take_over(model, tensors, start)
    elif resume is None:
        objective.prepare()
    model.to(place).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = build(objective.architecture, asdict(model.config))  # type: ignore[call-overload]
    average.load_state_dict(model.state_dict())
    average.to(place).to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    moves = optimizers(model, the_recipe.rate, the_recipe.beta2, precision, muon=the_recipe.muon)
    best: dict[str, Tensor] = {}
    if resume is not None:
        _restore(resume, tensors, {"model": model, "average": average}, moves)
        best = {key: value.to(place) for key, value in _under("best/", tensors).items()}
        if patience is not None and not best:  # it had none so far
            journal.best, journal.stale = None, 0
        log(f"resumed {resume} at step {journal.step}, {journal.seconds / 60:.1f} minutes in")
        if run.get("seed", seed) != seed:
            log(f"begun with seed {run['seed']}, goes on with seed {seed}: not what an undisturbed run would do")
        if run.get("pixels", photographs.pixels) != photographs.pixels:
            log("begun with other images than are there now: not what an undisturbed run would do")
    run = {**told, "seed": seed, "config": asdict(model.config), "recipe": asdict(the_recipe), "start": origin,  # type: ignore[call-overload]
           "patience": patience, "pixels": photographs.pixels}  # fmt: skip
    commit = _commit()  # of the code that is running, not of what the checkout has become when the run ends
    under_way = _Run(
        objective, average, moves, Schedule(minutes, steps, time.monotonic() - journal.seconds, journal), journal, best,
        run, patience, place, precision, seed, checkpoint, curve, f"{name or out.stem}: {task}", log,
    )  # fmt: skip

    if task == "denoise" and kind is not PairsObjective and Pairs.nearly_in(data):
        log(f"{data}: holds no pairs, for which it must have noisy/ and clean/; all of it is taken for clean images")
    log(
        f"{task}: {len(photographs)} images, {photographs.pixels / 1e6:.1f} megapixels, "
        f"{len(objective.held_out)} of them held out; "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {place}, {precision}"
    )
    sources = [photographs, *more.values()]
    for note in (*(note for source in sources for note in getattr(source, "notes", ())), *objective.notes):
        log(note)
    if origin is not None and not journal.judged:
        under_way.judge(0.0)  # what it begins with
    under_way.go()
    kept = under_way.choose()
    header = Header(
        architecture=objective.architecture,
        config=asdict(average.config),  # type: ignore[call-overload]
        task=objective.task,
        name=name or out.stem,
        version=version,
        card={
            "objective": task,
            "data": f"{len(photographs)} images, {photographs.pixels / 1e6:.1f} megapixels, of {data.resolve().name}/"
            + (f"; {len(more['pairs'])} pairs of {Path(pairs).resolve().name}/" if pairs else ""),
            "minutes": round(journal.seconds / 60, 1),
            "steps": journal.step,
            "device": str(place),
            "dtype": str(precision).removeprefix("torch."),
            "seed": seed,
            "recipe": asdict(the_recipe),
            "commit": commit,
            **({"start": origin} if origin else {}),
            **({"patience": patience, "kept": kept["step"]} if patience is not None else {}),
            "held_out": {k: _short(v) for k, v in kept.items() if k != "step"},
            "curve": under_way.points(),
        },
    )
    try:
        save_weights(out, objective.export(average), header)
    except OutputError as error:
        hint = f"; once there is room, --resume {checkpoint} goes on from there" if checkpoint.exists() else ""
        raise OutputError(f"{error}{hint}") from error
    log(f"wrote {out}, and the loss curve to {curve}")
    return header
