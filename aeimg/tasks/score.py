"""The task score: picture -> how badly it comes back from a codec that has learned from other pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import registry
from ..contract import Codec, Reconstructor
from ..pixels import as_float
from .options import ScoreOptions
from .pictures import AnyShape, PictureItem, Result, stacked

Array = np.ndarray


@dataclass(frozen=True)
class Strangeness:
    """How badly a picture comes back."""

    score: float
    """The mean squared error, pixels in [0,1]."""
    percentile: float | None
    """How many percent of the training images come back no worse; None where the model does not know."""
    strange: bool | None
    """Whether `score` is above the threshold; None where there is none."""
    error: Array
    """The squared error of each pixel, mean of its channels: float32 `[H,W]`."""


@dataclass(frozen=True, kw_only=True)
class ScoreResult(Result[Strangeness]):
    """A score."""


class Score(AnyShape):
    """See the module. A codec that does not reconstruct without rounding rounds its codes as at the `quality`."""

    small = False

    def __init__(
        self,
        model: str | os.PathLike[str] | None,
        device: torch.device,
        dtype: torch.dtype,
        options: ScoreOptions,
    ) -> None:
        self.asked, self.device, self.dtype, self.options = model, device, dtype, options
        self.model: Codec[Any] = registry.get(model, "compress", device)

    def run(self, items: list[PictureItem]) -> list[Array]:
        """Returns the squared errors `[H,W]` of each picture."""
        x = stacked(items, 1)
        if isinstance(self.model, Reconstructor):
            back = self.model.reconstruct(x, self.device, self.dtype)
        else:
            quality = self.options.quality
            latents = list(self.model.encode(x, quality, self.device, self.dtype, 1))
            shape = (x.shape[1], x.shape[2], x.shape[3])
            back = as_float(self.model.decode(latents, shape, quality, self.device, self.dtype, 16))
        return list((back - as_float(x).clamp(0, 1)).square().mean(1).numpy())

    def finish(self, item: PictureItem, raw: Array) -> ScoreResult:
        """Compares the error with those of the training images."""
        score = float(raw.mean(dtype=np.float64))
        known = self.model.errors
        percentile, strange = None, None
        if known is not None:
            share = np.linspace(0, 100, len(known))
            percentile = float(np.interp(score, known, share))
            strange = score > float(np.interp(self.options.percentile, share, known))
        return ScoreResult(
            value=Strangeness(score, percentile, strange, raw),
            width=item.picture.width,
            height=item.picture.height,
            warnings=item.picture.notes,
        )
