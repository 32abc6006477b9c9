"""What is trained, on what, and how it is judged: the objectives of the shipped models.

Recipe               crops, batches, learning rate
Objective            batch -> loss, and a held-out figure
DenoiseObjective     white noise of a known level
BlindObjective       what cameras and their software leave, and real pairs
PairsObjective       real pairs alone
CompressObjective    rate and distortion
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .data import Pairs, Photographs, add_white_noise, photographed, saved_as_jpeg, source_side, through_jpeg, turn_grey
from .entropy import LEVELS, REACH, fit_tables, logistic_tables
from .hyperprior_codec import HyperpriorCodec
from .models.hyperprior import Hyperprior, strength
from .models.integer import QUALITIES, freeze
from .weights import build

AT_LEAST = 10
"""Images, or pairs, that something is learned from."""
SHAPE = {"channels": (32, 96, 128, 192), "inner": (32, 64, 128, 192), "blocks": (1, 1, 3, 2), "blocks_up": (1, 2, 2)}
"""Of a denoiser of which nothing else is said: what ships. (The wide second level is the dearest; see `UNetConfig`.)"""
JUDGED_SIDE = 1024
"""Pixels of a held-out image each way, at most: scans of 50 megapixels would take longer to judge than to learn."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. `late` is the share of the run that the last phase takes."""

    crop: int
    batch: int
    rate: float
    late: float
    late_crop: int
    late_batch: int
    warmup: int = 200
    beta2: float = 0.99
    clip: float = 1.0
    average: float = 0.999
    muon: bool = False
    """Whether the kernels of convolutions are moved by Muon; AdamW moves the rest."""
    pairs: float = 0.3
    """Of a blind denoiser: the share of batches that comes from real pairs, where there are any."""
    jpeg: bool = False
    """Of a blind denoiser: whether it is for white noise that has been through JPEG, and for nothing else."""
    grey: float = 0.1
    """Of a denoiser that is told its noise level: the share of grey images with grey noise."""
    minutes: float | None = None
    """How long a run takes that is told nothing else; or `steps`."""
    steps: int | None = None
    labels: tuple[int, ...] | None = None
    """Of idx files: only images of these."""


