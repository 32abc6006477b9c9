"""What is done to clean crops to make noisy ones of them.

    add_white_noise   Gaussian noise
    saved_as_jpeg     white noise, saved as JPEG
    photographed      what a camera and its software do to a picture; each of its steps stands by itself: CURVES,
                      add_sensor_noise, mosaic and demosaic, add_blotches, chroma_softened, softened, resized,
                      sharpened, through_jpeg, through_jpegs

Each takes and returns float `[N,3,H,W]` in [0,1] and draws what it leaves to chance from `rng` or `generator`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..pixels import luma


def turn_grey(x: Tensor, rng: np.random.Generator, *, share: float) -> Tensor:
    """`x` `[N,3,H,W]`, of which each image turns grey (the luma of BT.601) with probability `share`."""
    x = x.clone()
    for n in range(x.shape[0]):
        if rng.random() < share:
            x[n] = luma(x[n : n + 1])[0]
    return x


def add_white_noise(x: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """`x` `[N,C,H,W]` in [0,1] plus Gaussian noise of `sigma` `[N]` in 8-bit units. The result is not clipped."""
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return x + noise * (sigma / 255.0).view(-1, 1, 1, 1)


# -- what cameras and their software do to a picture -----------------------------------------------------------------


def to_linear(x: Tensor) -> Tensor:
    """sRGB -> linear light (IEC 61966-2-1)."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.0) + 0.055) / 1.055) ** 2.4)


def to_srgb(x: Tensor) -> Tensor:
    """Linear light -> sRGB."""
    return torch.where(x <= 0.0031308, x * 12.92, 1.055 * x.clamp(min=1e-8) ** (1 / 2.4) - 0.055)


def to_film(x: Tensor) -> Tensor:
    """Linear light -> sRGB with a converter's contrast, 3s^2 - 2s^3, as in Brooks et al. (2019)."""
    s = to_srgb(x).clamp(0, 1)
    return s * s * (3 - 2 * s)


def from_film(x: Tensor) -> Tensor:
    """The mirror of `to_film`."""
    return to_linear(0.5 - torch.sin(torch.asin((1 - 2 * x).clamp(-1, 1)) / 3))


CURVES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "srgb": (to_linear, to_srgb),
    "film": (from_film, to_film),
    "gamma": (lambda x: x.clamp(min=0) ** 2.2, lambda x: x.clamp(min=1e-8) ** (1 / 2.2)),
    "flat": (lambda x: x.clamp(min=0) ** 1.4, lambda x: x.clamp(min=1e-8) ** (1 / 1.4)),
}
"""Tone curves by name, back to linear light and from there. "flat" is that of cameras that brighten shadows little."""


def add_sensor_noise(x: Tensor, shot: Tensor, read: Tensor, generator: torch.Generator) -> Tensor:
    """`x` in linear light plus noise of variance `shot^2 * x + read^2`, both `[N]` (Foi et al. 2008). The result is not
    clipped."""
    shot, read = shot.view(-1, 1, 1, 1), read.view(-1, 1, 1, 1)
    return x + torch.randn(x.shape, generator=generator) * (shot**2 * x.clamp(min=0) + read**2).sqrt()


def colour_of(x: Tensor) -> Tensor:
    """What `x` `[N,3,H,W]` has besides its luma, which is 0 in the result `[N,3,H,W]`."""
    return x - luma(x)


