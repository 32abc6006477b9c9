"""The task denoise: picture -> picture.

prepare   reads the picture, measures its noise and chooses the denoiser
run       a batch through the denoiser, in tiles
finish    compares before and after, and gives the picture back

`Denoise.tensors` does the same to a batch that is a tensor, on the device where that is.
"""

from __future__ import annotations

import copy
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
from ..errors import UsageError
from ..images import LOSSY
from ..manifest import digest
from ..noise import check, estimate_sigma, measure_noise
from ..pixels import check_tensor, like_tensor, mirror, padded
from ..stream import BATCH_WORK, out_of_memory
from .image import TILE, Applied, ImageItem, ImageRunner, run_in_tiles, safe_dtype
from .options import DenoiseOptions
from .pictures import Delivered, Result, batch_key, deliver, open_checked, stacked

Array = np.ndarray


@dataclass(frozen=True)
class Choice:
    """Which denoiser a picture gets, which level of noise is announced to it, and why."""

    model: str | None
    """The name of the denoiser; None for the one that the caller named."""
    sigma: float
    """The level of the noise, in 8-bit units."""
    why: str
    """The reason, for the user."""


def choose(pixels: Array | Tensor, sigma: float | str, *, free: bool, format: str = "") -> Choice:
    """Returns the denoiser for `pixels` `[C,H,W]`; `sigma` is a level or "auto", `free` is whether the caller named no
    model, `format` Pillow's name of the format that the picture had as a file.

    A given level means white noise of that level. Without one, strong noise on which JPEG has left marks goes to the
    model for such noise. Noise that measures as white goes to the default model; the measure is stricter for files of
    lossy formats. Everything else goes to the blind model, because no level could be trusted.
    """
    if sigma != "auto":
        return Choice(registry.WHITE if free else None, float(sigma), "sigma was given")
    if not free:
        return Choice(None, estimate_sigma(pixels), "the model was given")
    noise = measure_noise(pixels)
    lossy = format in LOSSY
    if noise.marked:
        return Choice(registry.JPEG, noise.sigma, f"JPEG has left marks on strong noise (steps of {noise.step:g})")
    if noise.white(strictly=lossy):
        return Choice(registry.WHITE, noise.sigma, f"white noise of sigma {noise.sigma:.1f}")
    found = "no white noise found" + (f" in this {format} file" if lossy else "")
    return Choice(registry.BLIND, noise.sigma, found)


def _described(choice: Choice, noise: float) -> str:
    """Returns what noise a picture holds, for people; `noise` is its level in the flattest parts, in 8-bit units."""
    if choice.model == registry.WHITE:
        return f"white noise ({choice.sigma:.1f} of 255)"
    kind = {registry.BLIND: "camera noise", registry.JPEG: "noise under JPEG"}.get(choice.model or "", "noise")
    return f"{kind} ({noise:.1f} of 255)" if noise >= 1 else f"hardly any noise ({noise:.1f} of 255)"