class Objective(ABC):
    """What is trained, on what, and how it is judged."""

    task: str
    architecture: str
    recipe: Recipe
    model: nn.Module
    main: str
    """Which of the held-out figures says how well it goes."""
    larger = False
    """Whether more of it is better."""
    settled = 0.0
    """From which share of a run on it says so."""
    passes = 1
    """How often `validate` runs each held-out image through the network."""
    mixed = True
    """Whether bf16 gains anything, where the device has it."""
    done = 0.0
    """How much of the run is over, 0..1; the loop keeps it up to date."""

    @classmethod
    def source(cls, data: Path, recipe: Recipe, config: dict[str, Any]) -> Any:
        """What it is trained on, of the folder `data`. Raises `DataError`."""
        return Photographs(data, min_side=min(recipe.crop, recipe.late_crop), at_least=AT_LEAST)

    def __init__(self, photographs: Any, recipe: Recipe) -> None:
        self.photographs = photographs
        self.recipe = recipe
        self.notes: list[str] = []
        """What the user should know of how the data was taken."""
        self.held_out = self.split()
        if recipe.late_crop > recipe.crop and (enough := photographs.count(recipe.late_crop)) < AT_LEAST - 2:
            self.recipe = replace(recipe, late_crop=recipe.crop, late_batch=recipe.batch)
            self.notes.append(
                f"{enough} images are large enough for the last phase's crops of {recipe.late_crop} pixels: "
                f"it keeps to crops of {recipe.crop}"
            )

    def split(self) -> list[int]:
        """Indices of images that are held out."""
        return list(self.photographs.split(min(16, len(self.photographs) // 10)))

    def held(self, index: int) -> Tensor:
        """The middle of held-out image `index`, uint8 `[1,C,H,W]`."""
        return _middle(self.photographs.image(index))

    def judged_pixels(self) -> int:
        """How many pixels go through the network in one `validate`."""
        return self.passes * sum(self.held(index)[0, 0].numel() for index in self.held_out)

    def batch(self, rng: np.random.Generator, late: bool) -> tuple[Tensor, ...]:
        """What `loss` needs, made in a thread of its own: here, uint8 crops `[N,3,S,S]`."""
        return (self.photographs.crops(rng, *self._size(late)),)

    def _size(self, late: bool) -> tuple[int, int]:
        r = self.recipe
        return (r.late_batch, r.late_crop) if late else (r.batch, r.crop)

    def prepare(self) -> None:
        """What a fresh model takes from the data before its first step."""

    @abstractmethod
    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        """The loss of a `batch`, and its terms, each named by its unit."""

    @abstractmethod
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Figures on the held-out images."""

    def export(self, model: nn.Module) -> dict[str, Tensor]:
        """What goes into the weights file."""
        return {name: tensor.half() for name, tensor in model.state_dict().items()}

    def rounded(self, model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
        """`model` as it will be loaded from `tensors`: these weights will run, so it is they that are measured."""
        network = build(self.architecture, asdict(model.config))  # type: ignore[call-overload]
        network.load_state_dict({name: tensors[name].float() for name in model.state_dict()})
        return network.eval()


def _middle(image: np.ndarray) -> Tensor:
    """`[H,W,C]` -> `[1,C,H,W]`, of at most `JUDGED_SIDE` each way."""
    top, left = (max(0, (side - JUDGED_SIDE) // 2) for side in image.shape[:2])
    middle = image[top : top + JUDGED_SIDE, left : left + JUDGED_SIDE]
    return torch.from_numpy(middle.copy()).permute(2, 0, 1)[None]


def _sized(x: Tensor) -> Tensor:
    """`x` `[...,H,W]` cut to sides that every network here takes."""
    height, width = (side // 32 * 32 for side in x.shape[-2:])
    return x[..., :height, :width].contiguous(memory_format=torch.channels_last)


def _both(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The clean and the noisy one of each pair, uint8 `[N,6,H,W]`, as float in [0,1]."""
    both = pairs.float() / 255.0
    return both[:, :3], both[:, 3:]


def _psnr(result: Tensor, clean: Tensor) -> float:
    """Of a denoised image, rounded to 8 bits, in dB."""
    error = (result.float().clamp(0, 1) * 255).round() / 255 - clean
    return -10 * math.log10(max(float(error.square().mean()), 1e-10))


class DenoiseObjective(Objective):
    """White noise of a known sigma in 0..55: Charbonnier, then squared error for the last part."""

    task = "denoise"
    architecture = "unet"
    recipe = Recipe(
        crop=96, batch=16, rate=1.5e-3, late=0.2, late_crop=128, late_batch=16, muon=True, minutes=60
    )  # fmt: skip
    main = "psnr25"
    larger = True
    passes = 3

    def __init__(self, photographs: Photographs, config: dict[str, Any], recipe: Recipe) -> None:
        super().__init__(photographs, recipe)
        shape = {} if "channels" in config else SHAPE
        self.model = build(self.architecture, {"slope": 0.1, "takes_grey": True, **shape, **config})

    def _against(
        self, clean: Tensor, noisy: Tensor, sigma: Tensor, level: Tensor, late: bool
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch whose images have noise of `level` `[N]`, in 8-bit units, and its squared error."""
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        error = (self.model(noisy, sigma).float() - clean).square()
        # What is measured is decibels: weak noise, where errors are small, has to count as strong noise does.
        weight = (30 / (level + 10)).view(-1, 1, 1, 1)
        # Both terms are near the root mean square error, so the rate need not change where they do.
        loss = (error * weight).mean() * 8 if late else (error * weight + 1e-6).sqrt().mean()
        return loss, {"mse": float(error.detach().mean())}

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        (crops,) = batch
        generator = torch.Generator(crops.device).manual_seed(int(rng.integers(2**62)))
        clean = crops.float() / 255.0
        grey = torch.from_numpy(rng.random(clean.shape[0]) < self.recipe.grey)
        clean[grey] = turn_grey(clean[grey], rng, share=1.0)
        sigma = torch.from_numpy(rng.uniform(0, 55, clean.shape[0]).astype(np.float32)).to(clean.device)
        noisy = add_white_noise(clean, sigma, generator)
        noisy[grey] = noisy[grey][:, :1].expand(-1, 3, -1, -1)  # a grey image has grey noise
        return self._against(clean, noisy, sigma, sigma, late)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        figures = {}
        for sigma in (15, 25, 50):
            psnr = []
            for index in self.held_out:
                image = self.held(index).to(device)
                clean = _sized(image.float() / 255.0)
                generator = torch.Generator(device).manual_seed(index)
                level = torch.tensor([float(sigma)], device=device)
                psnr.append(_psnr(model(add_white_noise(clean, level, generator), level), clean))
            figures[f"psnr{sigma}"] = sum(psnr) / len(psnr)
        return figures


class BlindObjective(DenoiseObjective):
    """Whatever a camera and its software leave in a picture, its level unknown; and pairs of real photographs."""

    main = "camera"

    def __init__(
        self, photographs: Photographs, config: dict[str, Any], recipe: Recipe, pairs: Pairs | None = None
    ) -> None:
        super().__init__(photographs, {"assumed_sigma": 25.0, **config}, recipe)
        if recipe.jpeg:
            self.main = "jpeg"
        self.pairs = pairs
        self.held_out_pairs = pairs.split(min(6, len(pairs) // 10)) if pairs is not None else []

    def batch(self, rng: np.random.Generator, late: bool) -> tuple[Tensor, ...]:
        """Clean and noisy crops, float in [0,1]."""
        count, side = self._size(late)
        if self.pairs is not None and rng.random() < self.recipe.pairs:
            return _both(self.pairs.crops(rng, count, side))
        if self.recipe.jpeg:
            clean = self.photographs.crops(rng, count, side).float() / 255.0
            noisy = saved_as_jpeg(clean, rng)
        else:
            source = source_side(side, rng)
            crops = self.photographs.crops(rng, count, source if source <= self.photographs.largest_side else side)
            clean, noisy = photographed(crops.float() / 255.0, rng, side=side)
        both = turn_grey(torch.cat([clean, noisy], 3), rng, share=0.1)
        return both[..., :side], both[..., side:]

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        clean, noisy = batch
        level = 255 * (noisy - clean).square().mean((1, 2, 3)).sqrt()
        return self._against(clean, noisy, torch.zeros_like(level), level, late)

    @staticmethod
    def _blindly(model: nn.Module, noisy: Tensor, clean: Tensor) -> float:
        """PSNR of a denoised image, in dB."""
        device = next(model.parameters()).device
        noisy = noisy.to(device).contiguous(memory_format=torch.channels_last)
        return _psnr(model(noisy, torch.zeros(1, device=device)), clean.to(device))

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """PSNR of held-out images: noise of sigma 25 and JPEG 75; as from a camera; clean; and the gain of pairs."""
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
            rows.append([self._blindly(model, *picture) for picture in pictures])
        means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
        figures = dict(zip(("jpeg", "camera", "clean"), means, strict=True))
        gains = []
        for index in self.held_out_pairs:
            assert self.pairs is not None
            clean, noisy = _both(_sized(_middle(self.pairs.image(index))))
            gains.append(self._blindly(model, noisy, clean) - _psnr(noisy, clean))
        return {**figures, **({"pairs": sum(gains) / len(gains)} if gains else {})}


class PairsObjective(BlindObjective):
    """Pairs of real photographs and nothing else, for the noise of one camera, scanner or microscope."""

    main = "psnr"
    passes = 1

    @classmethod
    def source(cls, data: Path, recipe: Recipe, config: dict[str, Any]) -> Any:
        return Pairs(data, min_side=min(recipe.crop, recipe.late_crop), at_least=AT_LEAST)

    def batch(self, rng: np.random.Generator, late: bool) -> tuple[Tensor, ...]:
        return _both(self.photographs.crops(rng, *self._size(late)))

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """PSNR of held-out pairs, of the noisy picture and of what is made of it, in dB."""
        rows = []
        for index in self.held_out:
            clean, noisy = _both(_sized(self.held(index)))
            rows.append([_psnr(noisy, clean), self._blindly(model, noisy, clean)])
        before, after = (sum(column) / len(column) for column in zip(*rows, strict=True))
        return {"noisy": before, "psnr": after}


class CompressObjective(Objective):
    """Rate plus lambda times distortion, at a rate drawn anew for each crop.

    lambda = 0.0008 * 2^(8.2 q) spans about 0.1 to 2 bits per pixel. Each crop's loss is divided by lambda^0.4, so
    that a percent of the rate counts about as much at low rates as at high ones.
    """

    task = "compress"
    architecture = "hyperprior"
    recipe = Recipe(crop=128, batch=16, rate=1e-3, late=0.2, late_crop=256, late_batch=6, muon=True, minutes=60)
    main = "loss"
    passes = 4

    def __init__(self, photographs: Photographs, config: dict[str, Any], recipe: Recipe) -> None:
        super().__init__(photographs, recipe)
        self.model: Hyperprior = build(self.architecture, config)  # type: ignore[assignment]

    def prepare(self) -> None:
        """The linear shortcut: principal components of 128,000 blocks."""
        rng = np.random.default_rng(1)
        crops = self.photographs.crops(rng, 2000, 128).float()
        self.model.fit_linear(torch.nn.functional.pixel_unshuffle(crops, 16).permute(0, 2, 3, 1).reshape(-1, 768))

    @staticmethod
    def _terms(model: nn.Module, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, bits per pixel and mean squared error (8-bit units) of each image."""
        decoded, code_bits, side_bits = model(x, q)
        bpp = (code_bits + side_bits) / (x.shape[2] * x.shape[3])
        mse = (decoded - x).square().flatten(1).mean(1) * 255.0**2
        worth = strength(q)
        return (worth * mse + bpp) * (worth / 0.01) ** -0.4, bpp, mse

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        (crops,) = batch
        q = torch.from_numpy(rng.random(crops.shape[0]).astype(np.float32)).to(crops.device)
        x = turn_grey(crops.float() / 255.0, rng, share=0.05)
        loss, bpp, mse = self._terms(self.model, x, q)
        return loss.mean(), {"bpp": float(bpp.detach().mean()), "mse": float(mse.detach().mean())}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Loss, bits per pixel and PSNR at four rates; and the mean of the losses."""
        device = next(model.parameters()).device
        figures: dict[str, float] = {}
        for q in (0.1, 0.35, 0.6, 0.85):
            rows = []
            for index in self.held_out:
                image = self.held(index).to(device)
                height, width = (side // 64 * 64 for side in image.shape[2:])
                x = image[:, :, :height, :width].float() / 255.0
                loss, bpp, mse = self._terms(model, x, torch.tensor([q], device=device))
                rows.append([float(loss), float(bpp), 10 * math.log10(255.0**2 / float(mse))])
            mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
            figures |= {f"loss{q}": mean[0], f"bpp{q}": mean[1], f"psnr{q}": mean[2]}
        losses = [value for name, value in figures.items() if name.startswith("loss")]
        return {"loss": sum(losses) / len(losses), **figures}

    def export(self, model: nn.Module) -> dict[str, Tensor]:
        """Weights, the integers that the scales are computed with, and the coder's tables."""
        assert isinstance(model, Hyperprior)
        tensors = super().export(model)
        # The linear codes reach 1,000 and must be reproduced to a fraction of a step.
        tensors |= {"linear": model.linear, "spread": model.spread}
        tensors |= {f"integer/{name}": tensor for name, tensor in freeze(model.scales).items()}
        rounded: Hyperprior = self.rounded(model, tensors)  # type: ignore[assignment]
        codec = HyperpriorCodec(rounded, tensors | {"tables": torch.from_numpy(logistic_tables())}, "", b"")
        return tensors | {"tables": torch.from_numpy(self._fit_tables(codec))}

    def _fit_tables(self, codec: HyperpriorCodec, crops: int = 600) -> np.ndarray:
        """The coder's tables, from the symbols that the codec makes of training crops at all qualities."""
        columns = 2 * REACH + 2
        counts = np.zeros(LEVELS * columns, np.int64)
        rng = np.random.default_rng(2)
        device = torch.device("cpu")
        for _ in range(crops):
            quality = int(rng.integers(1, QUALITIES + 1))
            x = self.photographs.crops(rng, 1, self.recipe.late_crop).float() / 255.0
            for tile in codec.encode(x, quality, device, torch.float32)[0]:
                for symbols, index in codec.groups(tile, quality):
                    column = np.where(np.abs(symbols.astype(np.int64)) > REACH, columns - 1, symbols + REACH)
                    counts += np.bincount(index.astype(np.int64) * columns + column, minlength=len(counts))
        return fit_tables(counts.reshape(LEVELS, columns))
