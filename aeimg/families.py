"""Every autoencoder of the textbooks: one recipe each, small enough to train in a minute.

    linear        one linear layer each way: the principal subspace
    vanilla       one hidden layer, a rectifier and a sigmoid
    multilayer    three hidden layers
    stacked       the same, its layers trained one after another, then together
    deep2d        down to two values, so that the code is a map
    conv          convolutions and pooling, for any size of image
    sparse        a code of which few values are not zero
    denoising     noisy in, clean out
    variational   a code that is a distribution

They learn from images in the idx format, or from blocks of the images in a folder, in grey. All but `denoising` are
codecs too: see `patch_codec.PatchCodec`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import Digits, GreyPhotographs
from .entropy import LEVELS, SMALLEST, STEP, logistic_tables
from .errors import DataError, UsageError
from .models.integer import QUALITIES
from .models.variational import divergence
from .objectives import AT_LEAST, Objective, Recipe
from .patch_codec import block_step
from .tiles import pad, padded
from .weights import build

SYMBOLS = 127
"""The largest magnitude that the coder's tables hold: 8 standard deviations at the finest step."""
SEEN = 2000
"""Training images that say what images are like, and what codes of them."""
RECIPE = Recipe(
    crop=28, batch=128, rate=2e-3, late=0.0, late_crop=28, late_batch=128, warmup=50, average=0.99, steps=12_000
)  # fmt: skip
CONVOLUTIONS = replace(RECIPE, batch=16, late_batch=16, rate=2e-2, muon=True, average=0.995, steps=24_000)
"""Muon takes them further in 600 steps than AdamW in 4,000, and small batches, of which there are more, further."""


class Family(Objective):
    """Reconstruction of grey images, by binary cross-entropy."""

    task = "compress"
    recipe = RECIPE
    config: ClassVar[dict[str, Any]] = {}
    main = "bce"
    mixed = False  # networks this small wait for memory, not for multiplications

    @classmethod
    def source(cls, data: Path, recipe: Recipe, config: dict[str, Any]) -> Any:
        if Digits.are_in(data):
            return Digits(data, recipe.labels, at_least=AT_LEAST)
        return GreyPhotographs(data, min_side=config.get("side", recipe.crop), at_least=AT_LEAST)

    def __init__(self, photographs: Any, config: dict[str, Any], recipe: Recipe) -> None:
        """Raises `UsageError` where `config` makes it another family, `DataError` where digits are of another size."""
        for field in ("activation", "rectified_code"):
            wanted = self.config.get(field, True)
            if config.get(field, wanted) != wanted:
                raise UsageError(f"a network with {field} {config[field]} is of another family; start from one alike")
        digits = photographs.side if isinstance(photographs, Digits) else None
        self.model = build(self.architecture, {**self.config, **config})
        sized = hasattr(self.model, "side")
        if sized and digits is not None and self.model.side != digits:
            if "side" in config:
                raise DataError(
                    f"{photographs.folder}: images of {digits}x{digits} pixels, but the network takes "
                    f"{self.model.side}x{self.model.side}"
                )
            self.model = build(self.architecture, {**self.config, **config, "side": digits})
        side: int = self.model.side if sized else digits or recipe.crop  # type: ignore[assignment]
        super().__init__(photographs, replace(recipe, crop=side, late_crop=side))

    def split(self) -> list[int]:
        """A fifth of the digits; of photographs, what other models hold out."""
        if isinstance(self.photographs, Digits):
            return self.photographs.split()
        return super().split()

    def seen(self) -> Tensor:
        """Training images `[N,1,S,S]`, float; always the same."""
        return self.photographs.crops(np.random.default_rng(1), SEEN, self.recipe.crop).float() / 255.0

    def prepare(self) -> None:
        """A fresh network begins at the mean image."""
        network: Any = self.model
        network.begin_at(self.seen().mean((0, 1)).clamp(1e-3, 1 - 1e-3))

    def judged_pixels(self) -> int:
        return self.judged().numel()

    def judged(self, most: int = 2000) -> Tensor:
        """Held-out images `[N,1,S,S]`, float."""
        if isinstance(self.photographs, Digits):
            images = self.photographs.images[self.held_out[:most]][:, None]
            return torch.from_numpy(images.copy()).float() / 255.0
        side = self.recipe.crop
        blocks = []
        for index in self.held_out:
            image = self.held(index)[0, 0]
            rows, columns = image.shape[0] // side, image.shape[1] // side
            whole = image[: rows * side, : columns * side].reshape(rows, side, columns, side)
            blocks.append(whole.permute(0, 2, 1, 3).reshape(-1, 1, side, side))
        return torch.cat(blocks)[:most].float() / 255.0

    def reconstruction(self, logits: Tensor, x: Tensor) -> Tensor:
        """What decoded images cost, per pixel."""
        return F.binary_cross_entropy_with_logits(logits.float(), x)

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        x = batch[0].float() / 255.0
        network: Any = self.model
        return self.reconstruction(self._back(network, x), x), {}

    @staticmethod
    def _back(network: Any, x: Tensor) -> Tensor:
        """The logits of what comes back of `x`, padded on the way to a size that the network takes."""
        height, width = (padded(side, getattr(network, "multiple", 1)) for side in x.shape[2:])
        logits: Tensor = network.logits(network.encode(pad(x, height, width)))
        return logits[:, :, : x.shape[2], : x.shape[3]]

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        network: Any = model
        x = self.judged().to(next(model.parameters()).device)
        logits = self._back(network, x)
        back = network.pixels_of(logits)
        return {"mse": float((back - x).square().mean()), "bce": float(F.binary_cross_entropy_with_logits(logits, x))}

    @torch.no_grad()
    def export(self, model: nn.Module) -> dict[str, Tensor]:
        """Weights; what codes look like, for the coder; and how well training images come back, for `aeimg score`."""
        tensors = super().export(model)
        network: Any = self.rounded(model, tensors)
        x = self.seen()
        side = padded(self.recipe.crop, getattr(network, "multiple", 1))
        codes = network.encode(pad(x, side, side))
        flat = codes.transpose(0, 1).flatten(1)
        sparse = bool((flat >= 0).all())
        centre = torch.zeros(len(flat)) if sparse else flat.mean(1)
        spread = (flat - centre[:, None]).square().mean(1).sqrt().clamp(min=1e-4)
        index = np.zeros((QUALITIES, len(flat)), np.uint8)
        for quality in range(1, QUALITIES + 1):
            symbols = ((flat - centre[:, None]) / (spread * block_step(quality))[:, None]).round()
            sigma = symbols.square().mean(1).sqrt().clamp(min=SMALLEST).numpy()
            index[quality - 1] = np.clip(np.rint(np.log(sigma / SMALLEST) / STEP), 1, LEVELS - 1)
        back = network.decode(codes)[:, :, : x.shape[2], : x.shape[3]]
        errors = (back - x).square().flatten(1).mean(1)
        return tensors | {
            "code/centre": centre, "code/spread": spread, "code/index": torch.from_numpy(index),
            "code/errors": torch.quantile(errors, torch.linspace(0, 1, 101)),
            "code/tables": torch.from_numpy(logistic_tables(SYMBOLS)[:, SYMBOLS:].copy()),
        }  # fmt: skip


