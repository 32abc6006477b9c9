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
from ..errors import InputError, ModelError, UsageError
from ..images import LOSSY, WRITABLE
from ..manifest import digest
from ..noise import check, estimate_sigma, measure_noise
from ..pixels import check_tensor, like_tensor, mirror, padded
from ..stream import BATCH_WORK, out_of_memory
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
    untouched: str = ""
    """Why no denoiser is to see the picture, in a few words for people; empty where one is to see it."""


def choose(pixels: Array | Tensor, sigma: float | str | Array, *, free: bool, format: str = "") -> Choice:
    """Returns the denoiser for `pixels` `[C,H,W]`; `sigma` is a level, a map or "auto", `free` is whether the caller
    named no model, `format` Pillow's name of the format that the picture had as a file.

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
        return Choice(None, estimate_sigma(pixels), "the model was given")
    if min(pixels.shape[1:]) < SMALLEST:
        why = f"left untouched: a side under {SMALLEST} pixels, too small to measure"
        return Choice(None, 0.0, why, untouched="too small to measure its noise")
    noise = measure_noise(pixels)
    if noise.nothing:
        return Choice(None, 0.0, "left untouched: no noise was measured", untouched="no noise")
    lossy = format in LOSSY
    if noise.marked:
        return Choice(registry.JPEG, noise.sigma, f"JPEG has left marks on strong noise (steps of {noise.step:g})")
    if noise.white(strictly=lossy):
        return Choice(registry.WHITE, noise.sigma, f"white noise of sigma {noise.sigma:.1f}")
    found = "no white noise found" + (f" in this {format} file" if lossy else "")
    return Choice(registry.BLIND, noise.sigma, found)


def _described(choice: Choice, noise: float) -> str:
    """Returns what noise a picture holds, for people; `noise` is its level in the flattest parts, in 8-bit units."""
    if choice.untouched:
        return choice.untouched
    if choice.model == registry.WHITE:
        return f"white noise ({choice.sigma:.1f} of 255)"
    kind = {registry.BLIND: "camera noise", registry.JPEG: "noise under JPEG"}.get(choice.model or "", "noise")
    return f"{kind} ({noise:.1f} of 255)" if noise >= 1 else f"hardly any noise ({noise:.1f} of 255)"


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
    chroma_strength: float
    """The option, or the strength where it is not given."""
    noise_before: float
    """See `noise.Check`, as for the following ones."""
    noise_after: float
    shift: tuple[float, ...]
    structure: float
    found: str
    """What noise the picture held, for people."""
    name: str | None
    """The name of the denoiser, without its version where aeimg has chosen it; None where the picture was left
    untouched."""
    residual: Residual | None = None
    """What was taken away, where that was asked for."""

    def figures(self) -> dict[str, Any]:
        return {
            "model": self.model, "why": self.why, "untouched": self.model is None,
            "sigma": None if self.sigma is None else round(self.sigma, 2), "strength": self.strength,
            "chroma_strength": self.chroma_strength,
            "noise_before": round(self.noise_before, 2), "noise_after": round(self.noise_after, 2),
            "shift": [round(value, 3) for value in self.shift], "structure": round(self.structure, 3),
        }  # fmt: skip

    def sentence(self) -> str:
        if self.name is None:
            return f"{self.found}, left untouched"
        strength = "" if self.strength == 1 else f", strength {self.strength:g}"
        if self.chroma_strength != self.strength:
            strength += f", chroma strength {self.chroma_strength:g}"
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
        models = self.models()
        o = self.options
        sigma = digest(repr(o.sigma.shape).encode() + o.sigma.tobytes()) if isinstance(o.sigma, np.ndarray) else o.sigma
        chosen = {
            "sigma": sigma, "strengths": o.strengths, "format": o.format, "image_quality": o.image_quality,
        }  # fmt: skip
        if o.pages is not None:
            chosen["pages"] = o.pages
        about = ["Denoise", PASSES, models, chosen, str(self.dtype)]
        return digest(json.dumps(about, sort_keys=True, default=str).encode())

    # -- the three steps ---------------------------------------------------------------------------------------

    def prepare(self, source: object) -> DenoiseItem:
        """Reads a picture, measures its noise and chooses its denoiser."""
        opened = open_checked(source, self.options.page)
        picture = opened.picture
        choice = choose(picture.pixels, self.options.sigma, free=self.asked is None, format=picture.format)
        if choice.untouched:
            return DenoiseItem(opened, choice=choice, model=None)
        model = self._model(choice.model)
        if isinstance(self.options.sigma, np.ndarray):
            _check_map(self.options.sigma, picture.pixels.shape, model, picture.name)
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
        sigma = self._announced([item.choice for item in items], *x.shape[2:])
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
            chroma_strength=o.strengths[1],
            noise_before=found.noise_before,
            noise_after=found.noise_after,
            shift=found.shift,
            structure=found.structure,
            found=_described(item.choice, found.noise_before),
            name=None if model is None else item.choice.model or model.label,
            residual=None if o.residual is None else stretched(item.picture.pixels, raw),
        )

    def _announced(self, choices: list[Choice], height: int, width: int) -> Tensor:
        """Returns the levels of noise of pictures that are padded to one size: `[N]`, or the map `[N,1,H,W]`."""
        if not isinstance(self.options.sigma, np.ndarray):
            return torch.tensor([choice.sigma for choice in choices], dtype=torch.float32)
        plane = mirror(torch.from_numpy(self.options.sigma)[None, None], height, width)
        return plane.expand(len(choices), -1, -1, -1)

    def _denoised(self, model: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
        return run_denoiser(
            model, x, sigma, self.options.strengths, device=self.device, dtype=self.dtype, tile=self.tile
        )

    # -- tensors -----------------------------------------------------------------------------------------------

    def tensors(self, x: Tensor, batch_size: int = 8) -> Tensor:
        """Returns the pictures `x`, `[C,H,W]` or `[N,C,H,W]`, C 1, 3 or 4, uint8 or float in [0,1], denoised.

        The result has the shape, dtype, device and type of `x`, and no gradients. A fourth channel is alpha, and stays
        as it is. Each picture gets the denoiser that it would get by itself, or none where it would be left untouched.
        What is on another device than the CPU is never copied to the CPU. Raises `UsageError`, `InputError`,
        `ModelError`.
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
            noisy = [number for number, choice in enumerate(chosen) if not choice.untouched]
            for name in dict.fromkeys(chosen[number].model for number in noisy):
                model, alike = self._model(name), [number for number in noisy if chosen[number].model == name]
                if isinstance(self.options.sigma, np.ndarray):
                    _check_map(self.options.sigma, pixels.shape, model)
                size = [padded(side, model.multiple) for side in pixels.shape[2:]]
                for start in range(0, len(alike), most):
                    part = alike[start : start + most]
                    level = self._announced([chosen[number] for number in part], *size)
                    clean[part] = self._batch(model, pixels[part], level).to(clean.dtype)
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