def add_blotches(x: Tensor, level: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """`x` plus blotches of colour, about `size` pixels wide, without luma: what remains of strong noise after a camera
    has smoothed colours. Their standard deviation is `level` `[N]` in 8-bit units."""
    count, channels, height, width = x.shape
    coarse = torch.randn(count, channels, -(-height // size) + 2, -(-width // size) + 2, generator=generator)
    grown = F.interpolate(coarse, scale_factor=float(size), mode="bicubic", align_corners=False)
    blotches = colour_of(grown[:, :, size : size + height, size : size + width])
    spread = blotches.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)
    return x + blotches / spread * (level / 255.0).view(-1, 1, 1, 1)


Position = tuple[int, int]
"""Row and column, 0 or 1, of the red pixel in each 2x2 of a Bayer mosaic; blue lies across from it."""


def mosaic(x: Tensor, red: Position) -> Tensor:
    """What a Bayer sensor sees of `x` `[N,3,H,W]`: one colour at each pixel, `[N,1,H,W]`."""
    row, column = red
    seen = x[:, 1:2].clone()
    seen[:, 0, row::2, column::2] = x[:, 0, row::2, column::2]
    seen[:, 0, 1 - row :: 2, 1 - column :: 2] = x[:, 2, 1 - row :: 2, 1 - column :: 2]
    return seen


_ACROSS = [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]
_MALVAR = [
    [[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]],
    _ACROSS,
    [list(row) for row in zip(*_ACROSS, strict=True)],
    [[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]],
]
"""Filters, times 8: for green at red and blue; for a colour between two of its own in a row, a column, diagonally."""


def demosaic(seen: Tensor, red: Position) -> Tensor:
    """Undoes `mosaic`, `[N,1,H,W]` -> `[N,3,H,W]`, by the linear filters of Malvar, He and Cutler (2004)."""
    filters = torch.tensor(_MALVAR, dtype=seen.dtype, device=seen.device)[:, None] / 8
    green, across, down, diagonal = F.conv2d(F.pad(seen, (2, 2, 2, 2), mode="reflect"), filters).unbind(1)
    result = seen.repeat(1, 3, 1, 1)
    row, column = red
    for channel, (r, c) in ((0, (row, column)), (2, (1 - row, 1 - column))):
        result[:, channel, r::2, 1 - c :: 2] = across[:, r::2, 1 - c :: 2]
        result[:, channel, 1 - r :: 2, c::2] = down[:, 1 - r :: 2, c::2]
        result[:, channel, 1 - r :: 2, 1 - c :: 2] = diagonal[:, 1 - r :: 2, 1 - c :: 2]
        result[:, 1, r::2, c::2] = green[:, r::2, c::2]
    return result


def resized(x: Tensor, side: int, kind: str) -> Tensor:
    """Square images scaled to `side` pixels by `kind`, "bilinear" or "bicubic", antialiased where they shrink."""
    return F.interpolate(x, size=(side, side), mode=kind, antialias=True, align_corners=False)


def softened(x: Tensor, sigma: Tensor) -> Tensor:
    """`x` `[N,C,H,W]` blurred by Gaussians of `sigma` `[N]` pixels, at most 2, as lenses blur."""
    count, channels = x.shape[:2]
    at = torch.arange(-6, 7, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (at / sigma.view(-1, 1).clamp(min=1e-3)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None, :, None]
    planes = F.pad(x.reshape(1, count * channels, *x.shape[2:]), (6, 6, 6, 6), mode="reflect")
    planes = F.conv2d(F.conv2d(planes, kernel, groups=planes.shape[1]), kernel.mT, groups=planes.shape[1])
    return planes.reshape(x.shape)


def chroma_softened(x: Tensor, sigma: Tensor) -> Tensor:
    """`x` `[N,3,H,W]` whose colours, but not its luma, are blurred by Gaussians of `sigma` `[N]` pixels, at most 2, as
    cameras smooth them against noise."""
    colour = colour_of(x)
    return x - colour + softened(colour, sigma)


def sharpened(x: Tensor, amount: Tensor, radius: Tensor) -> Tensor:
    """Unsharp masking: adds `amount` `[N]` times what a Gaussian blur of `radius` `[N]` pixels, at most 2, removes. A
    large radius draws halos along edges."""
    return x + amount.view(-1, 1, 1, 1) * (x - softened(x, radius))


def through_jpeg(x: Tensor, quality: list[int | None], subsampling: list[int]) -> Tensor:
    """Each image saved as a JPEG of its own `quality` and read again; None leaves it as it is.

    `subsampling` is 0 for 4:4:4, 1 for 4:2:2, 2 for 4:2:0.
    """
    pixels = (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    result = x.clone()
    for n, (level, ratio) in enumerate(zip(quality, subsampling, strict=True)):
        if level is not None:
            buffer = io.BytesIO()
            Image.fromarray(pixels[n]).save(buffer, "JPEG", quality=level, subsampling=ratio)
            result[n] = torch.from_numpy(np.asarray(Image.open(buffer)).copy()).permute(2, 0, 1) / 255.0
    return result


def through_jpegs(x: Tensor, rng: np.random.Generator, untouched: np.ndarray) -> Tensor:
    """`x` saved as JPEG one to three times, most of it once; those of `untouched` `[N]`, bool, are left as they are.

    Between two generations the grid of blocks is shifted in half of the batches, as cropping does.
    """
    count, times = x.shape[0], int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))
    for generation in range(times):
        down, right = rng.integers(0, 8, 2).tolist() if generation and rng.random() < 0.5 else (0, 0)
        quality = [None if untouched[n] else int(30 + 66 * rng.random() ** 0.6) for n in range(count)]
        subsampling = [int(rng.choice([0, 1, 2], p=[0.3, 0.1, 0.6])) for _ in range(count)]
        x = through_jpeg(x.roll((down, right), (2, 3)), quality, subsampling).roll((-down, -right), (2, 3))
    return x


def _processed(x: Tensor, noisy: Tensor, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a camera does to clean and noisy crops before it saves them. Its noise becomes correlated over pixels, and
    stronger in broad patches of colour than in luma; what blurs edges is done to both."""
    count = x.shape[0]

    def draw(low: float, high: float, share: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, count) * (rng.random(count) < share)).to(x.dtype)

    fine, colours = draw(0.5, 1.3, 0.65), draw(1.0, 2.0, 0.7)
    x, noisy = (chroma_softened(softened(one, fine), colours) for one in (x, noisy))
    return x, add_blotches(noisy, draw(0.0, 8.0, 0.6) * float(rng.random()), int(rng.integers(3, 11)), generator)


def _camera(x: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """`x` as a sensor and a raw converter would give it: a tone curve and white balance are undone, noise is added,
    most batches go through a mosaic, and white balance and tone curve are applied again.

    The ranges of the noise are those of CBDNet (Guo et al. 2019), with low levels drawn more often; the white balance
    follows Brooks et al. (2019).
    """
    count = x.shape[0]

    def draw(low: float, high: float, power: float = 1.0) -> Tensor:
        return torch.from_numpy(low + (high - low) * rng.random(count) ** power).float()

    to_raw, from_raw = CURVES[str(rng.choice(list(CURVES), p=[0.25, 0.55, 0.1, 0.1]))]
    exponent = draw(0.8, 1.25).view(-1, 1, 1, 1)
    gains = torch.stack([draw(1.0, 2.4), torch.ones(count), draw(1.0, 2.4)], 1)[:, :, None, None]
    raw = to_raw(x).clamp(min=1e-6) ** exponent / gains
    raw = add_sensor_noise(raw, draw(0, 0.16, 2.5), draw(0, 0.06, 2.5), generator)
    if rng.random() < 0.7:
        red = (int(rng.integers(2)), int(rng.integers(2)))
        raw = demosaic(mosaic(raw, red), red)
    return from_raw((raw * gains).clamp(1e-6, 1) ** (1 / exponent))


def saved_as_jpeg(x: Tensor, rng: np.random.Generator, *, clean: float = 0.1) -> Tensor:
    """Crops `[N,3,S,S]` with white noise of sigma 0 to 40, a share `clean` without it, saved as JPEG and read again.

    A third of them have quality 75, which is the default of most software, the others 50 to 92.
    """
    count = x.shape[0]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    sigma = rng.uniform(0, 40, count) * (rng.random(count) >= clean)
    quality: list[int | None] = [75 if rng.random() < 1 / 3 else int(rng.integers(50, 93)) for _ in range(count)]
    subsampling = [int(rng.choice([0, 1, 2], p=[0.15, 0.05, 0.8])) for _ in range(count)]
    return through_jpeg(add_white_noise(x, torch.from_numpy(sigma).float(), generator), quality, subsampling)


def photographed(
    x: Tensor, rng: np.random.Generator, *, side: int, clean: float = 0.05, white: float = 0.15
) -> tuple[Tensor, Tensor]:
    """Clean crops and what a camera and its software might have made of them, `[N,3,side,side]` both.

    First, six crops in ten are blurred, as by a lens: pictures that were scaled down are sharper than those of cameras,
    and a network that learns from them alone mistakes fine noise for detail. Then they get sensor noise in linear light
    before the mosaic, and what the camera does against it, or, in a share `white` of the batches, white noise. Then
    they are resized, sharpened and saved as JPEG, some of them several times, in random order, as in Real-ESRGAN and
    BSRGAN; JPEG is mostly last, as in most files. Whatever shifts, blurs or
    sharpens edges is done to the clean crop, too, so that the two differ by noise and compression alone. A share
    `clean` of the crops gets no noise, so that the network learns to leave clean pictures as they are. Crops may have
    any even side; they are resized to `side` on the way.
    """
    count = x.shape[0]
    soft = torch.from_numpy(rng.uniform(0.4, 2.0, count) * (rng.random(count) < 0.6)).to(x.dtype)
    x = softened(x, soft)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    untouched = rng.random(count) < clean
    if rng.random() < white:
        sigma = torch.from_numpy(rng.uniform(0, 50, count)).float()
        noisy = add_white_noise(x, sigma, generator)
        # A file holds no values outside [0,1]; arrays may.
        noisy = noisy.clamp(0, 1) if rng.random() < 0.7 else noisy
    else:
        x, noisy = _processed(x, _camera(x, rng, generator), rng, generator)
    noisy[torch.from_numpy(untouched)] = x[torch.from_numpy(untouched)]

    def jpeg() -> None:
        nonlocal noisy
        noisy = through_jpegs(noisy, rng, untouched | (rng.random(count) < 0.35))

    def resize() -> None:
        nonlocal x, noisy
        if x.shape[2] != side:
            kind = "bicubic" if rng.random() < 0.6 else "bilinear"
            x, noisy = resized(x, side, kind), resized(noisy, side, kind)

    def sharpen() -> None:
        nonlocal x, noisy
        if rng.random() < 0.3:
            amount, radius = (
                torch.from_numpy(rng.uniform(low, high, count)).float() for low, high in ((0.0, 1.0), (0.6, 2.0))
            )
            x, noisy = sharpened(x, amount, radius).clamp(0, 1), sharpened(noisy, amount, radius)

    order = [resize, sharpen, jpeg]
    rng.shuffle(order)
    if rng.random() < 0.6:
        order.sort(key=lambda step: step is jpeg)
    for step in order:
        step()
    return x, noisy


def source_side(side: int, rng: np.random.Generator) -> int:
    """The side of crops to draw for `photographed`, which resizes them to `side`: even, from half of it to twice as
    much; two in five have that side already."""
    if rng.random() < 0.4:
        return side
    return 2 * round(side * math.exp2(rng.uniform(-1, 1)) / 2)
