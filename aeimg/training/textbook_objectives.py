"""The objectives of the textbooks' autoencoders, each small enough to train in minutes.

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
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..entropy import LEVELS, SMALLEST, STEP, logistic_tables
from ..errors import DataError, UsageError
from ..models import convolutional, variational
from ..models.convolutional import Convolutional
from ..models.dense import Dense
from ..models.integer import QUALITIES
from ..models.variational import divergence
from ..patch_codec import block_step
from ..pixels import pad, padded
from .datasets import Digits, GreyPhotographs
from .objective import AT_LEAST, Config, Objective, Recipe

SYMBOLS = 127
"""The largest magnitude that the coder's tables hold: 8 standard deviations at the finest step."""
SAMPLE = 2000
"""So many training images stand for all of them where something is measured."""
RECIPE = Recipe(
    crop=28, batch=128, learning_rate=2e-3, late=0.0, late_crop=28, late_batch=128, warmup=50, average=0.99,
    steps=12_000,
)  # fmt: skip
"""The recipe of networks of dense layers."""
CONVOLUTIONS = replace(RECIPE, batch=16, late_batch=16, learning_rate=2e-2, muon=True, average=0.995, steps=24_000)
"""The recipe of convolutional networks. Muon takes them further in 600 steps than AdamW does in 4,000, and more steps
of small batches take them further than fewer of large ones."""


Coder = Dense | Convolutional | variational.Variational
"""A network whose codes can be coded."""
C = TypeVar("C", bound=Coder)
T = TypeVar("T", bound=Coder | convolutional.Denoising)


class Textbook(Objective[Digits | GreyPhotographs, T]):
    """Reconstruction of grey images, by binary cross-entropy."""

    recipe = RECIPE
    config: ClassVar[Config] = {}
    """The fields of the network's config that make it this kind of autoencoder, or are its default."""
    gains_from_bf16 = False  # networks this small wait for memory, not for multiplications

    @classmethod
    def source(cls, data: Path, recipe: Recipe, config: Config) -> Digits | GreyPhotographs:
        if Digits.are_in(data):
            return Digits(data, recipe.labels, at_least=AT_LEAST)
        side = config.get("side")
        return GreyPhotographs(data, min_side=side if isinstance(side, int) else recipe.crop, at_least=AT_LEAST)

    def fresh_model(self, config: Config) -> T:
        """A network for images of the dataset's size.

        Raises `UsageError` where `config` makes it another kind of autoencoder, `DataError` where digits do not have
        the size that the network takes.
        """
        for field in ("activation", "rectified_code"):
            wanted = self.config.get(field, True)
            if config.get(field, wanted) != wanted:
                raise UsageError(
                    f"a network with {field} {config[field]} is another kind of autoencoder; start from the same kind"
                )
        model = self.build({**self.config, **config})
        side, digits = _own_side(model), self._side_of_digits()
        if side is None or digits is None or side == digits:
            return model
        if "side" in config:
            raise DataError(
                f"{self.dataset.folder}: images of {digits}x{digits} pixels, but the network takes {side}x{side}"
            )
        return self.build({**self.config, **config, "side": digits})

    def fitted(self, recipe: Recipe) -> Recipe:
        """`recipe` with crops of the size that the network takes, or else of that of the digits."""
        side = _own_side(self.model) or self._side_of_digits() or recipe.crop
        return replace(recipe, crop=side, late_crop=side)

    def _side_of_digits(self) -> int | None:
        return self.dataset.side if isinstance(self.dataset, Digits) else None

    def split(self) -> list[int]:
        """Holds out a fifth of the digits; of photographs, as many as other objectives do."""
        if isinstance(self.dataset, Digits):
            return self.dataset.split()
        return super().split()

    def sample(self) -> Tensor:
        """`SAMPLE` training images `[N,1,S,S]`, float in [0,1]; always the same."""
        return self.dataset.crops(np.random.default_rng(1), SAMPLE, self.recipe.crop).float() / 255.0

    def prepare(self) -> None:
        """Makes a fresh network give back the mean image."""
        self.model.begin_at(self.sample().mean((0, 1)).clamp(1e-3, 1 - 1e-3))

    def evaluated_pixels(self) -> int:
        return self.held_out_images().numel()

    def held_out_images(self, most: int = 2000) -> Tensor:
        """At most `most` held-out images, or blocks of them, `[N,1,S,S]`, float in [0,1]."""
        if isinstance(self.dataset, Digits):
            images = self.dataset.images[self.held_out[:most]][:, None]
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
        """The loss of decoded images, per pixel."""
        return F.binary_cross_entropy_with_logits(logits.float(), x)