class Linear(Family):
    """Mean squared error: what it learns spans the principal subspace (Baldi and Hornik 1989)."""

    architecture = "dense"
    config: ClassVar[dict[str, Any]] = {"widths": (64,), "activation": False, "rectified_code": False}
    recipe = replace(RECIPE, rate=1e-3, average=0.995)
    main = "mse"

    def reconstruction(self, logits: Tensor, x: Tensor) -> Tensor:
        return 10 * (logits.float() - x).square().mean()

    def validate(self, model: nn.Module) -> dict[str, float]:
        return {"mse": super().validate(model)["mse"]}  # its pixels are no probabilities


class Vanilla(Family):
    architecture = "dense"
    config: ClassVar[dict[str, Any]] = {"widths": (64,)}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Beside how well images come back, the share of the code that they use."""
        network: Any = model
        code = network.encode(self.judged().to(next(model.parameters()).device))
        return {**super().validate(model), "active": active(code)}


class Multilayer(Family):
    """Its code is linear, as in Hinton and Salakhutdinov (2006): rectified, some of it would be always on or dead."""

    architecture = "dense"
    config: ClassVar[dict[str, Any]] = {"widths": (128, 64), "rectified_code": False}


class Stacked(Multilayer):
    """Greedy, as in Bengio et al. (2007): each layer learns to give back what the one before it made; then all do.

    Half of a layer's inputs are missing at random while it learns alone (Vincent et al. 2010). Without that the first
    layer's units stay on for every image, as linear ones, which all layers together never mend.
    """

    recipe = replace(RECIPE, steps=13_300)
    JOINT = 0.1
    """From which share of the run on all layers learn together: for as long as those of `Multilayer`."""
    MISSING = 0.5
    settled = JOINT

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        network: Any = self.model
        depth = len(network.encoder)
        if self.done >= self.JOINT:
            return super().loss(batch, rng, late)
        layer = min(int(self.done / self.JOINT * depth), depth - 1)
        x = batch[0].float() / 255.0
        with torch.no_grad():
            h = x.flatten(1)
            for earlier in network.encoder[:layer]:
                h = F.relu(earlier(h))
        code = network.encoder[layer](F.dropout(h, self.MISSING))
        if layer < depth - 1:
            code = F.relu(code)
        back = network.decoder[depth - 1 - layer](code)
        if layer == 0:
            return F.binary_cross_entropy_with_logits(back.float(), h), {}
        return (F.relu(back) - h).square().mean(), {}


class Deep2d(Family):
    """Hinton and Salakhutdinov (2006), for three digits: a code of two values, which is a map."""

    architecture = "dense"
    config: ClassVar[dict[str, Any]] = {"widths": (500, 300, 2), "rectified_code": False}
    # It has learned its few digits by heart soon after.
    recipe = replace(RECIPE, labels=(1, 5, 6), steps=1_200)


class Conv(Family):
    architecture = "convolutional"
    recipe = CONVOLUTIONS


class Sparse(Vanilla):
    """An L1 penalty on the code, each value counted at the scale at which the decoder takes it.

    Counted as it is, the code would shrink and the decoder's weights grow until the penalty is nothing, with hardly a
    unit at rest.
    """

    PENALTY = 1e-4

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        x = batch[0].float() / 255.0
        network: Any = self.model
        code = network.encode(x)
        scale = network.decoder[0].weight.norm(dim=0)
        penalty = self.PENALTY * (code.abs() * scale).sum(1).mean()
        return self.reconstruction(network.logits(code), x) + penalty, {"active": active(code)}


def active(code: Tensor) -> float:
    """The share of code values that are not zero (above a thousandth of the largest)."""
    return float((code.detach().abs() > 1e-3 * code.detach().abs().max()).float().mean())


class DenoisingFamily(Family):
    """Gaussian noise of 0.5 (of 1), clipped (Vincent et al. 2008)."""

    task = "denoise"
    architecture = "denoising"
    recipe = replace(CONVOLUTIONS, steps=2_000)
    main = "psnr"
    larger = True
    NOISE = 0.5

    def _noisy(self, x: Tensor, seed: int) -> Tensor:
        generator = torch.Generator(x.device).manual_seed(seed)
        return (x + self.NOISE * torch.randn(x.shape, generator=generator, device=x.device)).clamp(0, 1)

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        x = batch[0].float() / 255.0
        network: Any = self.model
        inner = network.network
        noisy = self._noisy(x, int(rng.integers(2**62)))
        return self.reconstruction(self._back(inner, noisy), x), {}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """PSNR of noisy images, and of those with the noise taken away, in dB."""
        x = self.judged().to(next(model.parameters()).device)
        noisy = self._noisy(x, 0)
        clean = model(noisy.expand(-1, 3, -1, -1), torch.zeros(len(x), device=x.device))[:, :1]
        return {
            name: -10 * math.log10(float((y - x).square().mean())) for name, y in (("noisy", noisy), ("psnr", clean))
        }

    def export(self, model: nn.Module) -> dict[str, Tensor]:
        return Objective.export(self, model)


class VariationalFamily(Family):
    """The evidence bound, in nats an image (Kingma and Welling 2014)."""

    architecture = "variational"
    main = "bound"

    def _terms(self, model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, mean, log_variance = model(x)
        cost = F.binary_cross_entropy_with_logits(logits.float(), x, reduction="none").flatten(1).sum(1)
        return cost.mean(), divergence(mean, log_variance).mean()

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        cost, distance = self._terms(self.model, batch[0].float() / 255.0)
        return (cost + distance) / 100, {"nats": float(cost.detach()), "kl": float(distance.detach())}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        torch.manual_seed(0)
        cost, distance = self._terms(model, self.judged().to(next(model.parameters()).device))
        return {**super().validate(model), "bound": float(cost + distance), "kl": float(distance)}


FAMILIES: dict[str, type[Objective]] = {
    "linear": Linear, "vanilla": Vanilla, "multilayer": Multilayer, "stacked": Stacked, "deep2d": Deep2d, "conv": Conv,
    "sparse": Sparse, "denoising": DenoisingFamily, "variational": VariationalFamily,
}  # fmt: skip
"""What `aeimg train` knows them by."""
