"""The task denoise: picture -> picture.

prepare   reads the picture, measures its noise and chooses the denoiser
run       a batch through the denoiser, in tiles
finish    compares before and after, and gives the picture back
"""

from __future__ import annotations

import json
import logging
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
from ..contract import Denoiser
from ..errors import InputError, ModelError
from ..images import LOSSY, Picture
from ..manifest import digest
from ..noise import check, estimate_sigma, measure_noise
from ..pixels import as_float, as_pixels, mirror, padded
from ..stream import out_of_memory
from ..tiles import run_tiled
from .options import DenoiseOptions
from .pictures import Delivered, PictureItem, Result, batch_key, deliver, estimate, open_checked, stacked

Array = np.ndarray

log = logging.getLogger("aeimg")

TILE = 1504
"""The side of the tiles of large images, before the halo, in pixels."""
SMALLEST_TILE = 256
"""The side below which tiles are not halved where memory does not suffice, in pixels."""


@dataclass(frozen=True)
class Choice:
    """Which denoiser a picture gets, which level of noise is announced to it, and why."""

    model: str | None
    """The name of the denoiser; None for the one that the caller named."""
    sigma: float
    """The level of the noise, in 8-bit units."""
    why: str
    """The reason, for the user."""


def choose(picture: Picture, sigma: float | str, *, free: bool) -> Choice:
    """Returns the denoiser for `picture`; `sigma` is a level or "auto", `free` is whether the caller named no model.

    A given level means white noise of that level. Without one, strong noise on which JPEG has left marks goes to the
    model for such noise. Noise that measures as white goes to the default model; the measure is stricter for files of
    lossy formats. Everything else goes to the blind model, because no level could be trusted.
    """
    if sigma != "auto":
        return Choice(registry.WHITE if free else None, float(sigma), "sigma was given")
    if not free:
        return Choice(None, estimate_sigma(picture.pixels), "the model was given")
    noise = measure_noise(picture.pixels)
    lossy = picture.format in LOSSY
    if noise.marked:
        return Choice(registry.JPEG, noise.sigma, f"JPEG has left marks on strong noise (steps of {noise.step:g})")
    if noise.white(strictly=lossy):
        return Choice(registry.WHITE, noise.sigma, f"white noise of sigma {noise.sigma:.1f}")
    found = "no white noise found" + (f" in this {picture.format} file" if lossy else "")
    return Choice(registry.BLIND, noise.sigma, found)


@dataclass(frozen=True)
class DenoiseItem(PictureItem):
    """A picture, and the denoiser that it goes through."""

    choice: Choice
    """The denoiser's name, the level of noise, and the reason."""
    model: Denoiser
    """The denoiser."""


@dataclass(frozen=True, kw_only=True)
class DenoiseResult(Result[Delivered]):
    """The denoised picture, and what can be said of it without its clean original; see `noise.Check`."""

    model: str
    """The label of the denoiser."""
    why: str
    """Why it was chosen."""
    sigma: float | None
    """The level of noise that was announced to the model, in 8-bit units; None for a blind model."""
    strength: float
    """The option."""
    noise_before: float
    """See `noise.Check`, as for the following ones."""
    noise_after: float
    shift: tuple[float, ...]
    structure: float

    def figures(self) -> dict[str, Any]:
        return {
            "model": self.model, "why": self.why,
            "sigma": None if self.sigma is None else round(self.sigma, 2), "strength": self.strength,
            "noise_before": round(self.noise_before, 2), "noise_after": round(self.noise_after, 2),
            "shift": [round(value, 3) for value in self.shift], "structure": round(self.structure, 3),
        }  # fmt: skip