def _own_side(network: Coder | convolutional.Denoising) -> int | None:
    """The side of the images that a network takes, in pixels; None where it takes any."""
    return network.side if isinstance(network, Dense | variational.Variational) else None


def _multiple(network: Coder) -> int:
    """What the sides of the images that a network takes must be a multiple of, in pixels."""
    return network.multiple if isinstance(network, Convolutional) else 1


def _logits(network: Coder, x: Tensor) -> Tensor:
    """The logits of the reconstruction of `x`, which is padded on the way to a size that the network takes."""
    height, width = (padded(side, _multiple(network)) for side in x.shape[2:])
    logits = network.logits(network.encode(pad(x, height, width)))
    return logits[:, :, : x.shape[2], : x.shape[3]]


class Coding(Textbook[C]):
    """An autoencoder whose codes can be coded, so that it is a codec too."""

    task = "compress"
    primary_metric = "bce"

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        x = batch[0].float() / 255.0
        return self.reconstruction(_logits(self.model, x), x), {}

    @torch.no_grad()
    def validate(self, model: C) -> dict[str, float]:
        """Mean squared error and binary cross-entropy (in nats) of held-out images, per pixel."""
        x = self.held_out_images().to(next(model.parameters()).device)
        logits = _logits(model, x)
        back = model.pixels_of(logits)
        return {"mse": float((back - x).square().mean()), "bce": float(F.binary_cross_entropy_with_logits(logits, x))}

    @torch.no_grad()
    def export(self, model: C) -> dict[str, Tensor]:
        """The weights; the distribution of codes, for the coder; the errors of training images, for `aeimg score`."""
        tensors = super().export(model)
        network = self.rounded(model, tensors)
        x = self.sample()
        side = padded(self.recipe.crop, _multiple(network))
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


class Linear(Coding[Dense]):
    """One linear layer each way, by mean squared error: they span the principal subspace (Baldi and Hornik 1989)."""

    architecture = "dense"
    network = Dense
    config: ClassVar[Config] = {"widths": (64,), "activation": False, "rectified_code": False}
    recipe = replace(RECIPE, learning_rate=1e-3, average=0.995)
    primary_metric = "mse"

    def reconstruction(self, logits: Tensor, x: Tensor) -> Tensor:
        return 10 * (logits.float() - x).square().mean()

    def validate(self, model: Dense) -> dict[str, float]:
        """Mean squared error alone: the pixels of a linear network are no probabilities."""
        return {"mse": super().validate(model)["mse"]}


class Vanilla(Coding[Dense]):
    """One hidden layer, a rectifier and a sigmoid."""

    architecture = "dense"
    network = Dense
    config: ClassVar[Config] = {"widths": (64,)}

    @torch.no_grad()
    def validate(self, model: Dense) -> dict[str, float]:
        """Errors, and the share of code values that are not zero."""
        code = model.encode(self.held_out_images().to(next(model.parameters()).device))
        return {**super().validate(model), "active": active(code)}


class Multilayer(Coding[Dense]):
    """Three hidden layers. The code is linear, as in Hinton and Salakhutdinov (2006): if it were rectified, some of its
    values would be on for every image, or for none."""

    architecture = "dense"
    network = Dense
    config: ClassVar[Config] = {"widths": (128, 64), "rectified_code": False}


class Stacked(Multilayer):
    """Greedy training (Bengio et al. 2007): each layer alone learns to reconstruct its input, then all learn together.

    While a layer learns alone, half of its inputs are left out at random (Vincent et al. 2010). Without that the units
    of the first layer stay on for every image, as linear ones do, and training all layers together does not change it.
    """

    recipe = replace(RECIPE, steps=13_300)
    JOINT = 0.1
    """The progress, 0..1, from which all layers learn together: for as many steps as those of `Multilayer`."""
    DROPOUT = 0.5
    """The share of a layer's inputs that is left out while it learns alone."""
    comparable_from = JOINT

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        network = self.model
        depth = len(network.encoder)
        if self.progress >= self.JOINT:
            return super().loss(batch, rng, late)
        layer = min(int(self.progress / self.JOINT * depth), depth - 1)
        x = batch[0].float() / 255.0
        with torch.no_grad():
            h = x.flatten(1)
            for earlier in network.encoder[:layer]:
                h = F.relu(earlier(h))
        code = network.encoder[layer](F.dropout(h, self.DROPOUT))
        if layer < depth - 1:
            code = F.relu(code)
        back = network.decoder[depth - 1 - layer](code)
        if layer == 0:
            return F.binary_cross_entropy_with_logits(back.float(), h), {}
        return (F.relu(back) - h).square().mean(), {}


