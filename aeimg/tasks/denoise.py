"""The task denoise: picture -> picture.

prepare   reads the picture, measures its noise and chooses the denoiser
run       a batch through the denoiser, in tiles
finish    compares before and after, and gives the picture back
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import registry
from ..contract import Denoiser, ImageTask
from ..errors import InputError, ModelError
from ..images import LOSSY, WRITABLE, Picture
from ..manifest import digest
from ..noise import check, estimate_sigma, measure_noise
from ..pixels import mirror
from .image import TILE, Applied, ImageItem, ImageRunner, run_in_tiles, safe_dtype
from .options import DenoiseOptions
from .pictures import Delivered, Opened, Result, batch_key, deliver, open_checked, stacked, suffix_of
from .residuals import Residual, stretched

Array = np.ndarray

SMALLEST = 64
"""A picture with a side below this many pixels is left untouched where nobody says how noisy it is: it holds too little
to measure, and is mostly an icon or a thumbnail."""


@dataclass(frozen=True)
class Choice:
    """Which denoiser a picture gets, which level of noise is announced to it, and why."""

    model: str | None
    """The name of the denoiser; None for the one that the caller named, or where the picture is left untouched."""
    sigma: float
    """The level of the noise, in 8-bit units; of a map, its mean."""
    why: str
    """The reason, for the user."""
    untouched: bool = False
    """Whether no denoiser is to see the picture."""


def choose(picture: Picture, sigma: float | str | Array, *, free: bool) -> Choice:
    """Returns the denoiser for `picture`; `sigma` is a level, a map or "auto", `free` is whether the caller named no
    model.

    A given level means white noise of that level. Without one, pictures in which there is no noise, and those too small
    to measure, are left untouched. Strong noise on which JPEG has left marks goes to the model for such noise. Noise
    that measures as white goes to the default model; the measure is stricter for files of lossy formats. Everything
    else goes to the blind model, because no level could be trusted.
    """
    if isinstance(sigma, np.ndarray):
        return Choice(registry.WHITE if free else None, float(sigma.mean()), "a map of sigma was given")
    if not isinstance(sigma, str):
        return Choice(registry.WHITE if free else None, sigma, "sigma was given")
    if not free:
        return Choice(None, estimate_sigma(picture.pixels), "the model was given")
    if min(picture.height, picture.width) < SMALLEST:
        return Choice(None, 0.0, f"left untouched: a side under {SMALLEST} pixels, too small to measure", True)
    noise = measure_noise(picture.pixels)
    if noise.nothing:
        return Choice(None, 0.0, "left untouched: no noise was measured", True)
    lossy = picture.format in LOSSY
    if noise.marked:
        return Choice(registry.JPEG, noise.sigma, f"JPEG has left marks on strong noise (steps of {noise.step:g})")
    if noise.white(strictly=lossy):
        return Choice(registry.WHITE, noise.sigma, f"white noise of sigma {noise.sigma:.1f}")
    found = "no white noise found" + (f" in this {picture.format} file" if lossy else "")
    return Choice(registry.BLIND, noise.sigma, found)


@dataclass(frozen=True, kw_only=True)
class DenoiseItem(ImageItem):
    """A picture, and the denoiser that it goes through."""

    choice: Choice
    """The denoiser's name, the level of noise, and the reason."""
    model: Denoiser | None
    """The denoiser; None where the picture is left untouched."""


@dataclass(frozen=True, kw_only=True)
class DenoiseResult(Result[Delivered]):
    """The denoised picture, and what can be said of it without its clean original; see `noise.Check`."""

    model: str | None
    """The label of the denoiser; None where the picture was left untouched."""
    why: str
    """Why it was chosen, or why the picture was left untouched."""
    sigma: float | None
    """The level of noise that was announced to the model, in 8-bit units, of a map its mean; None for a blind model,
    and where there was none."""
    strength: float
    """The option."""
    noise_before: float
    """See `noise.Check`, as for the following ones."""
    noise_after: float
    shift: tuple[float, ...]
    structure: float
    residual: Residual | None = None
    """What was taken away, where that was asked for."""

    def figures(self) -> dict[str, Any]:
        return {
            "model": self.model, "why": self.why, "untouched": self.model is None,
            "sigma": None if self.sigma is None else round(self.sigma, 2), "strength": self.strength,
            "noise_before": round(self.noise_before, 2), "noise_after": round(self.noise_after, 2),
            "shift": [round(value, 3) for value in self.shift], "structure": round(self.structure, 3),
        }  # fmt: skip