class Denoise:
    """See the module."""

    small = False

    def __init__(
        self,
        model: str | os.PathLike[str] | None,
        device: torch.device,
        dtype: torch.dtype,
        options: DenoiseOptions,
    ) -> None:
        self.asked, self.device, self.dtype, self.options = model, device, dtype, options
        self.tile = TILE
        self._lock = threading.Lock()
        self._models: dict[str | None, Denoiser] = {}
        if len(self._possible) == 1:  # the others are loaded when a picture needs them
            self._model(self._possible[0])
        for name in self._possible:
            registry.resolve(self._known_as(name))  # raises where its weights are missing

    @property
    def _possible(self) -> tuple[str | None, ...]:
        """The denoisers that a picture may get, by the names of `Choice`."""
        if self.asked is not None:
            return (None,)
        return tuple(registry.CHOICES) if self.options.sigma == "auto" else (registry.WHITE,)

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
        chosen = {
            "sigma": o.sigma, "strength": o.strength, "format": o.format, "image_quality": o.image_quality,
        }  # fmt: skip
        if o.pages is not None:
            chosen["pages"] = o.pages
        about = ["Denoise", models, chosen, str(self.dtype)]
        return digest(json.dumps(about, sort_keys=True, default=str).encode())

    # -- the three steps ---------------------------------------------------------------------------------------

    def estimate(self, source: object) -> int:
        """Returns how many bytes a picture will hold, by its header."""
        return estimate(source)

    def prepare(self, source: object) -> DenoiseItem:
        """Reads a picture, measures its noise and chooses its denoiser."""
        opened = open_checked(source, self.options.page)
        choice = choose(opened.picture, self.options.sigma, free=self.asked is None)
        return DenoiseItem(opened, choice, self._model(choice.model))

    def key(self, item: DenoiseItem) -> Hashable:
        """Returns the model, and channels, depth and padded size."""
        return (item.choice.model, *batch_key(item.picture, item.model.multiple))

    def run(self, items: list[DenoiseItem]) -> list[Array]:
        """Returns the clean pixels `[C,H,W]` of each picture, in the depth of its own."""
        model = items[0].model
        x = stacked(items, model.multiple, mirrored=True)
        sigma = torch.tensor([item.choice.sigma for item in items], dtype=torch.float32)
        clean = self._in_tiles(model, x, sigma, alone=len(items) == 1).numpy()
        pictures = [item.picture for item in items]
        return [x[:, : p.height, : p.width] for x, p in zip(clean, pictures, strict=True)]

    def finish(self, item: DenoiseItem, raw: Array) -> DenoiseResult:
        """Compares the pixels before and after, and gives the picture back."""
        found, o = check(item.picture.pixels, raw), self.options
        return DenoiseResult(
            value=deliver(replace(item.picture, pixels=raw), item.opened, o),
            width=item.picture.width,
            height=item.picture.height,
            warnings=(*item.picture.notes, *found.warnings(o.strength)),
            model=item.model.label,
            why=item.choice.why,
            sigma=None if item.model.blind else item.choice.sigma,
            strength=o.strength,
            noise_before=found.noise_before,
            noise_after=found.noise_after,
            shift=found.shift,
            structure=found.structure,
        )

    def _in_tiles(self, model: Denoiser, x: Tensor, sigma: Tensor, *, alone: bool) -> Tensor:
        """Returns the batch denoised; where a single picture lacks memory, in tiles of half the side from there on."""
        while True:
            try:
                return run_denoiser(
                    model, x, sigma, self.options.strength, device=self.device, dtype=self.dtype, tile=self.tile
                )
            except Exception as error:
                if not (alone and out_of_memory(error)):
                    raise  # the stream tries a batch again in halves
                if self.tile <= SMALLEST_TILE or model.halo is None:
                    raise InputError(f"memory does not suffice, not even in tiles of {self.tile} pixels") from error
                self.tile //= 2
                log.info("memory does not suffice: going on in tiles of %d pixels", self.tile)


# -- a batch through a network -------------------------------------------------------------------------------


@torch.inference_mode()
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

    `sigma` `[N]` is in 8-bit units; `strength` scales what is removed, 0 leaves everything as it is. Images larger than
    `tile` are cut into tiles, if the model states its halo, and only one tile is ever on the device, or in memory as
    floats. A tile whose result is not finite is computed again in fp32. Raises `InputError` where that does not help,
    `ModelError` where the model returns another shape.
    """
    grey, apart = x.shape[1] == 1, model.channels == 1
    level = (sigma * (math.sqrt(3) if grey and not (apart or model.takes_grey) else 1.0)).to(device)
    level = level.repeat_interleave(x.shape[1]) if apart else level
    dtype = dtype if model.dtypes is None or dtype in model.dtypes else torch.float32

    def run(part: Tensor) -> Tensor:
        if device.type == "cuda":  # from pinned memory the copy does not hold up this thread
            part = part.contiguous().pin_memory()
        noisy = as_float(part.to(device, non_blocking=device.type == "cuda"))
        height, width = noisy.shape[2:]
        shown = noisy.reshape(-1, 1, height, width) if apart else noisy.expand(-1, 3, -1, -1)
        whole = mirror(shown, padded(height, model.multiple), padded(width, model.multiple))
        clean = _finite_result(model, whole.contiguous(memory_format=torch.channels_last), level, dtype)
        clean = clean[:, :, :height, :width]
        if apart:
            clean = clean.reshape(noisy.shape)
        elif grey:
            clean = clean.mean(1, keepdim=True)
        return as_pixels(clean if strength == 1 else noisy + strength * (clean - noisy), x.dtype)

    side = padded(tile if model.halo is not None else max(x.shape[2:]), model.multiple)
    return run_tiled(run, x, side, padded(model.halo or 0, model.multiple))


def _finite_result(model: Denoiser, x: Tensor, level: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what `model` makes of `x` in `dtype`, or in fp32 where that is not finite."""
    for precision in dict.fromkeys((dtype, torch.float32)):
        with torch.autocast(x.device.type, precision, enabled=precision != torch.float32):
            clean = model(x, level)
        if not isinstance(clean, Tensor) or clean.shape != x.shape:  # it might broadcast, or be cut to fit
            what = list(clean.shape) if isinstance(clean, Tensor) else f"a {type(clean).__name__}"
            raise ModelError(
                f"model {model.label}: made {what} of {list(x.shape)}; it must give back a tensor of the same shape"
            )
        clean = clean.float()
        if bool(torch.isfinite(clean.sum())):  # a sum holds whatever is not finite, and takes no memory
            return clean
    raise InputError("the model's result is not finite, not even in fp32; the picture may hold such values")
