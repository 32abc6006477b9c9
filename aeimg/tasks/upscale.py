"""The task upscale: picture -> a picture that is several times as wide and high.

prepare   reads the picture
run       a batch through the upscaler, in tiles; several times, where a power of its scale is asked for
finish    resizes the alpha, changes the size in the metadata, and gives the picture back
"""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..contract import ImageTask
from ..errors import UsageError
from ..metrics import has_ssimulacra2, psnr, ssimulacra2
from .image import Evaluation, ImageRunner
from .options import UpscaleOptions

Array = np.ndarray

REDUCTION = 2
"""How many times smaller pictures are made to be enlarged again, when an upscaler is evaluated whose scale is not
known."""


def resized(pixels: Array, scale: float, how: Image.Resampling = Image.Resampling.BICUBIC) -> Array:
    """Pixels uint8 `[H,W,3]`, `scale` times as wide and high, by a filter of Pillow's that is wide enough to reduce."""
    height, width = (round(scale * side) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))


def _score(a: Array, b: Array) -> float:
    return ssimulacra2(a, b) if has_ssimulacra2() else float("nan")


class Upscale(ImageRunner):
    """See the module. Raises `UsageError` for a scale that is no power of the model's."""

    options: UpscaleOptions

    def __init__(
        self,
        task: ImageTask,
        model: str | os.PathLike[str] | None,
        device: torch.device,
        dtype: torch.dtype,
        options: UpscaleOptions,
    ) -> None:
        super().__init__(task, model, device, dtype, options)
        self.times  # noqa: B018  # raises where the scale is none of this model's

    @property
    def times(self) -> int:
        """How often the model runs. Raises `UsageError` for a scale that is no power of the model's."""
        own, wanted = int(self.network.scale), self.options.scale
        powers = [own**n for n in range(1, 5)]
        if wanted is not None and wanted not in powers:
            some = ", ".join(str(power) for power in powers if power <= 16)
            raise UsageError(
                f"the model {self.network.label} enlarges {own} times, so the scale must be one of {some}, not {wanted}"
            )
        return 1 if wanted is None else 1 + powers.index(wanted)

    @property
    def scale(self) -> int:
        """How many times as wide and as high results are."""
        return int(self.network.scale) ** self.times

    def run_batch(self, x: Tensor) -> Tensor:
        """Runs a batch through the upscaler, as often as the scale needs it."""
        for _ in range(self.times):
            x = self.once(x, scale=int(self.network.scale))
        return x

    evaluation = Evaluation(
        reduction=lambda runner: runner.scale,
        degrade=lambda pixels, by: resized(pixels, 1 / by),
        metrics={"RGB PSNR, dB": psnr, "SSIMULACRA2": _score},
        baselines={
            "Lanczos": lambda x, by: resized(x, by, Image.Resampling.LANCZOS),
            "bicubic": lambda x, by: resized(x, by),
        },
    )
