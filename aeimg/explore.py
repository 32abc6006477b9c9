"""What an encoder is good for besides files: vectors, scores of strangeness, pictures from codes.

Features, Score     tasks like those of `tasks`: picture -> vector, picture -> `Strangeness`
plane               vectors -> two coordinates each
sample, walk, between, combine      pictures from codes that no picture had
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, ModelError
from .tasks import Item, Options, PictureVerb, open_source, stacked
from .tiles import as_float

Array = np.ndarray


class Features(PictureVerb):
    """Picture -> what the model's encoder says of it, as one vector: float32 `[D]`. Raises `ModelError`."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype, options: Options) -> None:
        super().__init__(model, device, dtype, options)
        if not hasattr(model, "features"):
            raise ModelError(f"model {getattr(model, 'label', model)} gives no features")

    def run(self, items: list[Item]) -> list[Array]:
        return list(self.model.features(stacked(items, 1), self.device, self.dtype).float().numpy())

    def write(self, item: Item, result: Array) -> Array:
        return result


@dataclass(frozen=True)
class Strangeness:
    """How badly a picture comes back from a model that learned to bring back others."""

    score: float
    """Mean squared error, pixels in [0,1]."""
    percentile: float | None
    """How many percent of the training images came back no worse; None where the model does not know."""
    strange: bool | None
    """Whether `score` is above the threshold; None where there is none."""
    error: Array
    """Squared error of each pixel, mean of its channels: float32 `[H,W]`."""


class Score(PictureVerb):
    """Picture -> `Strangeness`. A codec that does not reconstruct without rounding codes at `quality`."""

    def run(self, items: list[Item]) -> list[Array]:
        x = stacked(items, 1)
        if hasattr(self.model, "reconstruct"):
            back = self.model.reconstruct(x, self.device, self.dtype)
        else:
            latents = self.model.encode(x, self.options.quality, self.device, self.dtype, 1)
            shape = (x.shape[1], x.shape[2], x.shape[3])
            back = as_float(self.model.decode(latents, shape, self.options.quality, self.device, self.dtype, 16))
        return list((back - as_float(x).clamp(0, 1)).square().mean(1).numpy())

    def write(self, item: Item, result: Array) -> Strangeness:
        score = float(result.mean(dtype=np.float64))
        known = getattr(self.model, "errors", None)
        if known is None:
            return Strangeness(score, None, None, result)
        percentile = float(np.interp(score, known, np.linspace(0, 100, len(known))))
        threshold = float(np.interp(self.options.percentile, np.linspace(0, 100, len(known)), known))
        return Strangeness(score, percentile, score > threshold, result)


# -- the plane --------------------------------------------------------------------------------------------------------


def plane(features: Array) -> tuple[Array, tuple[str, str]]:
    """Vectors `[N,D]` as points `[N,2]`, and what the axes are: two values as they are, more by principal components.

    Raises `InputError` for fewer than two vectors or a single value each.
    """
    if len(features) < 2:
        raise InputError(f"a map takes two images at least, not {len(features)}")
    if features.shape[1] < 2:
        raise InputError("a map takes codes of two values at least, and this model's have one")
    if features.shape[1] == 2:
        return features, ("first code value", "second code value")
    centred = features.astype(np.float64) - features.mean(0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    share = 100 * values[:2] ** 2 / max(float((values**2).sum()), 1e-300)
    labels = (f"first principal component ({share[0]:.0f}%)", f"second principal component ({share[1]:.0f}%)")
    return centred @ axes[:2].T, labels


# -- pictures from codes ----------------------------------------------------------------------------------------------


def _decoder(model: Any) -> Any:
    if not hasattr(model, "synthesise"):
        raise ModelError(f"model {getattr(model, 'label', model)}: its codes are not for drawing or mixing; "
                         "use one of the small autoencoders (`--model variational`, for one)")  # fmt: skip
    return model


def _pictures(model: Any, codes: Tensor, shape: tuple[int, int, int], device: torch.device) -> list[Array]:
    return list(model.synthesise(codes, shape, device, torch.uint8).numpy())


def sample(model: Any, count: int, device: torch.device, *, seed: int = 0, side: int = 64) -> list[Array]:
    """`count` pictures of random codes: uint8 `[1,S,S]`, S the model's own size, or `side` where it takes any.

    Codes of a variational model come from its prior; those of others are drawn value by value as their training
    images spread, which says more of the model than of pictures. Raises `ModelError`.
    """
    decoder = _decoder(model)
    side = getattr(decoder.network, "side", side)
    codes = decoder.draw(count, side, torch.Generator().manual_seed(seed))
    return _pictures(decoder, codes, (1, side, side), device)


def walk(model: Any, steps: int, device: torch.device) -> Array:
    """The plane of a model whose codes have two values, as one picture of `steps` by `steps` decoded codes: uint8
    `[1,H,W]`. Codes lie at even quantiles, 1% to 99%, of the distribution that `sample` draws from."""
    decoder = _decoder(model)
    side = getattr(decoder.network, "side", 0)
    if not side or tuple(decoder.network.code_shape(side)) != (2,):
        raise ModelError(f"model {model.label}: only codes of two values make a plane")
    line = torch.tensor([NormalDist().inv_cdf(0.01 + 0.98 * n / max(steps - 1, 1)) for n in range(steps)])
    y, x = torch.meshgrid(line.flip(0), line, indexing="ij")
    codes = torch.stack([x, y], -1).reshape(-1, 1, 2)
    tiles = np.stack(_pictures(decoder, decoder.from_normal(codes), (1, side, side), device)).reshape(
        steps, steps, side, side
    )
    return tiles.transpose(0, 2, 1, 3).reshape(1, steps * side, steps * side)


def _analysed(model: Any, sources: Sequence[Any], device: torch.device) -> tuple[list[Tensor], tuple[int, int, int]]:
    pictures = [open_source(source).picture for source in sources]
    shapes = {picture.pixels.shape for picture in pictures}
    if len(shapes) > 1:
        sizes = " and ".join(sorted(f"{p.width}x{p.height} in {p.pixels.shape[0]} channels" for p in pictures))
        raise InputError(f"pictures whose codes are mixed must be of one size and kind, not {sizes}")
    decoder = _decoder(model)
    codes = [decoder.analyse(torch.from_numpy(np.ascontiguousarray(p.pixels))[None], device) for p in pictures]
    return codes, pictures[0].pixels.shape


def between(model: Any, a: Any, b: Any, steps: int, device: torch.device) -> list[Array]:
    """`steps` pictures, uint8 `[C,H,W]`, on the straight line from the code of `a` to that of `b`, both included.

    `a`, `b`: pictures of one size, as `process` takes them. Raises `InputError`, `ModelError`.
    """
    (first, last), shape = _analysed(model, (a, b), device)
    shares = torch.linspace(0, 1, steps).view(-1, *[1] * (first.dim() - 1))
    return _pictures(model, torch.lerp(first, last, shares), shape, device)


def combine(model: Any, a: Any, b: Any, c: Any, device: torch.device) -> Array:
    """The picture, uint8 `[C,H,W]`, of the code of `a` minus that of `b` plus that of `c`.

    It makes sense where directions among codes mean something: of variational models, and of dense ones on aligned
    pictures. Raises `InputError`, `ModelError`.
    """
    (first, minus, plus), shape = _analysed(model, (a, b, c), device)
    return _pictures(model, first - minus + plus, shape, device)[0]
