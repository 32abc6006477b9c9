"""The objective of the codec: few bits (the rate), and decoded crops that are near to their originals (the distortion).

Each crop of a batch has a quality of its own, drawn at random, so that one network learns all of them. The weights file
gets, besides the network, its scale network in integers and the tables of the entropy coder, which are fitted to the
symbols of training crops after the last step.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..entropy import LEVELS, REACH, fit_tables, logistic_tables
from ..hyperprior_codec import HyperpriorCodec
from ..models.hyperprior import Hyperprior, distortion, lagrange_multiplier
from ..models.integer import QUALITIES, freeze
from ..registry import DEFAULTS
from .datasets import Photographs
from .degradations import turn_grey
from .objective import AT_LEAST, Config, Objective, Recipe


class CompressObjective(Objective[Photographs, Hyperprior]):
    """Rate plus distortion, at a rate drawn anew for each crop.

    The distortion is squared error, and from step `recipe.perceptual_from` on, to a share of `recipe.perceptual`, what
    an image lacks of a SSIMULACRA2 score of 100. Both are counted in bits per pixel, by `lagrange_multiplier`, and by
    `bits_per_point` for the score. Each crop's loss is divided by lambda^0.4, so that a percent of the rate counts
    about as much at low rates as at high ones.
    """

    task = "compress"
    architecture = "hyperprior"
    network = Hyperprior
    recipe = Recipe(
        crop=192, batch=8, learning_rate=1e-3, hold=0.6, late=0.25, late_crop=256, late_batch=5, muon=True, minutes=60,
        perceptual=0.6, perceptual_from=3_000, decide=True,
    )  # fmt: skip
    primary_metric = "loss"
    passes = 4

    @classmethod
    def source(cls, data: Path, recipe: Recipe, config: Config) -> Photographs:
        return Photographs(data, min_side=min(recipe.crop, recipe.late_crop), at_least=AT_LEAST)

    def prepare(self, count: int = 2000) -> None:
        """Sets the linear shortcut: principal components of the 64 blocks of each of `count` crops."""
        rng = np.random.default_rng(1)
        crops = self.dataset.crops(rng, count, 128).float()
        self.model.fit_linear(torch.nn.functional.pixel_unshuffle(crops, 16).permute(0, 2, 3, 1).reshape(-1, 768))

    def _terms(
        self, model: Hyperprior, x: Tensor, q: Tensor, *, share: float, decide: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each image, and bits per pixel, mean squared error (8-bit units) and score; `share` of the last."""
        decoded, code_bits, side_bits = model(x, q, decide=decide)
        bpp = (code_bits + side_bits) / (x.shape[2] * x.shape[3])
        lost, measured = distortion(x, decoded, q, share)
        return (lost + bpp) * (lagrange_multiplier(q) / 0.01) ** -0.4, {"bpp": bpp, **measured}

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        (crops,) = batch
        q = torch.from_numpy(rng.random(crops.shape[0]).astype(np.float32)).to(crops.device)
        x = turn_grey(crops.float() / 255.0, rng, share=0.05)
        share = self.recipe.perceptual if self.step >= self.recipe.perceptual_from else 0.0
        loss, terms = self._terms(self.model, x, q, share=share, decide=late and self.recipe.decide)
        return loss.mean(), {name: float(term.detach().mean()) for name, term in terms.items()}

    @property
    def shipped(self) -> str | None:
        return DEFAULTS[self.task]

    @torch.no_grad()
    def validate(self, model: Hyperprior) -> dict[str, float]:
        """Loss, bits per pixel, PSNR and score at four rates; and the mean of the losses."""
        device = next(model.parameters()).device
        figures: dict[str, float] = {}
        for q in (0.1, 0.35, 0.6, 0.85):
            rows = []
            for index in self.held_out:
                image = self.held(index).to(device)
                height, width = (side // 64 * 64 for side in image.shape[2:])
                x = image[:, :, :height, :width].float() / 255.0
                rate = torch.tensor([q], device=device)
                loss, terms = self._terms(model, x, rate, share=self.recipe.perceptual, decide=self.recipe.decide)
                psnr = 10 * math.log10(255.0**2 / float(terms["mse"]))
                rows.append([float(loss), float(terms["bpp"]), psnr, float(terms.get("ssimulacra2", math.nan))])
            mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
            named = zip(("loss", "bpp", "psnr", "ssimulacra2"), mean, strict=True)
            figures |= {f"{name}{q}": value for name, value in named if not math.isnan(value)}
        losses = [value for name, value in figures.items() if name.startswith("loss")]
        return {"loss": sum(losses) / len(losses), **figures}

    def export(self, model: Hyperprior) -> dict[str, Tensor]:
        """Weights, the integers that the scales are computed with, and the coder's tables."""
        tensors = super().export(model)
        # The linear codes reach 1,000 and must be reproduced to a fraction of a step.
        tensors |= {"linear": model.linear, "spread": model.spread}
        tensors |= {f"integer/{name}": tensor for name, tensor in freeze(model.scales).items()}
        codec = HyperpriorCodec(
            self.rounded(model, tensors), tensors | {"tables": torch.from_numpy(logistic_tables())}, "", b""
        )
        return tensors | {"tables": torch.from_numpy(self._fit_tables(codec))}

    def _fit_tables(self, codec: HyperpriorCodec, crops: int = 600) -> np.ndarray:
        """The coder's tables, from the symbols that the codec makes of training crops at all qualities."""
        columns = 2 * REACH + 2
        counts = np.zeros(LEVELS * columns, np.int64)
        rng = np.random.default_rng(2)
        device = torch.device("cpu")
        for _ in range(crops):
            quality = int(rng.integers(1, QUALITIES + 1))
            x = self.dataset.crops(rng, 1, self.recipe.late_crop).float() / 255.0
            for tile in codec.encode(x, quality, device, torch.float32)[0]:
                for symbols, index in codec.groups(tile, quality):
                    column = np.where(np.abs(symbols.astype(np.int64)) > REACH, columns - 1, symbols + REACH)
                    counts += np.bincount(index.astype(np.int64) * columns + column, minlength=len(counts))
        return fit_tables(counts.reshape(LEVELS, columns))
