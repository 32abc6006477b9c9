"""What a loaded denoiser does to a batch, and what is measured of pictures before and after:

    measure_noise   a picture -> the level of its noise, whether it is white, and what JPEG did to it
    denoise         a batch through a network, in tiles
    check           before and after -> what can be said of the result

All without a clean original.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from .errors import InputError, ModelError
from .tiles import as_float, as_pixels, mirror, padded, run_tiled

Array = np.ndarray

TILE = 1504
"""Side of the tiles of large images, before the halo, in pixels."""


class Denoiser(Protocol):
    """What a model of the task "denoise" must do; attributes marked * may be left out.

    `multiple`*    what height and width must be a multiple of (default 1)
    `halo`*        how far from a pixel the input still matters to it, in pixels; None: everywhere, so never tiled
                   (the default)
    `channels`*    3 (the default), or 1: it gets each channel as an image of its own
    `dtypes`*      the precisions it may run in, torch.float32 among them; in any other it runs in that (default: all)
    `blind`*       whether `sigma` means nothing to it (default False)
    `takes_grey`*  whether it knows grey images with grey noise, in three equal channels (default False: such noise is
                   told as sqrt(3) times its level, which is how strong colour noise of the same power would be)
    """

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor:
        """`x` `[N,channels,H,W]` float in [0,1], `sigma` `[N]` in 8-bit units -> the clean images, same shape."""
        ...


# -- what is measured ------------------------------------------------------------------------------------------------


def _peak(pixels: Array) -> float:
    return 1.0 if np.issubdtype(pixels.dtype, np.floating) else float(np.iinfo(pixels.dtype).max)


PATCHES = 20_000
"""How many patches a noise level is estimated from, at least, where a picture has so many."""


def _patches(pixels: Array) -> Array:
    """Evenly spread patches of `pixels` `[C,H,W]`, as rows, in 8-bit units; none of a picture that is too small."""
    side = 8 if pixels.shape[0] == 1 else 6
    if min(pixels.shape[1:]) < 4 * side:
        return np.zeros((0, pixels.shape[0] * side * side), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(1, 2))
    stride = max(2, int(math.sqrt(windows.shape[1] * windows.shape[2] / PATCHES)))
    patches = windows[:, ::stride, ::stride].transpose(1, 2, 0, 3, 4).reshape(-1, pixels.shape[0] * side * side)
    return patches.astype(np.float32) * np.float32(255.0 / _peak(pixels))


_controller = cache(ThreadpoolController)
_lock = threading.Lock()
_inside = 0
_limit = ExitStack()


@contextmanager
def _one_thread() -> Iterator[None]:
    """numpy's linear algebra on one thread: pictures are measured in several, whose pools would fight for the cores."""
    global _inside
    with _lock:  # the limit is the process's, so the first one in sets it and the last one out lifts it
        _inside += 1
        if _inside == 1:
            _limit.enter_context(_controller().limit(limits=1, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limit.close()


def _sigma(patches: Array, *, grey: bool) -> float:
    """See `estimate_sigma`."""
    if len(patches) < 2:
        return 0.0
    centred = patches - patches.mean(0)
    with _one_thread():
        values = np.linalg.eigvalsh((centred.T @ centred).astype(np.float64) / (len(patches) - 1))
    if grey:
        return math.sqrt(max(float(values[: len(values) // 16].mean()), 0.0))
    counts = np.arange(1, len(values) + 1)
    means = np.cumsum(values) / counts
    # In ascending order, those below the mean of the first so many are the first ones.
    below, up_to = np.searchsorted(values, means, "left"), np.searchsorted(values, means, "right")
    balanced = np.flatnonzero(counts - up_to >= below)
    return math.sqrt(max(float(means[balanced[-1]]), 0.0)) if len(balanced) else 0.0


BLOCK = 8
"""Side of the blocks in which pictures are looked at, in pixels."""
SEEN = 1 << 18
"""About how many pixels of a large picture are looked at."""


def _bands(pixels: Array) -> Array:
    """Evenly spread bands of rows of `pixels` `[C,H,W]`, all of it where it is small; float32, in 8-bit units."""
    height, width = pixels.shape[1:]
    band = 4 * BLOCK
    step = max(1, height * width // SEEN) * band
    rows = np.concatenate([np.arange(top, min(top + band, height)) for top in range(0, height, step)])
    return pixels[:, rows].astype(np.float32) * np.float32(255.0 / _peak(pixels))


def _blocks(plane: Array) -> Array:
    """A plane `[H,W]` as `[n,BLOCK*BLOCK]`, in raster order."""
    rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    whole = plane[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return whole.transpose(0, 2, 1, 3).reshape(rows * columns, BLOCK * BLOCK)


def _visible(bands: Array) -> float:
    """What varies, in grey, within the flattest tenth of the blocks that are neither black nor white."""
    blocks = _blocks(bands.mean(0))
    means = blocks.mean(1) if len(blocks) else np.zeros(0)
    middle = blocks[(means > 8) & (means < 247)]
    if len(middle) < 20:
        return 0.0
    # Of 64 samples of one normal distribution, a tenth have less than 0.884 of its standard deviation.
    return float(np.quantile(middle.std(1), 0.1) / 0.884)


LUMA = np.array([0.299, 0.587, 0.114], np.float32)
LOW = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2))
"""Vertical and horizontal frequencies whose steps are looked at."""


@cache
def _waves() -> Array:
    """Of the DCT of a block, those of `LOW`, as columns `[BLOCK*BLOCK,n]`."""
    places = (2 * np.arange(BLOCK) + 1) * np.pi / (2 * BLOCK)
    waves = np.cos(np.outer(np.arange(BLOCK), places)) * np.where(np.arange(BLOCK) == 0, 1, math.sqrt(2))[:, None]
    return np.stack([np.outer(waves[v], waves[h]).ravel() / BLOCK for v, h in LOW], 1).astype(np.float32)


def _jpeg_step(bands: Array) -> float:
    """How coarsely JPEG has quantised the picture that `bands` are of: the median step of low frequencies in luma, in
    8-bit units.

    4 is quality 85, 6 is 75, 12 is 50 of the standard tables. 0 where no steps show: never JPEG, above about quality
    90, resized since, or cropped off its grid. The levels of each frequency lie on multiples of its step (Fan and de
    Queiroz 2003).
    """
    blocks = _blocks(np.tensordot(LUMA, bands, 1) if len(bands) == 3 else bands[0])
    if len(blocks) == 0:
        return 0.0
    clipped = _blocks(((bands.min(0) <= 0) | (bands.max(0) >= 255)).astype(np.float32)).sum(1)
    blocks = blocks[clipped <= np.quantile(clipped, 0.2)]  # black and white have left their multiples
    blocks = blocks[:: -(-len(blocks) // 1024)]
    found = []
    for levels in (blocks @ _waves()).T:
        size, fits = np.abs(levels), 0
        for step in range(2, 33):
            told = levels[size > step / 2]
            if len(told) < 24:
                break
            if np.cos(2 * np.pi / step * told).mean() > 0.5:
                fits = step
        found.append(fits)
    return float(np.median(found))


def estimate_sigma(pixels: Array) -> float:
    """The standard deviation of white noise in `pixels` `[C,H,W]` (integers, or float in [0,1]), in 8-bit units.

    Chen, Zhu and Heng (ICCV 2015): patches of a natural image span few dimensions, so the smaller eigenvalues of
    their covariance are the noise alone; the largest set of them whose mean equals its median tells its level.
    In colour that is right to about 0.2 for white noise. Grey patches of a textured image span every dimension, and
    the smallest sixteenth of the eigenvalues is the better guess: within 2 at sigma 15. For noise that has been
    through JPEG or resizing both are far too low.
    """
    return _sigma(_patches(pixels), grey=pixels.shape[0] == 1)


@dataclass(frozen=True)
class Noise:
    """The noise of a picture, as far as it shows; levels in 8-bit units."""

    sigma: float
    """Its level, if it is white."""
    coarse: float
    """The same of every second pixel of every second row."""
    dark: float
    """The same of the darker half of the picture,"""
    bright: float
    """and of the brighter."""
    visible: float
    """What varies in the flattest parts, whatever its kind."""
    grey: bool = False
    step: float = 0.0
    """See `_jpeg_step`."""

    @property
    def marked(self) -> bool:
        """Whether JPEG, below quality 90 of the standard tables, has left its marks on noise of some strength.

        What white noise of sigma 10 leaves in flat parts after quality 75 is about 6; cameras leave less than 5.
        """
        return self.step >= 3 and self.visible >= 6

    def white(self, *, strictly: bool = False) -> bool:
        """Whether its level is one number that can be trusted.

        White noise is as strong from afar, where noise that a mosaic, resizing or JPEG has been through looks stronger;
        as strong in the light as in the dark, where that of a sensor grows, and clipped noise ends; and flat parts show
        no more than it explains. Too little to tell counts as not white. `strictly` for files that compression has
        changed.
        """
        even = max(self.dark, self.bright) <= 1.25 * min(self.dark, self.bright)
        explained = self.visible <= 6 + 2.5 * self.sigma
        # Of a grey picture texture is in every estimate, and more so from afar.
        lowest, ratio = (4.0, 1.1) if strictly else (1.5, 1.5 if self.grey else 1.25)
        return self.sigma >= lowest and self.coarse <= ratio * self.sigma and even and explained


def measure_noise(pixels: Array) -> Noise:
    """Of `pixels` `[C,H,W]`, integers, or float in [0,1]."""
    grey = pixels.shape[0] == 1
    patches = _patches(pixels)
    dark, bright = (
        _sigma(patches[part], grey=grey) for part in np.array_split(np.argsort(patches.mean(1), kind="stable"), 2)
    )
    coarse = estimate_sigma(pixels[:, ::2, ::2])
    bands = _bands(pixels)
    return Noise(_sigma(patches, grey=grey), coarse, dark, bright, _visible(bands), grey, _jpeg_step(bands))


def _finite(x: Tensor) -> bool:
    """Whether every value is: a sum has what is not finite in it, and takes no memory."""
    return bool(torch.isfinite(x.sum()))


# -- what is done ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def denoise(
    model: Denoiser,
    x: Tensor,
    sigma: Tensor,
    strength: float = 1.0,
    *,
    device: torch.device,
    dtype: torch.dtype,
    tile: int = TILE,
) -> Tensor:
    """Denoises a batch of one size: pixels `[N,C,H,W]` on the CPU, C 1 or 3, uint8, uint16 or float; the same back.

    `sigma` `[N]` in 8-bit units; `strength` scales what is taken away, 0 leaves everything as it is. Images larger than
    `tile` go through in tiles, where the model states its halo, and only one tile is ever on the device, or in
    memory as floats. A tile that does not come out finite is computed again in fp32. Raises `InputError` where that
    does not help, `ModelError` where the model gives something of another shape.
    """
    grey, apart = x.shape[1] == 1, getattr(model, "channels", 3) == 1
    level = (sigma * (math.sqrt(3) if grey and not (apart or getattr(model, "takes_grey", False)) else 1.0)).to(device)
    level = level.repeat_interleave(x.shape[1]) if apart else level
    dtype = dtype if dtype in getattr(model, "dtypes", (dtype,)) else torch.float32
    multiple = int(getattr(model, "multiple", 1))
    halo = getattr(model, "halo", None)

    def network(part: Tensor, precision: torch.dtype) -> Tensor:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            clean = model(part, level)
        if not isinstance(clean, Tensor) or clean.shape != part.shape:  # it might broadcast, or be cut to fit
            what = list(clean.shape) if isinstance(clean, Tensor) else f"a {type(clean).__name__}"
            raise ModelError(f"model {getattr(model, 'label', type(model).__name__)}: made {what} of "
                             f"{list(part.shape)}; it must give back a tensor of the same shape")  # fmt: skip
        return clean.float()

    def run(part: Tensor) -> Tensor:
        if device.type == "cuda":  # from pinned memory the copy does not hold up this thread
            part = part.contiguous().pin_memory()
        noisy = as_float(part.to(device, non_blocking=device.type == "cuda"))
        height, width = noisy.shape[2:]
        seen = noisy.reshape(-1, 1, height, width) if apart else noisy.expand(-1, 3, -1, -1)
        whole = mirror(seen, padded(height, multiple), padded(width, multiple))
        whole = whole.contiguous(memory_format=torch.channels_last)
        clean = network(whole, dtype)
        if dtype != torch.float32 and not _finite(clean):
            clean = network(whole, torch.float32)
        if not _finite(clean):
            raise InputError("the model's result is not finite, in fp32 neither; the picture may hold such values")
        clean = clean[:, :, :height, :width]
        if apart:
            clean = clean.reshape(noisy.shape)
        elif grey:
            clean = clean.mean(1, keepdim=True)
        return as_pixels(clean if strength == 1 else noisy + strength * (clean - noisy), x.dtype)

    side = padded(tile if halo is not None else max(x.shape[2:]), multiple)
    return run_tiled(run, x, side, padded(halo or 0, multiple))


# -- what came of it -------------------------------------------------------------------------------------------------

SHIFT, SHIFT_OF_NOISE = 0.5, 0.2
"""How far a channel's mean may move: in 8-bit units, and by how much of the noise (where noise was clipped at black or
white the mean must move back)."""
LARGEST_STRUCTURE = 0.35
"""Noise that was taken away gives -0.6 to 0.3; blurs, medians and sigmas that are far too high 0.35 to 0.9."""
NOISE_LEFT = 4.0
"""8-bit units; fine texture reads as 2 to 4."""
TAKEN = 1.5
"""8-bit units; where less was taken away than that, it does not matter what it was."""


@dataclass(frozen=True)
class Check:
    """What can be said of a denoised picture without its clean original."""

    noise_before: float
    """What varies in the flattest parts, whatever its kind, in 8-bit units."""
    noise_after: float
    shift: tuple[float, ...]
    """By how much the mean of each channel rose, in 8-bit units."""
    structure: float
    """Correlation, over blocks, of what was taken away with the detail that is left: about 0 where noise went, towards
    1 where edges and texture went with it."""

    def warnings(self, strength: float = 1.0) -> list[str]:
        """What is out of bounds for that strength, each with what to do."""
        found = []
        bound = SHIFT + SHIFT_OF_NOISE * self.noise_before
        if max(map(abs, self.shift)) > bound:
            shifts = ", ".join(f"{value:+.2f}" for value in self.shift)
            found.append(f"the mean of a channel moved by more than {bound:.1f} of 255 ({shifts})")
        if self.structure > LARGEST_STRUCTURE:
            found.append(f"detail may have gone with the noise (structure {self.structure:.2f}); try less --strength")
        if self.noise_after > max(NOISE_LEFT, (1 - 0.5 * strength) * self.noise_before):
            found.append(
                f"noise is left ({self.noise_after:.1f} of {self.noise_before:.1f}); try another --model or a --sigma"
            )
        return found


def check(before: Array, after: Array) -> Check:
    """Compares pixels `[C,H,W]` of one dtype before and after."""
    old, new = _bands(before), _bands(after)
    taken = old - new
    shift = tuple(float(-value) for value in taken.mean((1, 2)))
    residual, detail = _blocks(taken.mean(0)).std(1), _blocks(new.mean(0)).std(1)
    structure = 0.0
    if len(residual) >= 16 and residual.mean() > TAKEN and min(residual.std(), detail.std()) > 0:
        structure = float(np.corrcoef(np.log(residual + 0.5), np.log(detail + 0.5))[0, 1])
    return Check(_visible(old), _visible(new), shift, structure)
