"""`train()`: what a call means, what the run begins with, and what it writes at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import get_type_hints

import torch
from torch import Tensor, nn

from .. import plots
from ..devices import pick_device, pick_dtype
from ..errors import AeimgError, InvalidWeights, OutputError, TrainingDiverged, UsageError
from ..progress import Progress
from ..registry import resolve
from ..weights import LONGEST_NAME, Header, build, is_name, is_of, load_tensors, not_finite, save_weights
from .card import commit, make_card
from .checkpoints import LARGEST_NUMBER, RecordedCall, read_checkpoint, restore, under
from .compress_objective import CompressObjective
from .datasets import Digits, Pairs
from .denoise_objectives import BlindObjective, DenoiseObjective, PairsObjective
from .image_objectives import ColorizeObjective, UpscaleObjective
from .journal import Journal, Schedule
from .loop import Loop, Settings, described
from .objective import AT_LEAST, AnyObjective, Config, Recipe, RecipeValue, config_of
from .optimizers import make_optimizers
from .outputs import Outputs
from .textbook_objectives import TEXTBOOKS

OBJECTIVES: dict[str, type[AnyObjective]] = {
    "denoise": DenoiseObjective, "compress": CompressObjective, **TEXTBOOKS, "upscale": UpscaleObjective,
    "colorize": ColorizeObjective,
}  # fmt: skip
"""What can be trained: a denoiser and a codec like those that ship, the autoencoders of the textbooks, an upscaler and
a colorizer."""

FINE_TUNING = 1 / 3
"""A run that begins with trained weights has this share of the learning rate, so that it keeps what they know."""


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
    version: int | None = None,
    pairs: Path | None = None,
    blind: bool = False,
    config: Config | None = None,
    recipe: Mapping[str, RecipeValue] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    log: Callable[[str], None] = print,
    progress: bool = False,
) -> Header:
    """Trains a model and writes its weights. Returns the header of the weights file, whose card says how it went.

    - `task`: what to train, a key of `OBJECTIVES`.
    - `data`: the folder of training images. A denoiser learns from clean images, or from pairs alone where the folder
      holds noisy/ and clean/ (see `datasets.Pairs`); autoencoders of the textbooks learn from idx files, too.
    - `out`: the weights file to write.
    - `minutes`, `steps`: the run ends after either, whichever comes first; without both, after what the `Recipe` says.
      Both include what a resumed run had already done.
    - `patience`: the run ends early when the objective's primary metric was no better for so many evaluations (there
      are about 40 a run) in a row, and the weights of the best evaluation are written. None: it does not.
    - `resume`: a checkpoint to go on from. What is not given here is then as that run had it.
    - `checkpoint`: where the checkpoint is written, every three minutes and at the end. Default: beside `out`.
    - `curve`: where the loss curve is drawn, a PNG. Default: beside `out`. Needs matplotlib; is skipped without.
    - `if_exists`: "overwrite" allows to write over the weights and the checkpoint of another run, "error" does not.
      A run that resumes that very checkpoint always may.
    - `start`: a registered model or a weights file of the same kind to fine-tune: its weights and config are taken, and
      a third of the recipe's learning rate.
    - `name`, `version`: what the model is called. Default: what a resumed run had, else the name of the file, 1.
    - `pairs`: a folder of pairs that a blind denoiser learns from, beside the clean images in `data`.
    - `blind`: the denoiser gets no noise level, and learns what cameras do to pictures. `pairs` imply it, and so does a
      `start` that is blind.
    - `config`: fields of the network's config that are not to have their default.
    - `recipe`: fields of the `Recipe` that are not to have the task's default, such as `learning_rate`.
    - `device`: "auto", "cpu", "cuda" or "mps". `dtype`: "auto", "fp32" or "bf16"; "auto" multiplies in bf16 where the
      device does so natively and the network gains by it.
    - `seed`: runs bounded by steps with the same seed, on the same machine, make the same weights.
    - `log`: takes the lines that say how the run goes.
    - `progress`: whether a bar with the time left is shown on standard error, where that is a terminal.

    Raises `UsageError` for a call that makes no sense, `DataError` for too little data, `InvalidWeights` for a
    checkpoint or a start that can't be used, `OutputError` where a file can't be written, and `TrainingDiverged` where
    the weights do not stay finite; what was written before then stays.
    """
    call = Call(
        task=task, data=Path(data), outputs=Outputs.beside(Path(out), checkpoint, curve), minutes=minutes, steps=steps,
        patience=patience, resume=Path(resume) if resume else None, if_exists=if_exists, start=start, name=name,
        version=version, pairs=Path(pairs) if pairs else None, blind=blind, config=config or {}, recipe=recipe or {},
        device=device, dtype=dtype, seed=seed, log=log, progress=progress,
    )  # fmt: skip
    return Run(call).train()


@dataclass(frozen=True)
class Call:
    """The arguments of `train()`, which explains them."""

    task: str
    data: Path
    outputs: Outputs
    minutes: float | None
    steps: int | None
    patience: int | None
    resume: Path | None
    if_exists: str
    start: str | Path | None
    name: str | None
    version: int | None
    pairs: Path | None
    blind: bool
    config: Config
    recipe: Mapping[str, RecipeValue]
    device: str
    dtype: str
    seed: int
    log: Callable[[str], None]
    progress: bool

    def check(self) -> None:
        """Raises `UsageError` for values that exclude each other. Looks at no file but the names in `data`."""
        if self.if_exists not in ("error", "overwrite"):
            raise UsageError(f"if_exists must be error or overwrite, not {self.if_exists!r}")
        if self.resume is not None and self.start is not None:
            raise UsageError("a run that is resumed has its weights already: give either resume or start")
        if self.task not in OBJECTIVES:
            raise UsageError(f"unknown task {self.task!r}; known: {', '.join(OBJECTIVES)}")
        if self.task != "denoise" and (self.blind or self.pairs is not None):
            raise UsageError(f"blind training and pairs are for the task denoise, not for {self.task}")
        if self.task == "denoise" and self.pairs is not None and Pairs.are_in(self.data):
            raise UsageError(
                f"{self.data}: holds noisy/ and clean/ itself; pairs beside it need a folder of clean images"
            )
        textbook = self.task in TEXTBOOKS
        if self.recipe.get("labels") is not None and not (textbook and Digits.are_in(self.data)):
            raise UsageError(
                f"{self.data}: labels are for the textbooks' autoencoders and for idx files like those of MNIST, not "
                f"for {'folders of images' if textbook else self.task}; leave --labels out"
            )

    def objective(self, config: Config) -> type[AnyObjective]:
        """Which objective the call means, where the run begins with a network of that `config`."""
        if self.task != "denoise":
            return OBJECTIVES[self.task]
        if Pairs.are_in(self.data):
            return PairsObjective
        blind = self.blind or self.pairs is not None or config.get("assumed_sigma") is not None
        return BlindObjective if blind else DenoiseObjective


@dataclass
class Origin:
    """What a run begins with: nothing, trained weights, or a checkpoint."""

    config: Config = field(default_factory=dict)
    """The config of the network."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """The tensors of the weights file or of the checkpoint."""
    label: str | None = None
    """The label and digest of the weights that the run began with."""
    journal: Journal = field(default_factory=Journal)
    """How the run has gone that wrote the checkpoint."""
    call: RecordedCall = field(default_factory=RecordedCall)
    """How the run was called that wrote the checkpoint."""

    @classmethod
    def of(cls, call: Call) -> Origin:
        """Reads it. Raises `UsageError`, `InvalidWeights`."""
        if call.resume is not None:
            journal, earlier, tensors = read_checkpoint(call.resume)
            return cls(earlier.get("config", {}), tensors, earlier.get("start"), journal, earlier)
        if call.start is not None:
            return cls._of_weights(call.start, OBJECTIVES[call.task])
        return cls()

    @classmethod
    def _of_weights(cls, start: str | Path, kind: type[AnyObjective]) -> Origin:
        found = resolve(str(start))
        if not isinstance(found, Path):
            raise UsageError(f"{start}: a model without a weights file can't be trained further")
        header, tensors, digest = load_tensors(found)
        if (header.architecture, header.task) != (kind.architecture, kind.task):
            raise UsageError(
                f"{start}: holds another network than the one to be trained, a {header.architecture} to {header.task} "
                f"with and not a {kind.architecture} to {kind.task} with; start from one of its kind"
            )
        return cls(header.config, tensors, f"{header.label} ({digest.hex()})")

    def merged_config(self, config: Config, source: object) -> Config:
        """The config of the network with the fields of `config`, of which none may change what is known.

        A field that is None is unknown, such as the level that a blind network assumes. Raises `UsageError`, which
        names `source`.
        """
        for key, value in config.items():
            known = self.config.get(key)
            if known is not None and _plain(known) != _plain(value):
                raise UsageError(f"{source}: its network has {key} {known!r}, which can't become {value!r}")
        return {**{key: value for key, value in self.config.items() if value is not None}, **config}


class Run:
    """One call of `train()`."""

    def __init__(self, call: Call) -> None:
        self.call = call
        call.check()
        self.device = pick_device(call.device)
        overwrite = call.if_exists == "overwrite"
        call.outputs.check(resume=call.resume, start=call.start, overwrite=overwrite)
        self.code = commit()  # of the code that runs, not of what the checkout has become when the run ends
        self.origin = Origin.of(call)
        earlier = self.origin.call
        self.name = call.name or earlier.get("name") or call.outputs.weights.stem
        self.version = earlier.get("version", 1) if call.version is None else call.version
        if not is_name(self.name):
            raise UsageError(
                f"{self.name!r:.99} can't be a model's name, which is printable text of up to {LONGEST_NAME} "
                "characters; give one by --name"
            )
        self.kind = call.objective(self.origin.config)
        automatic = call.dtype == "auto"
        self.dtype = (
            torch.float32 if automatic and not self.kind.gains_from_bf16 else pick_dtype(call.dtype, self.device)
        )
        self.pairs: Pairs | None = None

    def train(self) -> Header:
        """Does all of it."""
        call = self.call
        self._check_resumption()
        recipe = self._recipe()
        objective = self._objective(recipe)
        loop = self._loop(objective)
        self._log_beginning(loop)
        if call.resume is None:
            self._log_comparisons(objective)
        if self.origin.label is not None and not loop.journal.evaluations:
            loop.evaluate(0.0)  # how good the weights are that it begins with
        steps = objective.recipe.steps
        with Progress("train", steps, wanted=call.progress, item="steps", speed=None, lines=False) as shown:
            loop.settings, loop.shown = replace(loop.settings, log=shown.beside(call.log)), shown
            loop.run()
        figures = loop.choose_weights()
        header = Header(
            architecture=objective.architecture,
            config=config_of(loop.average),
            task=objective.task,
            name=self.name,
            version=self.version,
            card=make_card(loop, call.task, self._described_data(objective), self.code, figures),
        )
        self._write(loop, header)
        return header

    def _identity(self) -> RecordedCall:
        """What can't change when the run is resumed."""
        return {"task": self.call.task, "objective": self.kind.__name__, "pairs": self.call.pairs is not None}

    def _check_resumption(self) -> None:
        for key, value in self._identity().items():
            earlier = self.origin.call.get(key, value)
            if earlier != value:
                raise UsageError(
                    f"{self.call.resume}: was begun with {key} {earlier}, not {value}; resume it as it was begun"
                )

    def _recipe(self) -> Recipe:
        """The task's recipe, over it what a resumed run had, over it what the call says. Raises `UsageError`."""
        call, default = self.call, self.kind.recipe
        settings = asdict(default)
        if call.start is not None:
            settings["learning_rate"] = default.learning_rate * FINE_TUNING
            settings["perceptual_from"] = 0  # the first shapes are there
        fields = {**settings, **self.origin.call.get("recipe", {}), **call.recipe}
        unknown = sorted(set(fields) - set(settings))
        if unknown:
            raise UsageError(f"a recipe has no {', '.join(unknown)}; it has {', '.join(settings)}")
        for key, kind in get_type_hints(Recipe).items():
            if not is_of(fields[key], kind, LARGEST_NUMBER):
                raise UsageError(f"a recipe's {key} can't be {fields[key]!r:.99}")
        recipe = Recipe(**fields)
        minutes, steps = call.minutes, call.steps
        if minutes is None and steps is None:
            minutes, steps = recipe.minutes, recipe.steps
            bounds = [f"{n:g} {unit}" for n, unit in ((minutes, "minutes"), (steps, "steps")) if n is not None]
            call.log(f"trains for {' or '.join(bounds)}, as neither minutes nor steps were given")
        return replace(recipe, minutes=minutes, steps=steps)

    def _objective(self, recipe: Recipe) -> AnyObjective:
        """The objective, whose model has the weights that the run begins with, on the device."""
        call, origin = self.call, self.origin
        config = origin.merged_config(call.config, call.resume or call.start)
        if call.resume is not None:  # a checkpoint's config is whole, and may be forged
            with torch.device("meta"):
                build(self.kind.architecture, config)
        torch.manual_seed(call.seed)
        dataset = self.kind.source(call.data, recipe, config)
        if call.pairs is not None:
            self.pairs = Pairs(call.pairs, min_side=max(recipe.crop, recipe.late_crop), at_least=AT_LEAST)
        objective = (
            self.kind(dataset, config, recipe, self.pairs)
            if issubclass(self.kind, BlindObjective)
            else self.kind(dataset, config, recipe)
        )
        if call.start is not None:
            _take_over(objective.model, origin.tensors, call.start)
        elif call.resume is None:
            objective.prepare()
        _place(objective.model, self.device)
        return objective

    def _loop(self, objective: AnyObjective) -> Loop:
        call, origin, model, recipe = self.call, self.origin, objective.model, objective.recipe
        average = objective.build(config_of(model))
        average.load_state_dict(model.state_dict())
        _place(average, self.device).eval().requires_grad_(False)
        optimizers = make_optimizers(model, recipe.learning_rate, recipe.beta2, self.dtype, muon=recipe.muon)
        patience = origin.call.get("patience") if call.patience is None else call.patience
        settings = Settings(
            device=self.device, dtype=self.dtype, seed=call.seed, patience=patience, checkpoint=call.outputs.checkpoint,
            curve=call.outputs.curve if plots.is_available() else None, title=f"{self.name}: {call.task}",
            log=call.log,
        )  # fmt: skip
        about: RecordedCall = {
            **self._identity(), "seed": call.seed, "config": config_of(model), "recipe": asdict(recipe),
            "start": origin.label, "patience": patience, "pixels": objective.dataset.pixels,
            "name": call.name or origin.call.get("name"), "version": self.version,
        }  # fmt: skip
        schedule = Schedule(recipe.minutes, recipe.steps, origin.journal)
        loop = Loop(objective, average, optimizers, schedule, settings, about)
        if call.resume is not None:
            self._restore(loop, call.resume)
        return loop

    def _restore(self, loop: Loop, resume: Path) -> None:
        """Brings `loop` to where its checkpoint was written."""
        call, origin, journal, log = self.call, self.origin, loop.journal, self.call.log
        restore(resume, origin.tensors, {"model": loop.objective.model, "average": loop.average}, loop.optimizers)
        loop.best = {key: value.to(self.device) for key, value in under("best/", origin.tensors).items()}
        loop.last_checkpoint = resume, journal.step
        if any(loop.objective.primary_metric not in row for row in journal.evaluations):
            raise InvalidWeights(f"{resume}: is damaged: an evaluation has no {loop.objective.primary_metric}")
        if loop.settings.patience is not None and not loop.best:  # the run had no patience so far
            journal.best, journal.evaluations_since_best = None, 0
        log(f"resumed {resume} at step {journal.step}, {journal.seconds / 60:.1f} minutes in")
        earlier = origin.call
        if earlier.get("seed", call.seed) != call.seed:
            log(f"begun with seed {earlier['seed']}, goes on with seed {call.seed}: the result is not that of one run")
        if earlier.get("pixels") != loop.call["pixels"]:
            log("begun with other images than are there now: the result is not that of one run")

    def _log_beginning(self, loop: Loop) -> None:
        call, log, objective = self.call, self.call.log, loop.objective
        images, settings = objective.dataset, loop.settings
        if call.task == "denoise" and self.kind is not PairsObjective and Pairs.nearly_in(call.data):
            log(f"{call.data}: holds no pairs, which need noisy/ and clean/; all its images are taken for clean ones")
        log(
            f"{call.task}: {len(images)} images, {images.pixels / 1e6:.1f} megapixels, "
            f"{len(objective.held_out)} of them held out; "
            f"{sum(p.numel() for p in objective.model.parameters()) / 1e6:.2f} M parameters, "
            f"{settings.device}, {settings.dtype}"
        )
        for note in (*images.notes, *(self.pairs.notes if self.pairs else ()), *objective.notes):
            log(note)
        if settings.curve is None:
            log("no loss curve is drawn, as matplotlib is not installed: pip install 'aeimg[plots]'")

    def _log_comparisons(self, objective: AnyObjective) -> None:
        """Logs what the figures of the run can be compared with, on the same held-out images."""
        log = self.call.log
        untouched = objective.untouched()
        if untouched:
            log(f"held out, before denoising: {described(untouched)}")
        name = objective.shipped
        if name is None:
            return
        try:
            found = Origin._of_weights(name, self.kind)
            network = objective.build(found.config)
            _take_over(network, found.tensors, name)
        except (AeimgError, RuntimeError) as error:  # the run does without it
            log(f"{name} is not compared with: {error}")
            return
        _place(network, self.device).eval().requires_grad_(False)
        torch.manual_seed(self.call.seed)
        log(f"held out, by {name}, which comes with aeimg: {described(objective.validate(network))}")

    def _described_data(self, objective: AnyObjective) -> str:
        images = objective.dataset
        text = f"{len(images)} images, {images.pixels / 1e6:.1f} megapixels, of {self.call.data.resolve().name}/"
        if self.pairs is not None and self.call.pairs is not None:
            text += f"; {len(self.pairs)} pairs of {self.call.pairs.resolve().name}/"
        return text

    def _write(self, loop: Loop, header: Header) -> None:
        """Writes the weights, unless they are not finite in the precision in which they are stored."""
        outputs = self.call.outputs
        broken = not_finite((name, tensor.half()) for name, tensor in loop.average.state_dict().items())
        tensors = {} if broken else loop.objective.export(loop.average)
        broken = broken or not_finite(tensors.items())
        if broken is not None:
            raise TrainingDiverged(
                f"{outputs.weights}: is not written, as {broken} is not finite in half precision; "
                "train anew with a lower --learning-rate"
            )
        try:
            save_weights(outputs.weights, tensors, header)
        except OutputError as error:
            kept = outputs.checkpoint.exists()
            hint = f"; once there is room, --resume {outputs.checkpoint} goes on from there" if kept else ""
            raise OutputError(f"{error}{hint}") from error
        curve = f", and the loss curve to {loop.settings.curve}" if loop.settings.curve else ""
        self.call.log(f"wrote {outputs.weights}{curve}")


def _plain(value: object) -> object:
    """`value` as JSON has it, which has no tuples."""
    return list(value) if isinstance(value, tuple) else value


def _place(model: nn.Module, device: torch.device) -> nn.Module:
    """Moves a network to the device, laid out for convolutions."""
    return model.to(device).to(memory_format=torch.channels_last)


def _take_over(model: nn.Module, tensors: dict[str, Tensor], start: str | Path) -> None:
    """Loads trained weights into `model`. Raises `InvalidWeights` where they do not fit."""
    own = model.state_dict()
    if any(key not in tensors or tensors[key].shape != own[key].shape for key in own):
        raise InvalidWeights(f"{start}: its tensors do not fit its config")
    model.load_state_dict({key: tensors[key].float() for key in own})
