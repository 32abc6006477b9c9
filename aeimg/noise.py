"""How much noise a picture holds and of what kind, and what denoising did to it. No clean original is needed.

measure_noise    pixels -> `Noise`: its level, whether it is white, and what JPEG did to it
estimate_sigma   pixels -> the level alone
check            pixels before and after -> `Check`: the noise that is left, shifts, detail that went with it
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

from .pixels import peak

Array = np.ndarray

# -- what is measured ------------------------------------------------------------------------------------------------


PATCHES = 20_000
"""The least number of patches from which a noise level is estimated, where a picture has so many."""


def _patches(pixels: Array) -> Array:
    """Returns evenly spread patches of `pixels` `[C,H,W]`, as rows, in 8-bit units; none of a picture that is too
    small."""
    side = 8 if pixels.shape[0] == 1 else 6
    if min(pixels.shape[1:]) < 4 * side:
        return np.zeros((0, pixels.shape[0] * side * side), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(1, 2))
    stride = max(2, int(math.sqrt(windows.shape[1] * windows.shape[2] / PATCHES)))
    patches = windows[:, ::stride, ::stride].transpose(1, 2, 0, 3, 4).reshape(-1, pixels.shape[0] * side * side)
    return patches.astype(np.float32) * np.float32(255.0 / peak(pixels.dtype))


_controller = cache(ThreadpoolController)
_lock = threading.Lock()
_inside = 0
_limit = ExitStack()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps numpy's linear algebra on one thread: pictures are measured in several threads, whose pools would fight for
    the cores."""
    global _inside
    with _lock:  # the limit holds for the whole process: the first one in sets it and the last one out lifts it
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
    """Returns the level of white noise in patches; see `estimate_sigma`."""
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
"""The side of the blocks into which pictures are cut for measuring, in pixels."""
SEEN = 1 << 18
"""About how many pixels of a large picture are measured."""


def _bands(pixels: Array) -> Array:
    """Returns evenly spread bands of rows of `pixels` `[C,H,W]`, or all rows of a small picture; float32, in 8-bit
    units."""
    height, width = pixels.shape[1:]
    band = 4 * BLOCK
    step = max(1, height * width // SEEN) * band
    rows = np.concatenate([np.arange(top, min(top + band, height)) for top in range(0, height, step)])
    return pixels[:, rows].astype(np.float32) * np.float32(255.0 / peak(pixels.dtype))


def _blocks(plane: Array) -> Array:
    """Returns the blocks of a plane `[H,W]` as `[n,BLOCK*BLOCK]`, in raster order."""
    rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    whole = plane[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return whole.transpose(0, 2, 1, 3).reshape(rows * columns, BLOCK * BLOCK)


def _visible(bands: Array) -> float:
    """Returns the standard deviation, in grey, within the flattest tenth of the blocks that are neither black nor
    white."""
    blocks = _blocks(bands.mean(0))
    means = blocks.mean(1) if len(blocks) else np.zeros(0)
    middle = blocks[(means > 8) & (means < 247)]
    if len(middle) < 20:
        return 0.0
    # Of 64 samples of one normal distribution, a tenth have less than 0.884 of its standard deviation.
    return float(np.quantile(middle.std(1), 0.1) / 0.884)


LUMA = np.array([0.299, 0.587, 0.114], np.float32)
LOW = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2))
"""The vertical and horizontal frequencies whose quantiser steps are measured."""


@cache
def _waves() -> Array:
    """Returns the basis functions of the DCT of a block for the frequencies `LOW`, as columns `[BLOCK*BLOCK,n]`."""
    places = (2 * np.arange(BLOCK) + 1) * np.pi / (2 * BLOCK)
    waves = np.cos(np.outer(np.arange(BLOCK), places)) * np.where(np.arange(BLOCK) == 0, 1, math.sqrt(2))[:, None]
    return np.stack([np.outer(waves[v], waves[h]).ravel() / BLOCK for v, h in LOW], 1).astype(np.float32)


