"""How much noise a picture holds and of what kind, and what denoising did to it. No clean original is needed.

measure_noise    pixels -> `Noise`: its level, whether it is white, and what JPEG did to it
estimate_sigma   pixels -> the level alone
check            pixels before and after -> `Check`: the noise that is left, shifts, detail that went with it

The first two take tensors as well, and measure them on the device where they are: what comes to the CPU is statistics.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from .pixels import LUMA, luma, peak

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
        return _level((centred.T @ centred).astype(np.float64) / (len(patches) - 1), grey=grey)


def _level(covariance: Array, *, grey: bool) -> float:
    """Returns the level of white noise in patches of that covariance; see `estimate_sigma`."""
    values = np.linalg.eigvalsh(covariance)
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


def cut_blocks(plane: Array) -> Array:
    """Returns the blocks of a plane `[H,W]` as `[n,BLOCK*BLOCK]`, in raster order."""
    rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    whole = plane[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return whole.transpose(0, 2, 1, 3).reshape(rows * columns, BLOCK * BLOCK)


def _visible(bands: Array) -> float:
    """Returns the standard deviation, in grey, within the flattest tenth of the blocks that are neither black nor
    white."""
    blocks = cut_blocks(bands.mean(0))
    means = blocks.mean(1) if len(blocks) else np.zeros(0)
    middle = blocks[(means > 8) & (means < 247)]
    if len(middle) < 20:
        return 0.0
    # Of 64 samples of one normal distribution, a tenth have less than 0.884 of its standard deviation.
    return float(np.quantile(middle.std(1), 0.1) / 0.884)


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
    blocks = cut_blocks(np.tensordot(np.asarray(LUMA, np.float32), bands, 1) if len(bands) == 3 else bands[0])
    if len(blocks) == 0:
        return 0.0
    clipped = cut_blocks(((bands.min(0) <= 0) | (bands.max(0) >= 255)).astype(np.float32)).sum(1)
    blocks = blocks[clipped <= np.quantile(clipped, 0.2)]  # clipped levels are no multiples
    return _step_of(blocks[:: -(-len(blocks) // 1024)] @ _waves())


def _step_of(all_levels: Array) -> float:
    """Returns the median step of the levels of each frequency, the columns of an array; see `_jpeg_step`."""
    found = []
    for levels in all_levels.T:
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
REPEATED = 0.2
"""Where this share of the squares occurs again, the picture holds no noise. Of noise fewer do: none of sigma 2, a tenth
of a camera's that JPEG has smoothed."""
REPEATED_IN_JPEG = 0.9
"""The same where JPEG has left its marks: it makes flat squares of smooth parts, noise may be left elsewhere."""


