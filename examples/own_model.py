"""Register a denoiser of your own: aeimg brings it files, batches, greyscale, alpha, 16 bits and tiles.

    python examples/own_model.py

A package does the same for everybody who installs it, the command line included: see docs/plugins.md.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import aeimg


class Blur(torch.nn.Module):
    """Averages over 3x3 pixels."""

    task = "denoise"
    halo = 1  # the result at a pixel depends on its neighbours, and on nothing farther away

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """`x` is `[N,3,H,W]`, float in [0,1]; `sigma` is `[N]`, in 8-bit units; the result has the shape of `x`."""
        padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return torch.nn.functional.avg_pool2d(padded, 3, 1)


def main() -> None:
    """Runs the model on a noisy picture, in 8 bits of three channels and in 16 bits of one."""
    aeimg.register("blur", Blur)
    ramp = np.linspace(60, 190, 128)[None, :, None].repeat(96, 0).repeat(3, 2)
    noisy = (ramp + np.random.default_rng(0).normal(0, 20, ramp.shape)).clip(0, 255).round().astype(np.uint8)

    blurred = aeimg.process(Image.fromarray(noisy), "denoise", model="blur")  # a PIL image in, a PIL image out
    before, after = (float(np.square(np.asarray(image) - ramp).mean() ** 0.5) for image in (noisy, blurred))
    print(f"{blurred.mode} picture {blurred.size}: error {before:.1f} before, {after:.1f} after")

    deep = noisy[:, :, 0].astype(np.uint16) * 257
    result = aeimg.process(deep, "denoise", model="blur")
    print(f"{result.dtype} array of shape {result.shape}")


if __name__ == "__main__":
    main()