def _jpeg_step(bands: Array) -> float:
    """Returns how coarsely JPEG has quantised the picture: the median step of low frequencies in luma, 8-bit units.

    With the standard tables, 4 is quality 85, 6 is 75, 12 is 50. The result is 0 where no steps show: the picture was
    never a JPEG, or one of a quality above about 90, or was resized since, or cropped off the grid of blocks. The
    levels of each frequency lie on multiples of its step (Fan and de Queiroz 2003).
    """
    blocks = _blocks(np.tensordot(LUMA, bands, 1) if len(bands) == 3 else bands[0])
    if len(blocks) == 0:
        return 0.0
    clipped = _blocks(((bands.min(0) <= 0) | (bands.max(0) >= 255)).astype(np.float32)).sum(1)
    blocks = blocks[clipped <= np.quantile(clipped, 0.2)]  # clipped levels are no multiples
    blocks = blocks[:: -(-len(blocks) // 1024)]
    found = []
    for levels in (blocks @ _waves()).T:
        size, fits = np.abs(levels), 0
        for step in range(2, 33):
            outside = levels[size > step / 2]
            if len(outside) < 24:
                break
            if np.cos(2 * np.pi / step * outside).mean() > 0.5:
                fits = step
        found.append(fits)
    return float(np.median(found))


SQUARE, CELL = 4, 8
"""The side of the squares that are looked for again, in pixels; that of the cells that are counted, in squares."""
REPEATED = 0.1
"""Where this share of the squares occurs again, the picture holds no noise. Of noise none do, even of sigma 2."""
REPEATED_IN_JPEG = 0.9
"""The same where JPEG has left its marks: it makes flat squares of smooth parts, noise may be left elsewhere."""


def _repeated(bands: Array) -> float:
    """Returns which share of the squares of `bands` `[C,H,W]` occurs again, exactly, 0..1: what is drawn repeats itself
    (flat colours, patterns, letters), and noise never does.

    It is the lower quartile over cells of 32x32 pixels, so that neither a flat frame around a noisy picture nor a
    photograph in a screenshot decides. Squares that are black or white throughout do not count: a clipped sky is flat,
    too. The result is 1 where nothing else is there, and 0 for pictures that hold no whole cell.
    """
    channels, side = len(bands), SQUARE * CELL
    rows, columns = bands.shape[1] // side * CELL, bands.shape[2] // side * CELL
    if rows == 0 or columns == 0:
        return 0.0
    whole = bands[:, : rows * SQUARE, : columns * SQUARE].reshape(channels, rows, SQUARE, columns, SQUARE)
    squares = np.ascontiguousarray(whole.transpose(1, 3, 0, 2, 4)).reshape(rows * columns, -1)
    by_channel = squares.reshape(len(squares), channels, -1)
    flat = (by_channel == by_channel[:, :, :1]).all((1, 2))
    counted = ~(flat & ((squares <= 0) | (squares >= 255)).all(1))
    if not counted.any():
        return 1.0
    keys = squares.view(np.dtype((np.void, squares.shape[1] * squares.itemsize))).ravel()
    _, inverse, times = np.unique(keys, return_inverse=True, return_counts=True)
    again = (times[inverse.ravel()] > 1) & counted

    def in_cells(of: Array) -> Array:
        return of.reshape(rows // CELL, CELL, columns // CELL, CELL).sum((1, 3))

    total = in_cells(counted)
    enough = total >= min(CELL, int(total.max()))  # of a cell that is nearly all white, a few squares say little
    return float(np.quantile(in_cells(again)[enough] / total[enough], 0.25))


def estimate_sigma(pixels: Array) -> float:
    """Returns the standard deviation of white noise, in 8-bit units, in `pixels` `[C,H,W]`: integers or float in [0,1].

    Chen, Zhu and Heng (ICCV 2015): patches of a natural image span few dimensions, so the smaller eigenvalues of
    their covariance are the noise alone; the largest set of them whose mean equals its median gives its level.
    In colour the estimate of white noise is right to about 0.2. Grey patches of a textured image span every dimension,
    and the smallest sixteenth of the eigenvalues is the better guess: within 2 at sigma 15. Both are far too low for
    noise that has been through JPEG or resizing.
    """
    return _sigma(_patches(pixels), grey=pixels.shape[0] == 1)


@dataclass(frozen=True)
class Noise:
    """The measured noise of a picture; levels are in 8-bit units."""

    sigma: float
    """Its level, if it is white noise."""
    coarse: float
    """The level in every second pixel of every second row."""
    dark: float
    """The level in the darker half of the picture."""
    bright: float
    """The level in the brighter half."""
    visible: float
    """The standard deviation in the flattest parts, of noise of whatever kind."""
    grey: bool = False
    """Whether the picture is grey."""
    step: float = 0.0
    """See `_jpeg_step`."""
    repeated: float = 0.0
    """See `_repeated`."""

    @property
    def nothing(self) -> bool:
        """Whether the picture holds no noise at all, as drawings, icons and screenshots do that were saved losslessly.

        That a photograph is clean is never certain; that squares of it occur again, to the bit, is.
        """
        return self.repeated >= (REPEATED_IN_JPEG if self.step >= 3 else REPEATED)

    @property
    def marked(self) -> bool:
        """Whether JPEG below quality 90 of the standard tables has left its marks on strong noise.

        White noise of sigma 10 leaves about 6 in flat parts after quality 75; cameras leave less than 5.
        """
        return self.step >= 3 and self.visible >= 6

    def white(self, *, strictly: bool = False) -> bool:
        """Returns whether the noise is white, so that its level is one number that can be trusted.

        White noise is as strong in a subsampled picture, where noise that went through a mosaic, resizing or JPEG is
        stronger. It is as strong in bright parts as in dark ones, where the noise of a sensor differs, and so does
        clipped noise. And flat parts vary by no more than it explains. Noise that is too weak to measure does not count
        as white. `strictly` is for files that lossy compression has changed.
        """
        even = max(self.dark, self.bright) <= 1.25 * min(self.dark, self.bright)
        explained = self.visible <= 6 + 2.5 * self.sigma
        # In a grey picture every estimate includes texture, and includes more of it after subsampling.
        lowest, ratio = (4.0, 1.1) if strictly else (1.5, 1.5 if self.grey else 1.25)
        return self.sigma >= lowest and self.coarse <= ratio * self.sigma and even and explained


def measure_noise(pixels: Array) -> Noise:
    """Measures the noise in `pixels` `[C,H,W]`: integers, or float in [0,1]."""
    grey = pixels.shape[0] == 1
    patches = _patches(pixels)
    dark, bright = (
        _sigma(patches[part], grey=grey) for part in np.array_split(np.argsort(patches.mean(1), kind="stable"), 2)
    )
    coarse = estimate_sigma(pixels[:, ::2, ::2])
    bands = _bands(pixels)
    return Noise(
        _sigma(patches, grey=grey), coarse, dark, bright, _visible(bands), grey, _jpeg_step(bands), _repeated(bands)
    )


# -- what came of it -------------------------------------------------------------------------------------------------

SHIFT, SHIFT_OF_NOISE = 0.5, 0.2
"""How far the mean of a channel may shift: so many 8-bit units, and such a share of the noise. Where noise was clipped
at black or white, the mean has to shift back."""
LARGEST_STRUCTURE = 0.35
"""The largest `structure` that is not reported. Removed noise gives -0.6 to 0.3; blurs, medians and sigmas that are far
too high give 0.35 to 0.9."""
NOISE_LEFT = 4.0
"""The largest noise after denoising that is never reported, in 8-bit units: fine texture measures as 2 to 4."""
TAKEN = 1.5
"""Where less was removed than this, in 8-bit units, its structure does not matter."""


@dataclass(frozen=True)
class Check:
    """What can be said of a denoised picture without its clean original."""

    noise_before: float
    """The standard deviation in the flattest parts, of noise of whatever kind, in 8-bit units."""
    noise_after: float
    """The same after denoising."""
    shift: tuple[float, ...]
    """By how much the mean of each channel rose, in 8-bit units."""
    structure: float
    """The correlation, over blocks, of what was removed with the detail that is left: about 0 where only noise was
    removed, towards 1 where edges and texture went with it."""

    def warnings(self, strength: float = 1.0) -> list[str]:
        """Returns a sentence for each figure that is out of bounds for that strength, with what to do."""
        found = []
        bound = SHIFT + SHIFT_OF_NOISE * self.noise_before
        if max(map(abs, self.shift)) > bound:
            shifts = ", ".join(f"{value:+.2f}" for value in self.shift)
            found.append(f"the mean of a channel shifted by more than {bound:.1f} of 255 ({shifts})")
        if self.structure > LARGEST_STRUCTURE:
            found.append(
                f"detail may have been removed with the noise (structure {self.structure:.2f}); try a lower --strength"
            )
        if self.noise_after > max(NOISE_LEFT, (1 - 0.5 * strength) * self.noise_before):
            found.append(
                f"noise is left ({self.noise_after:.1f} of {self.noise_before:.1f}); try another --model or a --sigma"
            )
        return found


def check(before: Array, after: Array) -> Check:
    """Compares pixels `[C,H,W]` of one dtype before and after denoising."""
    old, new = _bands(before), _bands(after)
    taken = old - new
    shift = tuple(float(-value) for value in taken.mean((1, 2)))
    residual, detail = _blocks(taken.mean(0)).std(1), _blocks(new.mean(0)).std(1)
    structure = 0.0
    if len(residual) >= 16 and residual.mean() > TAKEN and min(residual.std(), detail.std()) > 0:
        structure = float(np.corrcoef(np.log(residual + 0.5), np.log(detail + 0.5))[0, 1])
    return Check(_visible(old), _visible(new), shift, structure)
