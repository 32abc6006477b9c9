"""What a loaded denoiser does to a batch."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .tiles import pad, padded, run_tiled

TILE = 1536
"""Side of the tiles of large images, before the halo, in pixels."""


class Denoiser(Protocol):
    """What a model of the task "denoise" must do; attributes marked * may be left out.

    `multiple`*  what height and width must be a multiple of (default 1)
    `halo`*      how far from a pixel the input still matters to it, in pixels; None: everywhere, so never tiled
                 (the default)
    """

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor:
        """`x` `[N,3,H,W]` float in [0,1], `sigma` `[N]` in 8-bit units -> the clean images, same shape."""
        ...


def estimate_sigma(pixels: np.ndarray) -> float:
    """The standard deviation of white noise in `pixels` `[C,H,W]` float in [0,1], in 8-bit units.

    Chen, Zhu and Heng (ICCV 2015): patches of a natural image span few dimensions, so the smaller eigenvalues of
    their covariance are the noise alone; the largest set of them whose mean equals its median tells its level.
    In colour that is right to about 0.2 for white noise. Grey patches of a textured image span every dimension, and
    the smallest sixteenth of the eigenvalues is the better guess: within 2 at sigma 15. For noise that has been
    through JPEG or resizing both are far too low.
    """
    side = 8 if pixels.shape[0] == 1 else 6
    if min(pixels.shape[1:]) < 4 * side:
        return 0.0
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(1, 2))
    stride = max(2, int(math.sqrt(windows.shape[1] * windows.shape[2] / 40_000)))
    patches = windows[:, ::stride, ::stride].transpose(1, 2, 0, 3, 4).reshape(-1, pixels.shape[0] * side * side)
    patches = patches.astype(np.float64) * 255
    values = np.linalg.eigvalsh(np.cov(patches, rowvar=False))
    if pixels.shape[0] == 1:
        return math.sqrt(max(float(values[: len(values) // 16].mean()), 0.0))
    for count in range(len(values), 0, -1):
        mean = float(values[:count].mean())
        if (values[:count] > mean).sum() >= (values[:count] < mean).sum():
            return math.sqrt(max(mean, 0.0))
    return 0.0


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
    """Denoises a batch of one size: `x` `[N,C,H,W]` float on the CPU, C 1 or 3; the same shape back, on the CPU.

    `sigma` `[N]` in 8-bit units; `strength` scales what is taken away, 0 leaves everything as it is. Greyscale runs
    as three equal channels, for which a noise of sigma looks like colour noise of sqrt(3) times as much. Images
    larger than `tile` go through in tiles, where the model states its halo.
    """
    height, width = x.shape[2:]
    grey = x.shape[1] == 1
    level = (sigma * (math.sqrt(3) if grey else 1.0)).to(device)
    multiple = int(getattr(model, "multiple", 1))
    halo = getattr(model, "halo", None)
    whole = pad(x.expand(-1, 3, -1, -1), padded(height, multiple), padded(width, multiple))

    def run(part: Tensor) -> Tensor:
        part = part.to(device, torch.float32).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return model(part, level).float().cpu()

    clean = run(whole) if halo is None else run_tiled(run, whole, padded(tile, multiple), padded(halo, multiple))
    clean = clean[:, :, :height, :width]
    if grey:
        clean = clean.mean(1, keepdim=True)
    return x + strength * (clean - x)