class Denoise(ImageRunner):
    """See the module. Each picture has a denoiser of its own, unless the caller has named one."""

    options: DenoiseOptions

    def __init__(
        self,
        task: ImageTask,
        model: str | os.PathLike[str] | None,
        device: torch.device,
        dtype: torch.dtype,
        options: DenoiseOptions,
    ) -> None:
        self._lock = threading.Lock()
        self._models: dict[str | None, Denoiser] = {}
        super().__init__(task, model, device, dtype, options)

    def _load(self) -> None:
        if len(self._possible) == 1:  # the others are loaded when a picture needs them
            self._model(self._possible[0])
        for name in self._possible:
            registry.resolve(self._known_as(name))  # raises where its weights are missing

    @property
    def _possible(self) -> tuple[str | None, ...]:
        """The denoisers that a picture may get, by the names of `Choice`."""
        if self.asked is not None:
            return (None,)
        return tuple(registry.CHOICES) if self.options.measures else (registry.WHITE,)

    def _known_as(self, name: str | None) -> str:
        # By its label, so that no plug-in that claims its name takes it away.
        return os.fspath(self.asked or "") if name is None else registry.BUILTINS[name][1]

    def _model(self, name: str | None) -> Denoiser:
        with self._lock:
            if name not in self._models:
                self._models[name] = registry.get(self._known_as(name), "denoise", self.device)
            return self._models[name]

    def recipe(self) -> str:
        """Returns what is equal for runs that make the same of the same input: by models and options.

        It covers every denoiser that a picture may get, whichever are loaded.
        """
        models = [registry.identity(self._known_as(name), "denoise", self.device) for name in self._possible]
        o = self.options
        sigma = digest(repr(o.sigma.shape).encode() + o.sigma.tobytes()) if isinstance(o.sigma, np.ndarray) else o.sigma
        chosen = {
            "sigma": sigma, "strength": o.strength, "format": o.format, "image_quality": o.image_quality,
        }  # fmt: skip
        about = ["Denoise", PASSES, models, chosen, str(self.dtype)]
        return digest(json.dumps(about, sort_keys=True, default=str).encode())

    # -- the three steps ---------------------------------------------------------------------------------------

    def prepare(self, source: object) -> DenoiseItem:
        """Reads a picture, measures its noise and chooses its denoiser."""
        opened = open_checked(source)
        choice = choose(opened.picture, self.options.sigma, free=self.asked is None)
        if choice.untouched:
            return DenoiseItem(opened, choice=choice, model=None)
        model = self._model(choice.model)
        if isinstance(self.options.sigma, np.ndarray):
            _check_map(self.options.sigma, opened.picture, model)
        return DenoiseItem(opened, choice=choice, model=model)

    def key(self, item: DenoiseItem) -> Hashable:  # type: ignore[override]  # it gets what `prepare` has made
        """Returns the model, and channels, depth and padded size."""
        if item.model is None:
            return "untouched"
        return (item.choice.model, *batch_key(item.picture, item.model.multiple))

    def run(self, items: list[DenoiseItem]) -> list[Array]:  # type: ignore[override]
        """Returns the clean pixels `[C,H,W]` of each picture, in the depth of its own."""
        model = items[0].model
        if model is None:
            return [item.picture.pixels for item in items]
        x = stacked(items, model.multiple, mirrored=True)
        if isinstance(self.options.sigma, np.ndarray):
            plane = mirror(torch.from_numpy(self.options.sigma)[None, None], *x.shape[2:])
            sigma = plane.expand(len(items), -1, -1, -1)
        else:
            sigma = torch.tensor([item.choice.sigma for item in items], dtype=torch.float32)
        alone, tileable = len(items) == 1, model.halo is not None
        clean = self.in_tiles(lambda: self._denoised(model, x, sigma), alone=alone, tileable=tileable).numpy()
        pictures = [item.picture for item in items]
        return [x[:, : p.height, : p.width] for x, p in zip(clean, pictures, strict=True)]

    def finish(self, item: DenoiseItem, raw: Array) -> DenoiseResult:  # type: ignore[override]
        """Compares the pixels before and after, and gives the picture back."""
        found, o, model = check(item.picture.pixels, raw), self.options, item.model
        copied = _copied(item.opened, o) if model is None else None
        return DenoiseResult(
            value=deliver(replace(item.picture, pixels=raw), item.opened, o) if copied is None else copied,
            width=item.picture.width,
            height=item.picture.height,
            warnings=(
                *(item.picture.notes if copied is None else ()),
                *(() if model is None else found.warnings(o.strength)),
            ),
            model=None if model is None else model.label,
            why=item.choice.why,
            sigma=None if model is None or model.blind else item.choice.sigma,
            strength=o.strength,
            noise_before=found.noise_before,
            noise_after=found.noise_after,
            shift=found.shift,
            structure=found.structure,
            residual=None if o.residual is None else stretched(item.picture.pixels, raw),
        )

    def _denoised(self, model: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
        return run_denoiser(
            model, x, sigma, self.options.strength, device=self.device, dtype=self.dtype, tile=self.tile
        )


PASSES = 1
"""The version of the rule by which pictures are left untouched; results of another rule are not up to date."""


def _check_map(sigma: Array, picture: Picture, model: Denoiser) -> None:
    """Raises `InputError` where the map does not fit the picture, `ModelError` where the model takes none."""
    if sigma.shape != (picture.height, picture.width):
        raise InputError(
            f"{picture.name or 'the image'}: has {picture.width}x{picture.height} pixels, and the map of sigma "
            f"{sigma.shape[1]}x{sigma.shape[0]}; give a map [H,W] of its size"
        )
    if not model.takes_map:
        raise ModelError(f"model {model.label}: takes no map of sigma; give one level, or name no model")


def _copied(opened: Opened, options: DenoiseOptions) -> bytes | None:
    """Returns the bytes of the source file of an untouched picture, where its result is a file of the same format and
    nobody asks for a quality of it; otherwise None."""
    picture, data = opened.picture, opened.data
    if data is None or opened.kind not in ("bytes", "file"):
        return None
    suffix = opened.suffix or options.suffix or suffix_of(picture.format)
    same = WRITABLE.get(suffix.lower()) == picture.format
    return data if same and options.quality_of(suffix) is None else None


# -- a batch through a network -------------------------------------------------------------------------------


def run_denoiser(
    model: Denoiser,
    x: Tensor,
    sigma: Tensor,
    strength: float = 1.0,
    *,
    device: torch.device,
    dtype: torch.dtype,
    tile: int = TILE,
) -> Tensor:
    """Denoises a batch of one size: pixels `[N,C,H,W]` on the CPU, C 1 or 3, uint8, uint16 or float; returns the same.

    `sigma` `[N]`, or a map `[N,1,H,W]` where the model takes one, is in 8-bit units; `strength` scales what is removed,
    0 leaves everything as it is. Images larger than `tile` are cut into tiles, as `run_in_tiles` does, whose errors are
    raised.
    """
    grey, apart = x.shape[1] == 1, model.channels == 1
    level = (sigma * (math.sqrt(3) if grey and not (apart or model.takes_grey) else 1.0)).to(device)
    level = level.repeat_interleave(x.shape[1]) if apart else level
    through = Applied(
        lambda noisy, *maps: model(noisy, *(maps or (level,))), model.label, model.channels, model.channels,
        apart=apart, strength=strength, maps=(level,) if level.dim() == 4 else (),
    )  # fmt: skip
    return run_in_tiles(
        through, x, device=device, dtype=safe_dtype(model, dtype), tile=tile, halo=model.halo, multiple=model.multiple
    )
