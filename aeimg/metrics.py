"""How alike two images are (PSNR, SSIM, MS-SSIM, SSIMULACRA2, butteraugli), and what that costs (BD-rate).

Images are numpy `[H,W]` or `[H,W,C]` of one dtype. The two that model the eye are run by others: SSIMULACRA2 by the
package `ssimulacra2` (`pip install 'aeimg[metrics]'`), butteraugli by the program `butteraugli_main` of libjxl.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .errors import UsageError
from .pixels import LUMA

Array = np.ndarray


SMALLEST_FOR_SSIM = 11
"""Sides of its window, in pixels."""
SMALLEST_FOR_MS_SSIM = 176
"""So that the window fits into the coarsest of five scales."""


def _range(a: Array, b: Array) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"images differ in shape or dtype: {a.shape} {a.dtype}, {b.shape} {b.dtype}")
    return float(np.iinfo(a.dtype).max) if np.issubdtype(a.dtype, np.integer) else 1.0


def psnr(a: Array, b: Array) -> float:
    """Peak signal-to-noise ratio in dB over all channels; `inf` for equal images. Floats have a peak of 1."""
    peak = _range(a, b)
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if mse == 0 else 10 * math.log10(peak * peak / mse)


def _chroma(image: Array) -> Array:
    """The planes Cb and Cr `[H,W,2]` of uint8 `[H,W,3]`, in 8-bit units around 0 (BT.601)."""
    r, g, b = np.moveaxis(image.astype(np.float64), -1, 0)
    y = LUMA[0] * r + LUMA[1] * g + LUMA[2] * b
    return np.stack([(b - y) / 1.772, (r - y) / 1.402], -1)


def chroma_psnr(a: Array, b: Array) -> float:
    """The PSNR of the planes Cb and Cr of two images, uint8 `[H,W,3]`, in dB; `inf` for equal ones."""
    mse = float(np.square(_chroma(a) - _chroma(b)).mean())
    return math.inf if mse == 0 else 10 * math.log10(255 * 255 / mse)


def colourfulness(image: Array) -> float:
    """How colourful an image, uint8 `[H,W,3]`, looks (Hasler and Suesstrunk 2003): 0 for grey, about 15 slightly, 45
    quite, 82 highly colourful."""
    r, g, b = np.moveaxis(image.astype(np.float64), -1, 0)
    rg, yb = r - g, (r + g) / 2 - b
    return math.hypot(float(rg.std()), float(yb.std())) + 0.3 * math.hypot(float(rg.mean()), float(yb.mean()))


def bits_per_pixel(size: int, width: int, height: int) -> float:
    """Bits per pixel of a file of `size` bytes."""
    return 8 * size / (width * height)


def _ssim_parts(a: Array, b: Array, peak: float) -> tuple[float, float]:
    """Mean SSIM and mean contrast-structure term of two planes (Wang et al. 2004: Gaussian window 11, sigma 1.5)."""
    from numpy.lib.stride_tricks import sliding_window_view

    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    taps /= taps.sum()

    def blur(x: Array) -> Array:
        rows = sliding_window_view(x, 11, axis=0) @ taps
        return np.asarray(sliding_window_view(rows, 11, axis=1) @ taps)

    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a = blur(a * a) - mean_a**2
    var_b = blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float(np.mean(light * structure)), float(np.mean(structure))


def _planes(a: Array, b: Array, smallest: int) -> list[tuple[Array, Array]]:
    if min(a.shape[:2]) < smallest:
        raise ValueError(f"an image of {a.shape[1]}x{a.shape[0]} is too small; both sides must be at least {smallest}")
    if a.ndim == 2:
        a, b = a[:, :, None], b[:, :, None]
    return [(a[:, :, c].astype(np.float64), b[:, :, c].astype(np.float64)) for c in range(a.shape[2])]


def ssim(a: Array, b: Array) -> float:
    """Structural similarity (Wang et al. 2004), the mean over channels. Both sides at least 11 pixels."""
    peak = _range(a, b)
    return float(np.mean([_ssim_parts(x, y, peak)[0] for x, y in _planes(a, b, SMALLEST_FOR_SSIM)]))


def ms_ssim(a: Array, b: Array) -> float:
    """Multi-scale structural similarity (Wang et al. 2003), the mean over channels. Both sides at least 176 pixels."""
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, finest first
    peak = _range(a, b)
    values = []
    for x, y in _planes(a, b, SMALLEST_FOR_MS_SSIM):
        value = 1.0
        for level, weight in enumerate(weights):
            whole, structure = _ssim_parts(x, y, peak)
            value *= max(whole if level == len(weights) - 1 else structure, 0.0) ** weight
            height, width = (side // 2 * 2 for side in x.shape)
            x, y = (v[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for v in (x, y))
        values.append(value)
    return float(np.mean(values))


def ms_ssim_db(a: Array, b: Array) -> float:
    """MS-SSIM on a scale of decibels, -10 log10(1 - value), on which equal steps look about equal."""
    return -10 * math.log10(max(1 - ms_ssim(a, b), 1e-10))


def has_ssimulacra2() -> bool:
    """Whether the package `ssimulacra2` is installed."""
    return importlib.util.find_spec("ssimulacra2") is not None


def _png(image: Array) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def ssimulacra2(a: Array, b: Array) -> float:
    """SSIMULACRA2 of `b` against the reference `a`, both uint8.

    100 for equal images; about 90 where no difference is seen, 70 for high, 50 for medium and 30 for low quality; it
    falls below 0. Raises `UsageError` where the package is missing.
    """
    if not has_ssimulacra2():
        raise UsageError("SSIMULACRA2 is measured by the package ssimulacra2: pip install 'aeimg[metrics]'")
    from ssimulacra2 import compute_ssimulacra2

    return float(compute_ssimulacra2(io.BytesIO(_png(a)), io.BytesIO(_png(b))))


BUTTERAUGLI = "butteraugli_main"


def has_butteraugli() -> bool:
    """Whether libjxl's program for it is installed (Debian: `libjxl-devtools`)."""
    return shutil.which(BUTTERAUGLI) is not None


