"""The objectives of denoisers.

DenoiseObjective     white noise of a known level
BlindObjective       the noise that cameras and their software leave, at an unknown level; and real pairs
PairsObjective       real pairs alone
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..models.unet import UNet
from ..registry import BLIND, JPEG, WHITE
from .datasets import Pairs, Photographs
from .degradations import add_white_noise, photographed, saved_as_jpeg, source_side, through_jpeg, turn_grey
from .objective import AT_LEAST, Config, Objective, Recipe, middle, psnr_in_eight_bits

SHAPE = {"channels": (64, 96, 160), "inner": (), "blocks": (1, 1, 2), "blocks_up": (1, 1)}
"""The shape of a denoiser whose config gives none. See `UNetConfig`.

The first level has 64 channels for the 12 values of each 2x2 pixels, and three levels see 60 pixels far. The first
networks had 32 channels and four levels. From scratch, this shape had learned more after about 250 steps, which says
something of the speed of early learning only. A comparison that started from trained weights did not confirm that
32 channels are why sharp, strongly coloured detail suffers."""
MAXIMUM_SIGMA = 55
"""White noise of up to this sigma is learned, in 8-bit units."""


def _sized(x: Tensor) -> Tensor:
    """`x` `[...,H,W]` cut to multiples of 32 pixels, which every network here takes."""
    height, width = (side // 32 * 32 for side in x.shape[-2:])
    return x[..., :height, :width].contiguous(memory_format=torch.channels_last)


def _both(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The clean and the noisy images `[N,3,H,W]`, float in [0,1], of pairs, uint8 `[N,6,H,W]`."""
    both = pairs.float() / 255.0
    return both[:, :3], both[:, 3:]