@dataclass(frozen=True, kw_only=True)
class DenoiseItem(ImageItem):
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
    found: str
    """What noise the picture held, for people."""
    name: str
    """The name of the denoiser, without its version where aeimg has chosen it."""

    def figures(self) -> dict[str, Any]:
        return {
            "model": self.model, "why": self.why,
            "sigma": None if self.sigma is None else round(self.sigma, 2), "strength": self.strength,
            "noise_before": round(self.noise_before, 2), "noise_after": round(self.noise_after, 2),
            "shift": [round(value, 3) for value in self.shift], "structure": round(self.structure, 3),
        }  # fmt: skip

    def sentence(self) -> str:
        strength = "" if self.strength == 1 else f", strength {self.strength:g}"
        return f"{self.found}, {self.name}{strength}"


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

    def with_options(self, options: DenoiseOptions) -> Denoise:
        """Returns the same task with other options. It shares the denoisers that are loaded."""
        other = copy.copy(self)
        other.options = options
        return other

    def models(self) -> list[tuple[str, str]]:
        """Returns label and digest of every denoiser that a picture may get, whichever are loaded."""
        return [registry.identity(self._known_as(name), "denoise", self.device) for name in self._possible]

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
        models = self.models()
        o = self.options
        chosen = {
            "sigma": o.sigma, "strength": o.strength, "format": o.format, "image_quality": o.image_quality,
        }  # fmt: skip
        if o.pages is not None:
            chosen["pages"] = o.pages
        about = ["Denoise", models, chosen, str(self.dtype)]
        return digest(json.dumps(about, sort_keys=True, default=str).encode())

    # -- the three steps ---------------------------------------------------------------------------------------

    def prepare(self, source: object) -> DenoiseItem:
        """Reads a picture, measures its noise and chooses its denoiser."""
        opened = open_checked(source, self.options.page)
        picture = opened.picture
        choice = choose(picture.pixels, self.options.sigma, free=self.asked is None, format=picture.format)
        return DenoiseItem(opened, choice=choice, model=self._model(choice.model))

    def key(self, item: DenoiseItem) -> Hashable:  # type: ignore[override]  # it gets what `prepare` has made
        """Returns the model, and channels, depth and padded size."""
        return (item.choice.model, *batch_key(item.picture, item.model.multiple))

    def run(self, items: list[DenoiseItem]) -> list[Array]:  # type: ignore[override]
        """Returns the clean pixels `[C,H,W]` of each picture, in the depth of its own."""
        model = items[0].model
        x = stacked(items, model.multiple, mirrored=True)
        sigma = torch.tensor([item.choice.sigma for item in items], dtype=torch.float32)
        alone, tileable = len(items) == 1, model.halo is not None
        clean = self.in_tiles(lambda: self._denoised(model, x, sigma), alone=alone, tileable=tileable).numpy()
        pictures = [item.picture for item in items]
        return [x[:, : p.height, : p.width] for x, p in zip(clean, pictures, strict=True)]

    def finish(self, item: DenoiseItem, raw: Array) -> DenoiseResult:  # type: ignore[override]
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
            found=_described(item.choice, found.noise_before),
            name=item.choice.model or item.model.label,
        )

    def _denoised(self, model: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
        return run_denoiser(
            model, x, sigma, self.options.strength, device=self.device, dtype=self.dtype, tile=self.tile
        )

    # -- tensors -----------------------------------------------------------------------------------------------

    def tensors(self, x: Tensor, batch_size: int = 8) -> Tensor:
        """Returns the pictures `x`, `[C,H,W]` or `[N,C,H,W]`, C 1, 3 or 4, uint8 or float in [0,1], denoised.

        The result has the shape, dtype, device and type of `x`, and no gradients. A fourth channel is alpha, and stays
        as it is. Each picture gets the denoiser that it would get by itself. What is on another device than the CPU is
        never copied to the CPU. Raises `UsageError`, `InputError`.
        """
        check_tensor(x)
        if x.device.type not in ("cpu", self.device.type):
            raise UsageError(f"the tensor is on {x.device} and the model on {self.device}; move one of them with .to()")
        with torch.no_grad():
            plain = x.detach().as_subclass(Tensor)
            result = plain.clone() if plain.dim() == 4 else plain.clone()[None]
            clean = result[:, :3] if result.shape[1] == 4 else result
            pixels = clean.clone() if plain.dtype in (torch.uint8, torch.float32) else clean.float()
            free = self.asked is None
            measured = pixels.numpy() if pixels.device.type == "cpu" else pixels
            chosen = [choose(one, self.options.sigma, free=free) for one in measured]
            most = max(1, min(batch_size, BATCH_WORK // max(1, pixels[0, 0].numel() if len(pixels) else 1)))
            for name in dict.fromkeys(choice.model for choice in chosen):
                alike = [number for number, choice in enumerate(chosen) if choice.model == name]
                for start in range(0, len(alike), most):
                    part = alike[start : start + most]
                    level = torch.tensor([chosen[number].sigma for number in part], dtype=torch.float32)
                    clean[part] = self._batch(self._model(name), pixels[part], level).to(clean.dtype)
        return like_tensor(result.view(x.shape), x)

    def _batch(self, model: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns a batch denoised; where memory does not suffice for it, in halves."""
        height, width = x.shape[2:]
        whole = mirror(x, padded(height, model.multiple), padded(width, model.multiple))
        try:
            alone, tileable = len(x) == 1, model.halo is not None
            clean = self.in_tiles(lambda: self._denoised(model, whole, sigma), alone=alone, tileable=tileable)
            return clean[:, :, :height, :width]
        except Exception as error:
            if len(x) == 1 or not out_of_memory(error):
                raise
        half = len(x) // 2
        return torch.cat([self._batch(model, x[part], sigma[part]) for part in (slice(half), slice(half, None))])


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
    """Denoises a batch of one size: pixels `[N,C,H,W]`, C 1 or 3, uint8, uint16 or float; returns the same, where they
    are.

    `sigma` `[N]` is in 8-bit units; `strength` scales what is removed, 0 leaves everything as it is. Images larger than
    `tile` are cut into tiles, as `run_in_tiles` does, whose errors are raised.
    """
    grey, apart = x.shape[1] == 1, model.channels == 1
    level = (sigma * (math.sqrt(3) if grey and not (apart or model.takes_grey) else 1.0)).to(device)
    level = level.repeat_interleave(x.shape[1]) if apart else level
    through = Applied(
        lambda noisy: model(noisy, level), model.label, model.channels, model.channels, apart=apart, strength=strength
    )
    return run_in_tiles(
        through, x, device=device, dtype=safe_dtype(model, dtype), tile=tile, halo=model.halo, multiple=model.multiple
    )