def _repeated(bands: Array) -> float:
    """Returns which share of the squares of `bands` `[C,H,W]` occurs again, exactly, 0..1: what is drawn repeats itself
    (flat colours, patterns, letters), and noise hardly ever does.

    It is the lower quartile over cells of 32x32 pixels, so that neither a flat frame around a noisy picture nor a
    photograph in a screenshot decides. Squares that are black or white throughout do not count: a clipped sky is flat,
    too. The result is 1 where nothing else is there, and 0 for pictures that hold no whole cell.
    """
    channels, rows, columns = len(bands), *_squares(bands)
    if rows == 0 or columns == 0:
        return 0.0
    whole = bands[:, : rows * SQUARE, : columns * SQUARE].reshape(channels, rows, SQUARE, columns, SQUARE)
    squares = np.ascontiguousarray(whole.transpose(1, 3, 0, 2, 4)).reshape(rows * columns, -1) + 0  # -0 becomes 0
    by_channel = squares.reshape(len(squares), channels, -1)
    flat = (by_channel == by_channel[:, :, :1]).all((1, 2))
    counted = ~(flat & ((squares <= 0) | (squares >= 255)).all(1))
    keys = squares.view(np.dtype((np.void, squares.shape[1] * squares.itemsize))).ravel()
    _, inverse, times = np.unique(keys, return_inverse=True, return_counts=True)
    again = (times[inverse.ravel()] > 1) & counted
    cells = (of.reshape(rows // CELL, CELL, columns // CELL, CELL).sum((1, 3)) for of in (again, counted))
    return _lower_quartile(*cells)


def _squares(bands: Array | Tensor) -> tuple[int, int]:
    """Returns how many rows and columns of squares the whole cells in `bands` `[C,H,W]` hold."""
    side = SQUARE * CELL
    return bands.shape[1] // side * CELL, bands.shape[2] // side * CELL


def _lower_quartile(again: Array, counted: Array) -> float:
    """Returns the share of `counted` that is `again`, both numbers of squares in each cell; see `_repeated`."""
    most = int(counted.max())
    if most == 0:
        return 1.0
    enough = counted >= min(CELL, most)  # of a cell that is nearly all white, a few squares say little
    return float(np.quantile(again[enough] / counted[enough], 0.25))


def estimate_sigma(pixels: Array | Tensor) -> float:
    """Returns the standard deviation of white noise, in 8-bit units, in `pixels` `[C,H,W]`: integers or float in [0,1].

    Chen, Zhu and Heng (ICCV 2015): patches of a natural image span few dimensions, so the smaller eigenvalues of
    their covariance are the noise alone; the largest set of them whose mean equals its median gives its level.
    In colour the estimate of white noise is right to about 0.2. Grey patches of a textured image span every dimension,
    and the smallest sixteenth of the eigenvalues is the better guess: within 2 at sigma 15. Both are far too low for
    noise that has been through JPEG or resizing.
    """
    grey = pixels.shape[0] == 1
    if isinstance(pixels, Tensor):
        return _tensor_sigma(_tensor_patches(pixels), grey=grey)
    return _sigma(_patches(pixels), grey=grey)


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


def measure_noise(pixels: Array | Tensor) -> Noise:
    """Measures the noise in `pixels` `[C,H,W]`: integers, or float in [0,1]."""
    if isinstance(pixels, Tensor):
        return _measure_tensor(pixels)
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


# -- the same of tensors, where they are ------------------------------------------------------------------------------


def _measure_tensor(x: Tensor) -> Noise:
    """Returns what `measure_noise` does; the figures of the two may differ by rounding."""
    grey = x.shape[0] == 1
    patches = _tensor_patches(x)
    halves = patches.mean(1).argsort(stable=True).tensor_split(2)
    dark, bright = (_tensor_sigma(patches[half], grey=grey) for half in halves)
    bands = _tensor_bands(x)
    blocks = _tensor_blocks(bands.mean(0))
    means = blocks.mean(1)
    middle = blocks[(means > 8) & (means < 247)]
    visible = float(middle.std(1, correction=0).quantile(0.1)) / 0.884 if len(middle) >= 20 else 0.0
    step = _step_of(levels.cpu().numpy()) if len(levels := _tensor_levels(bands)) else 0.0
    sigma, coarse, repeated = _tensor_sigma(patches, grey=grey), estimate_sigma(x[:, ::2, ::2]), _tensor_repeated(bands)
    return Noise(sigma, coarse, dark, bright, visible, grey, step, repeated)


def _in_eight_bits(x: Tensor) -> Tensor:
    return x.float() * (255.0 if x.is_floating_point() else 255.0 / torch.iinfo(x.dtype).max)


def _tensor_patches(x: Tensor) -> Tensor:
    """Returns what `_patches` does."""
    count, height, width = x.shape
    side = 8 if count == 1 else 6
    if min(height, width) < 4 * side:
        return torch.zeros(0, count * side * side, device=x.device)
    windows = x.unfold(1, side, 1).unfold(2, side, 1)
    stride = max(2, int(math.sqrt(windows.shape[1] * windows.shape[2] / PATCHES)))
    return _in_eight_bits(windows[:, ::stride, ::stride].permute(1, 2, 0, 3, 4).reshape(-1, count * side * side))


def _tensor_sigma(patches: Tensor, *, grey: bool) -> float:
    """Returns what `_sigma` does; only the covariance comes to the CPU."""
    if len(patches) < 2:
        return 0.0
    centred = patches - patches.mean(0)
    covariance = (centred.T @ centred).cpu().double().numpy() / (len(patches) - 1)
    with _one_thread():
        return _level(covariance, grey=grey)


def _tensor_bands(x: Tensor) -> Tensor:
    """Returns what `_bands` does."""
    height, width = x.shape[1:]
    band = 4 * BLOCK
    step = max(1, height * width // SEEN) * band
    rows = torch.cat([torch.arange(top, min(top + band, height)) for top in range(0, height, step)])
    return _in_eight_bits(x[:, rows.to(x.device)])


def _tensor_blocks(plane: Tensor) -> Tensor:
    """Returns what `cut_blocks` does."""
    rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    whole = plane[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return whole.transpose(1, 2).reshape(rows * columns, BLOCK * BLOCK)


def _tensor_levels(bands: Tensor) -> Tensor:
    """Returns the levels of low frequencies that `_jpeg_step` looks at, `[n,6]`."""
    blocks = _tensor_blocks(luma(bands[None])[0, 0] if len(bands) == 3 else bands[0])
    if len(blocks) == 0:
        return blocks
    clipped = _tensor_blocks(((bands.amin(0) <= 0) | (bands.amax(0) >= 255)).float()).sum(1)
    blocks = blocks[clipped <= clipped.quantile(0.2)]
    return blocks[:: -(-len(blocks) // 1024)] @ torch.from_numpy(_waves()).to(bands.device)


def _tensor_repeated(bands: Tensor) -> float:
    """Returns what `_repeated` does; only the numbers of squares in each cell come to the CPU."""
    channels, rows, columns = len(bands), *_squares(bands)
    if rows == 0 or columns == 0:
        return 0.0
    whole = bands[:, : rows * SQUARE, : columns * SQUARE].reshape(channels, rows, SQUARE, columns, SQUARE)
    squares = whole.permute(1, 3, 0, 2, 4).reshape(rows * columns, channels, -1)
    flat = (squares == squares[:, :, :1]).all(2).all(1)
    black_or_white = ((squares <= 0) | (squares >= 255)).all(2).all(1)
    counted = ~(flat & black_or_white)
    _, inverse, times = squares.flatten(1).unique(dim=0, return_inverse=True, return_counts=True)
    again = (times[inverse] > 1) & counted
    cells = (of.reshape(rows // CELL, CELL, columns // CELL, CELL).sum((1, 3)) for of in (again, counted))
    return _lower_quartile(*(of.cpu().numpy() for of in cells))


# -- what came of it -------------------------------------------------------------------------------------------------

# The bounds were chosen on pictures whose clean originals are known; `aeimg bench checks` counts false alarms and
# misses on others.
SHIFT = 1.5
"""How far the mean of a channel may shift, in 8-bit units."""
CLIPPED, MOST_CLIPPED = 3.0, 80
"""How near to black and white the mean of a block may not lie so that its shift counts: so many times the noise, at
most so many 8-bit units. Where noise was clipped at black or white, the mean has to shift back."""
UNCLIPPED = 0.05
"""The least share of the blocks that must count, so that anything is said of a shift."""
LARGEST_STRUCTURE = 0.3
"""The largest `structure` that is never reported. The noise of cameras, which grows with brightness,
gives up to 0.9."""
MOST_REMOVED, MOST_OF_NOISE = 5.0, 0.7
"""How much may be removed from detailed parts, whatever the structure: so many 8-bit units, or such a share of the
level of white noise. Good results stay below 4 and 0.6; blurs, medians and sigmas that are far too high exceed both."""
NOISE_LEFT = 4.0
"""The largest noise in the flattest parts that is never reported, in 8-bit units."""
WHITE_LEFT, WHITE_LEFT_IN_GREY = 1.2, 8.0
"""The largest level of white noise after denoising that is not reported, in 8-bit units. Texture, which varies as much
as noise does, measures as 0.7 at most; what a sigma that is too low leaves, as 2 and more. In grey pictures texture
measures as up to 7, and what such a sigma leaves as 11 and more."""


@dataclass(frozen=True)
class Check:
    """What can be said of a denoised picture without its clean original."""

    noise_before: float
    """The standard deviation in the flattest parts, of noise of whatever kind, in 8-bit units."""
    noise_after: float
    """The same after denoising."""
    shift: tuple[float, ...]
    """By how much the mean of each channel rose, in 8-bit units, in blocks that are so far from black and white that no
    noise was clipped; 0 where too few are."""
    structure: float
    """The correlation, over blocks, of what was removed with the detail that is left: about 0 where only noise was
    removed, towards 1 where edges and texture went with it."""
    removed: float
    """The standard deviation of what was removed, in the most detailed tenth of the blocks, in 8-bit units."""
    white_before: float = 0.0
    """The level of white noise, in 8-bit units; 0 where other figures are within their bounds anyway."""
    white_after: float = 0.0
    """The same after denoising."""

    def notes(self, strength: float = 1.0) -> dict[str, str]:
        """Returns a sentence for each figure that is out of bounds for that strength, with what to do, by what it is
        about: "colours", "detail" or "noise"."""
        found = {}
        if max(map(abs, self.shift)) > SHIFT:
            shifts = ", ".join(f"{value:+.1f}" for value in self.shift)
            found["colours"] = f"the colours may have shifted: the means of the channels changed by {shifts} (of 255)"
        if self._detail_removed():
            found["detail"] = (
                f"some detail may be gone: up to {self.removed:.0f} of 255 was removed where the picture is "
                "most detailed; compare it with the original, and try a lower --strength if it looks too smooth"
            )
        if self._noise_left() and self.noise_after > (1 - 0.5 * strength) * self.noise_before:
            found["noise"] = (
                f"some noise may be left ({self.noise_after:.1f} of 255, {self.noise_before:.1f} before); "
                "if you see it, try a higher --sigma or another --model"
            )
        return found

    def warnings(self, strength: float = 1.0) -> list[str]:
        """Returns the sentences of `notes`."""
        return list(self.notes(strength).values())

    def _detail_removed(self) -> bool:
        most = max(MOST_REMOVED, MOST_OF_NOISE * self.white_before)
        return self.structure > LARGEST_STRUCTURE and self.removed > most

    def _noise_left(self) -> bool:
        most = WHITE_LEFT_IN_GREY if len(self.shift) == 1 else WHITE_LEFT
        return self.noise_after > NOISE_LEFT and self.white_after > most


def check(before: Array, after: Array) -> Check:
    """Compares pixels `[C,H,W]` of one dtype before and after denoising."""
    old, new = _bands(before), _bands(after)
    taken, visible = old - new, _visible(old)
    shift = tuple(_shift(*planes, visible) for planes in zip(old, new, strict=True))
    residual, detail = cut_blocks(taken.mean(0)).std(1), cut_blocks(new.mean(0)).std(1)
    structure = removed = 0.0
    if len(residual) >= 16:
        removed = float(np.median(residual[np.argsort(detail)[-(len(detail) // 10 + 1) :]]))
        if min(residual.std(), detail.std()) > 0:
            structure = float(np.corrcoef(np.log(residual + 0.5), np.log(detail + 0.5))[0, 1])
    found = Check(visible, _visible(new), shift, structure, removed)
    # White noise takes longer to measure than all of this, and is needed for few pictures.
    if structure > LARGEST_STRUCTURE and removed > MOST_REMOVED:
        found = replace(found, white_before=estimate_sigma(before))
    if found.noise_after > NOISE_LEFT:
        found = replace(found, white_after=estimate_sigma(after))
    return found


def _shift(old: Array, new: Array, noise: float) -> float:
    """Returns by how much the mean of a channel `[H,W]` rose where no noise of that level was clipped."""
    before, after = cut_blocks(old).mean(1), cut_blocks(new).mean(1)
    edge = min(CLIPPED * noise, MOST_CLIPPED)
    counted = (after >= edge) & (after <= 255 - edge)
    return float((after - before)[counted].mean()) if counted.sum() > UNCLIPPED * len(counted) else 0.0