def butteraugli(a: Array, b: Array) -> float:
    """The 3-norm of the butteraugli distance of `b` from the reference `a`, both uint8; 0 for equal images.

    Raises `UsageError` where libjxl's program is missing or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = [Path(folder) / name for name in ("a.png", "b.png")]
        for name, image in zip(names, (a, b), strict=True):
            name.write_bytes(_png(image))
        try:
            done = subprocess.run([BUTTERAUGLI, *map(str, names)], capture_output=True, text=True, check=True)
            found = re.search(r"3-norm: ([0-9.eE+-]+)", done.stdout)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UsageError(
                f"butteraugli is measured by libjxl's {BUTTERAUGLI}, which does not run ({error})"
            ) from error
    if found is None:
        raise UsageError(f"{BUTTERAUGLI} of another version than is known: it prints no 3-norm")
    return float(found[1])


def _akima(x: Array, y: Array, at: Array) -> Array:
    """Akima's interpolation (1970) of `y` over strictly rising `x`."""
    slopes = np.diff(y) / np.diff(x)
    if len(slopes) == 1:
        return y[0] + slopes[0] * (at - x[0])
    left, right = 2 * slopes[0] - slopes[1], 2 * slopes[-1] - slopes[-2]
    m = np.concatenate([[2 * left - slopes[0], left], slopes, [right, 2 * right - slopes[-1]]])
    before, after = np.abs(m[1:-2] - m[:-3]), np.abs(m[3:] - m[2:-1])
    total = before + after
    flat = total <= 1e-9 * np.abs(m).max()
    weight = np.where(flat, 0.5, after / np.where(flat, 1.0, total))
    tangents = weight * m[1:-2] + (1 - weight) * m[2:-1]
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    h, d = x[i + 1] - x[i], at - x[i]
    c = (3 * slopes[i] - 2 * tangents[i] - tangents[i + 1]) / h
    e = (tangents[i] + tangents[i + 1] - 2 * slopes[i]) / h**2
    return np.asarray(y[i] + d * (tangents[i] + d * (c + d * e)))


def bd_rate(anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]) -> float:
    """Bjontegaard's delta rate of `test` against `anchor` in percent; negative means fewer bits at the same quality.

    Each is a list of (bits per pixel, dB). Akima interpolation of log(bpp) over the PSNR range that both cover.
    Raises `ValueError` for fewer than two points, for quality that does not rise, or where the ranges do not meet.
    """
    curves = []
    for points in (anchor, test):
        ordered = np.array(sorted(points, key=lambda point: point[1]), np.float64)
        if len(ordered) < 2 or (np.diff(ordered[:, 1]) <= 0).any():
            raise ValueError("a rate-distortion curve needs two or more points of different quality")
        curves.append((ordered[:, 1], np.log(ordered[:, 0])))
    low = max(quality[0] for quality, _ in curves)
    high = min(quality[-1] for quality, _ in curves)
    if high <= low:
        raise ValueError("the two curves cover no common quality")
    at = np.linspace(low, high, 1000)
    difference = _akima(*curves[1], at) - _akima(*curves[0], at)
    return float(np.expm1(np.trapezoid(difference, at) / (high - low)) * 100)


def roc_auc(inside: Array, outside: Array) -> float:
    """Area under the ROC curve of scores `[N]`, `[M]`: how often one of `outside` is the larger (ties count half)."""
    ranks = np.searchsorted(np.sort(inside), outside, "left"), np.searchsorted(np.sort(inside), outside, "right")
    return float((ranks[0] + ranks[1]).mean() / (2 * len(inside)))
