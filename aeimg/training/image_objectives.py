"""The objectives of upscalers and colorizers.

UpscaleObjective     reduced pictures, sharp and saved as JPEG -> the pictures
ColorizeObjective    luma -> chroma, by regression or by classes
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.colorizer import Colorizer
from ..models.upscaler import Upscaler
from ..pixels import LUMA
from .datasets import Photographs, UprightPhotographs
from .degradations import resized, through_jpeg
from .objective import AT_LEAST, Config, Objective, Recipe, psnr_in_eight_bits, psnr_of


def reduced(x: Tensor, scale: int) -> Tensor:
    """Pictures `[N,C,H,W]` in [0,1] with sides `scale` times as small, by a cubic that is wide enough, in 8-bit
    steps."""
    height, width = (side // scale for side in x.shape[2:])
    small = F.interpolate(x, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return (small.clamp(0, 1) * 255).round() / 255


def save_some(x: Tensor, rng: np.random.Generator, share: float) -> Tensor:
    """Pictures `[N,3,H,W]`, of which a share has been saved as JPEG of quality 40 to 95, mostly 4:2:0, and read
    again."""
    count = x.shape[0]
    quality = [int(rng.integers(40, 96)) if rng.random() < share else None for _ in range(count)]
    return through_jpeg(x, quality, [int(rng.choice([0, 1, 2], p=[0.3, 0.1, 0.6])) for _ in range(count)])


class UpscaleObjective(Objective[Photographs, Upscaler]):
    """Pictures from their bicubic reductions, of which a share has been saved as JPEG. The loss is Charbonnier's, then
    squared error."""

    task = "upscale"
    architecture = "upscaler"
    network = Upscaler
    recipe = Recipe(
        crop=128, batch=16, learning_rate=1e-3, late=0.2, late_crop=192, late_batch=16, muon=True, minutes=60
    )
    primary_metric = "psnr"
    higher_is_better = True
    passes = 2

    @classmethod
    def source(cls, data: Path, recipe: Recipe, config: Config) -> Photographs:
        return Photographs(data, min_side=min(recipe.crop, recipe.late_crop), at_least=AT_LEAST)

    def batch(self, rng: np.random.Generator, late: bool) -> tuple[Tensor, ...]:
        """Pictures `[N,3,S,S]` and their reductions, float in [0,1]."""
        count, side = self._size(late)
        scale = self.model.config.scale
        x = self.dataset.crops(rng, count, side // scale * scale).float() / 255
        return x, save_some(reduced(x, scale), rng, self.recipe.saved)

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        x, small = batch
        error = (self.model(small.contiguous(memory_format=torch.channels_last)) - x).square()
        loss = 8 * error.mean() if late else (error + 1e-6).sqrt().mean()
        return loss, {"mse": float(error.detach().mean())}

    @torch.no_grad()
    def validate(self, model: Upscaler) -> dict[str, float]:
        """The PSNR of held-out pictures in dB, in 8-bit steps: from their reductions, from reductions saved as JPEG of
        quality 75, and of the former's bicubic interpolation."""
        device, scale = next(model.parameters()).device, model.config.scale
        rows = []
        for index in self.held_out:
            x = self.held(index).float() / 255
            height, width = (side // scale * scale for side in x.shape[2:])
            x = x[:, :, :height, :width]
            small = reduced(x, scale)
            plain = F.interpolate(small, scale_factor=scale, mode="bicubic", antialias=True, align_corners=False)
            made = [model(one.to(device)).cpu() for one in (small, through_jpeg(small, [75], [2]))]
            rows.append([psnr_in_eight_bits(one, x) for one in (*made, plain)])
        return dict(zip(("psnr", "jpeg", "bicubic"), (sum(c) / len(c) for c in zip(*rows, strict=True)), strict=True))


def luma_and_chroma(x: Tensor) -> tuple[Tensor, Tensor]:
    """RGB `[N,3,H,W]` in [0,1] as luma `[N,1,H,W]` and Cb and Cr `[N,2,H,W]` in [-0.5,0.5] (BT.601)."""
    red, green, blue = x.unbind(1)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return luma[:, None], torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], 1)


class ColorizeObjective(Objective[UprightPhotographs, Colorizer]):
    """Chroma from luma. The loss of a regression is Charbonnier's of the chroma; that of classes (`config.bins`) is the
    cross-entropy of the nearest class."""

    task = "colorize"
    architecture = "colorizer"
    network = Colorizer
    recipe = Recipe(
        crop=192, batch=16, learning_rate=1e-3, late=0.2, late_crop=256, late_batch=12, muon=True, minutes=60
    )
    primary_metric = "psnr"
    higher_is_better = True

    @classmethod
    def source(cls, data: Path, recipe: Recipe, config: Config) -> UprightPhotographs:
        return UprightPhotographs(data, min_side=min(recipe.crop, recipe.late_crop), at_least=AT_LEAST)

    def batch(self, rng: np.random.Generator, late: bool) -> tuple[Tensor, ...]:
        """Luma `[N,1,S,S]` and chroma `[N,2,S,S]`, floats, of crops that are reduced up to two times."""
        count, side = self._size(late)
        multiple = self.model.multiple
        side = side // multiple * multiple
        most = min(2 * side, self.dataset.largest_side)
        drawn = int(rng.integers(side, most + 1)) if most > side else side
        x = self.dataset.crops(rng, count, drawn).float() / 255
        return luma_and_chroma(x if drawn == side else resized(x, side, "bilinear").clamp(0, 1))

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        luma, chroma = batch
        last = self.model.last(luma.contiguous(memory_format=torch.channels_last)).float()
        error = (self.model.chroma(last) - chroma).square()
        terms = {"mse": float(error.detach().mean())}
        if not self.model.config.bins:
            return (error + 1e-5).sqrt().mean() * 4, terms
        entropy = F.cross_entropy(last, self.model.classes(F.avg_pool2d(chroma, 2)))
        return entropy, {**terms, "nats": float(entropy.detach())}

    @torch.no_grad()
    def validate(self, model: Colorizer) -> dict[str, float]:
        """Of held-out pictures, reduced as they are for the network: the PSNR of their chroma in dB, that of grey, and
        the share of their saturation that comes back."""
        device = next(model.parameters()).device
        rows = []
        for index in self.held_out:
            x = self.held(index).float() / 255
            factor = min(1.0, model.config.side / min(x.shape[2:]))
            height, width = (max(1, int(factor * n) // model.multiple) * model.multiple for n in x.shape[2:])
            x = F.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
            luma, chroma = luma_and_chroma(x)
            made = model(luma.to(device)).cpu().clamp(-0.5, 0.5)
            saturation = float(made.norm(dim=1).mean() / chroma.norm(dim=1).mean().clamp(min=1e-6))
            rows.append([psnr_of(made - chroma), psnr_of(chroma), saturation])
        means = (sum(column) / len(column) for column in zip(*rows, strict=True))
        return dict(zip(("psnr", "grey", "saturation"), means, strict=True))