PASSES = 1
"""The version of the rule by which pictures are left untouched; results of another rule are not up to date."""


def _check_map(sigma: Array, shape: tuple[int, ...], model: Denoiser, name: str = "") -> None:
    """Raises `InputError` where the map does not fit pixels of that shape, `ModelError` where the model takes none."""
    height, width = shape[-2:]
    if sigma.shape != (height, width):
        raise InputError(
            f"{name or 'the image'}: has {width}x{height} pixels, and the map of sigma "
            f"{sigma.shape[1]}x{sigma.shape[0]}; give a map [H,W] of its size"
        )
    if not model.takes_map:
        raise ModelError(f"model {model.label}: takes no map of sigma; give one level, or name no model")


def _copied(opened: Opened, options: DenoiseOptions) -> bytes | None:
    """Returns the bytes of the source file of an untouched picture, where its result is a file of the same format and
    nobody asks for a quality of it; otherwise None."""
    picture, data = opened.picture, opened.data
    if data is None or opened.kind not in ("bytes", "file") or picture.page is not None:  # which is but a part of it
        return None
    suffix = opened.suffix or options.suffix or suffix_of(picture.format)
    same = WRITABLE.get(suffix.lower()) == picture.format
    return data if same and options.quality_of(suffix) is None else None


# -- a batch through a network -------------------------------------------------------------------------------


def run_denoiser(
    model: Denoiser,
    x: Tensor,
    sigma: Tensor,
    strength: float | tuple[float, float] = 1.0,
    *,
    device: torch.device,
    dtype: torch.dtype,
    tile: int = TILE,
) -> Tensor:
    """Denoises a batch of one size: pixels `[N,C,H,W]`, C 1 or 3, uint8, uint16 or float; returns the same, where they
    are.

    `sigma` `[N]`, or a map `[N,1,H,W]` where the model takes one, is in 8-bit units; `strength` scales what is removed,
    one number for luma and one for chroma, or one for both; 0 leaves everything as it is. Images larger than `tile` are
    cut into tiles, as `run_in_tiles` does, whose errors are raised.
    """
    grey, apart = x.shape[1] == 1, model.channels == 1
    level = (sigma * (math.sqrt(3) if grey and not (apart or model.takes_grey) else 1.0)).to(device)
    level = level.repeat_interleave(x.shape[1]) if apart else level
    through = Applied(
        lambda noisy, *maps: model(noisy, *(maps or (level,))), model.label, model.channels, model.channels,
        apart=apart, strengths=strength if isinstance(strength, tuple) else (strength, strength),
        maps=(level,) if level.dim() == 4 else (),
    )  # fmt: skip
    return run_in_tiles(
        through, x, device=device, dtype=safe_dtype(model, dtype), tile=tile, halo=model.halo, multiple=model.multiple
    )