class Deep2d(Coding[Dense]):
    """A deep network whose code has two values, a map of three digits (Hinton and Salakhutdinov 2006)."""

    architecture = "dense"
    network = Dense
    config: ClassVar[Config] = {"widths": (500, 300, 2), "rectified_code": False}
    # With more steps it would overfit its few digits.
    recipe = replace(RECIPE, labels=(1, 5, 6), steps=1_200)


class Conv(Coding[Convolutional]):
    """Convolutions and pooling, for images of any size."""

    architecture = "convolutional"
    network = Convolutional
    recipe = CONVOLUTIONS


class Sparse(Vanilla):
    """An L1 penalty on the code, in which each value is multiplied with the norm of the decoder's weights for it.

    Without that factor the code would shrink and the decoder's weights grow until nothing is left of the penalty, while
    hardly a value is zero.
    """

    PENALTY = 1e-4
    """The factor of the penalty in the loss."""

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        x = batch[0].float() / 255.0
        network = self.model
        code = network.encode(x)
        scale = network.decoder[0].weight.norm(dim=0)
        penalty = self.PENALTY * (code.abs() * scale).sum(1).mean()
        return self.reconstruction(network.logits(code), x) + penalty, {"active": active(code)}


def active(code: Tensor) -> float:
    """The share of code values that are not zero: that are above a thousandth of the largest one."""
    return float((code.detach().abs() > 1e-3 * code.detach().abs().max()).float().mean())


class Denoising(Textbook[convolutional.Denoising]):
    """Gaussian noise, clipped to [0,1], is to be removed (Vincent et al. 2008)."""

    task = "denoise"
    architecture = "denoising"
    network = convolutional.Denoising
    recipe = replace(CONVOLUTIONS, steps=2_000)
    primary_metric = "psnr"
    higher_is_better = True
    NOISE = 0.5
    """The standard deviation of the noise, where pixels are in [0,1]."""

    def _noisy(self, x: Tensor, seed: int) -> Tensor:
        generator = torch.Generator(x.device).manual_seed(seed)
        return (x + self.NOISE * torch.randn(x.shape, generator=generator, device=x.device)).clamp(0, 1)

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        x = batch[0].float() / 255.0
        noisy = self._noisy(x, int(rng.integers(2**62)))
        return self.reconstruction(_logits(self.model.network, noisy), x), {}

    @torch.no_grad()
    def validate(self, model: convolutional.Denoising) -> dict[str, float]:
        """The PSNR of noisy held-out images, and of the same ones denoised, in dB."""
        x = self.held_out_images().to(next(model.parameters()).device)
        noisy = self._noisy(x, 0)
        clean = model(noisy.expand(-1, 3, -1, -1), torch.zeros(len(x), device=x.device))[:, :1]
        return {
            name: -10 * math.log10(float((y - x).square().mean())) for name, y in (("noisy", noisy), ("psnr", clean))
        }


class Variational(Coding[variational.Variational]):
    """The evidence lower bound, with its sign turned so that less is better (Kingma and Welling 2014)."""

    architecture = "variational"
    network = variational.Variational
    primary_metric = "bound"

    def _terms(self, model: variational.Variational, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy and the mean divergence from the prior, in nats an image."""
        logits, mean, log_variance = model(x)
        cost = F.binary_cross_entropy_with_logits(logits.float(), x, reduction="none").flatten(1).sum(1)
        return cost.mean(), divergence(mean, log_variance).mean()

    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        cost, distance = self._terms(self.model, batch[0].float() / 255.0)
        return (cost + distance) / 100, {"nats": float(cost.detach()), "kl": float(distance.detach())}

    @torch.no_grad()
    def validate(self, model: variational.Variational) -> dict[str, float]:
        """Errors, the bound and the divergence from the prior, in nats an image."""
        torch.manual_seed(0)
        cost, distance = self._terms(model, self.held_out_images().to(next(model.parameters()).device))
        return {**super().validate(model), "bound": float(cost + distance), "kl": float(distance)}


TEXTBOOKS: dict[str, type[Textbook[Any]]] = {
    "linear": Linear, "vanilla": Vanilla, "multilayer": Multilayer, "stacked": Stacked, "deep2d": Deep2d, "conv": Conv,
    "sparse": Sparse, "denoising": Denoising, "variational": Variational,
}  # fmt: skip
"""The names by which `aeimg train` knows them."""