class Untouched(nn.Module):
    """Stands for a denoiser that does nothing: what `validate` says of it are the figures of the noisy images."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x


class DenoiseObjective(Objective[Photographs, UNet]):
    """White noise of a known sigma, 0 to `MAXIMUM_SIGMA`. The loss is Charbonnier's, then squared error."""

    task = "denoise"
    architecture = "unet"
    network = UNet
    recipe = Recipe(
        crop=96, batch=16, learning_rate=1.5e-3, late=0.2, late_crop=128, late_batch=16, hold=0.5, muon=True, minutes=60
    )
    primary_metric = "psnr25"
    higher_is_better = True
    passes = 3

    @classmethod
    def source(cls, data: Path, recipe: Recipe, config: Config) -> Photographs:
        return Photographs(data, min_side=min(recipe.crop, recipe.late_crop), at_least=AT_LEAST)

    def fresh_model(self, config: Config) -> UNet:
        shape: Config = {} if "channels" in config else SHAPE
        return self.build({"slope": 0.1, "takes_grey": True, **shape, **config})

    def _denoising_loss(
        self, clean: Tensor, noisy: Tensor, sigma: Tensor, level: Tensor, late: bool
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and its mean squared error.

        The model gets `sigma` `[N]`; `level` `[N]` is how much noise the images do have. Both are in 8-bit units.
        """
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        error = (self.model(noisy, sigma).float() - clean).square()
        # The evaluation counts decibels, so weak noise, whose errors are small, must count as much as strong noise.
        weight = (30 / (level + 10)).view(-1, 1, 1, 1)
        # Both losses are near the root mean square error, so the learning rate suits both.
        loss = (error * weight).mean() * 8 if late else (error * weight + 1e-6).sqrt().mean()
        return loss, {"mse": float(error.detach().mean())}

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        (crops,) = batch
        generator = torch.Generator(crops.device).manual_seed(int(rng.integers(2**62)))
        clean = crops.float() / 255.0
        grey = torch.from_numpy(rng.random(clean.shape[0]) < self.recipe.grey)
        clean[grey] = turn_grey(clean[grey], rng, share=1.0)
        sigma = torch.from_numpy(rng.uniform(0, MAXIMUM_SIGMA, clean.shape[0]).astype(np.float32)).to(clean.device)
        noisy = add_white_noise(clean, sigma, generator)
        noisy[grey] = noisy[grey][:, :1].expand(-1, 3, -1, -1)  # a grey image has grey noise
        return self._denoising_loss(clean, noisy, sigma, sigma, late)

    @property
    def shipped(self) -> str | None:
        return WHITE

    def untouched(self) -> dict[str, float]:
        return self.validate(Untouched().to(next(self.model.parameters()).device))

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """The PSNR of held-out images with white noise of sigma 15, 25 and 50, denoised, in dB."""
        device = next(model.parameters()).device
        figures = {}
        for sigma in (15, 25, 50):
            psnr = []
            for index in self.held_out:
                image = self.held(index).to(device)
                clean = _sized(image.float() / 255.0)
                generator = torch.Generator(device).manual_seed(index)
                level = torch.tensor([float(sigma)], device=device)
                psnr.append(psnr_in_eight_bits(model(add_white_noise(clean, level, generator), level), clean))
            figures[f"psnr{sigma}"] = sum(psnr) / len(psnr)
        return figures


class BlindObjective(DenoiseObjective):
    """The noise that a camera and its software leave in a picture, at an unknown level; and pairs of photographs.

    With `recipe.jpeg`, white noise that was saved as JPEG instead.
    """

    primary_metric = "camera"

    def __init__(self, dataset: Photographs, config: Config, recipe: Recipe, pairs: Pairs | None = None) -> None:
        super().__init__(dataset, {"assumed_sigma": 25.0, **config}, recipe)
        if recipe.jpeg:
            self.primary_metric = "jpeg"
        self.pairs = pairs
        self.held_out_pairs = pairs.split(min(6, len(pairs) // 10)) if pairs is not None else []

    def batch(self, rng: np.random.Generator, late: bool) -> tuple[Tensor, ...]:
        """Clean and noisy crops `[N,3,S,S]`, float in [0,1]."""
        count, side = self._size(late)
        if self.pairs is not None and rng.random() < self.recipe.pairs:
            return _both(self.pairs.crops(rng, count, side))
        if self.recipe.jpeg:
            clean = self.dataset.crops(rng, count, side).float() / 255.0
            noisy = saved_as_jpeg(clean, rng)
        else:
            source = source_side(side, rng)
            crops = self.dataset.crops(rng, count, source if source <= self.dataset.largest_side else side)
            clean, noisy = photographed(crops.float() / 255.0, rng, side=side)
        both = turn_grey(torch.cat([clean, noisy], 3), rng, share=0.1)
        return both[..., :side], both[..., side:]

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        clean, noisy = batch
        level = 255 * (noisy - clean).square().mean((1, 2, 3)).sqrt()
        return self._denoising_loss(clean, noisy, torch.zeros_like(level), level, late)

    @property
    def shipped(self) -> str | None:
        return JPEG if self.recipe.jpeg else BLIND

    @staticmethod
    def _denoised_psnr(model: nn.Module, noisy: Tensor, clean: Tensor) -> float:
        """The PSNR of `noisy`, denoised without a level, in dB."""
        device = next(model.parameters()).device
        noisy = noisy.to(device).contiguous(memory_format=torch.channels_last)
        return psnr_in_eight_bits(model(noisy, torch.zeros(1, device=device)), clean.to(device))

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Figures of held-out images, denoised, in dB: the PSNR after white noise of sigma 25 and JPEG of quality 75,
        after the noise of a camera, and of clean images; and what the PSNR of held-out pairs gains."""
        rows = []
        for index in self.held_out:
            clean = _sized(self.held(index).float() / 255.0)
            noisy = add_white_noise(clean, torch.tensor([25.0]), torch.Generator().manual_seed(index))
            square = clean[..., : min(clean.shape[2:]), : min(clean.shape[2:])]
            rng = np.random.default_rng(index)
            if self.recipe.jpeg:
                taken = square, saved_as_jpeg(square, rng, clean=0)
            else:
                taken = photographed(square, rng, side=square.shape[2], clean=0, white=0)
            pictures = ((through_jpeg(noisy, [75], [2]), clean), (taken[1], taken[0]), (clean, clean))
            rows.append([self._denoised_psnr(model, *picture) for picture in pictures])
        means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
        figures = dict(zip(("jpeg", "camera", "clean"), means, strict=True))
        gains = []
        for index in self.held_out_pairs:
            assert self.pairs is not None
            clean, noisy = _both(_sized(middle(self.pairs.image(index))))
            gains.append(self._denoised_psnr(model, noisy, clean) - psnr_in_eight_bits(noisy, clean))
        return {**figures, **({"pairs": sum(gains) / len(gains)} if gains else {})}


class PairsObjective(BlindObjective):
    """Pairs of real photographs and nothing else: for the noise of one camera, scanner or microscope."""

    primary_metric = "psnr"
    passes = 1

    @classmethod
    def source(cls, data: Path, recipe: Recipe, config: Config) -> Pairs:
        return Pairs(data, min_side=min(recipe.crop, recipe.late_crop), at_least=AT_LEAST)

    def batch(self, rng: np.random.Generator, late: bool) -> tuple[Tensor, ...]:
        return _both(self.dataset.crops(rng, *self._size(late)))

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """The PSNR of held-out pairs in dB: of the noisy image, and of the denoised one."""
        rows = []
        for index in self.held_out:
            clean, noisy = _both(_sized(self.held(index)))
            rows.append([psnr_in_eight_bits(noisy, clean), self._denoised_psnr(model, noisy, clean)])
        before, after = (sum(column) / len(column) for column in zip(*rows, strict=True))
        return {"noisy": before, "psnr": after}
