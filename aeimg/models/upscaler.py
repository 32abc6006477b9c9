"""`upscaler`: a small super-resolution network that computes at the resolution of its input.

A head, residual blocks of dense 3x3 convolutions without normalisation (EDSR, Lim et al. 2017) and a tail whose
channels become the pixels of the result (Shi et al. 2016). Their sum with the bicubic interpolation of the picture is
the result, so the network learns only what interpolation lacks, and begins as that. There is no global pooling: a tile
sees exactly what the whole picture would show it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import ResidualBlock


@dataclass(frozen=True)
class UpscalerConfig:
    """The shape of `Upscaler`. The defaults cost 54 kMAC for each pixel of the result, in 430 kB of fp16."""

    scale: int = 2
    """How many times as wide and as high results are."""
    channels: int = 48
    """Width of all layers."""
    blocks: int = 5
    """The number of residual blocks."""
    slope: float = 0.1
    """The slope of the rectifiers for negative values."""


class Upscaler(nn.Module):
    """Enlarges `[N,3,H,W]` float in [0,1] to `[N,3,scale*H,scale*W]`, unclipped."""

    task = "upscale"
    channels = 3
    multiple = 1

    def __init__(self, config: UpscalerConfig = UpscalerConfig()) -> None:
        super().__init__()
        self.config = config
        if config.scale < 2:
            raise ValueError(f"a scale of {config.scale}; it must be 2 or more")
        self.head = nn.Conv2d(3, config.channels, 3, padding=1)
        self.body = nn.Sequential(
            *(ResidualBlock(config.channels, config.channels, config.slope, bias=True) for _ in range(config.blocks))
        )
        for name, parameter in self.body.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.tail = nn.Conv2d(config.channels, 3 * config.scale**2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]  # there is one

    @property
    def scale(self) -> int:
        """How many times as wide and as high results are."""
        return self.config.scale

    @property
    def halo(self) -> int:
        """The receptive field: a pixel for each 3x3 convolution, more than the interpolation needs."""
        return 2 + 2 * self.config.blocks

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[N,3,H,W]`. Returns the enlarged pictures in fp32."""
        added = F.pixel_shuffle(self.tail(self.body(self.head(x))), self.config.scale)
        with torch.autocast(x.device.type, enabled=False):
            # With antialias, the cubic is Keys' (a = -0.5), as in Pillow, of which the reductions are made.
            plain = F.interpolate(
                x.float(), scale_factor=self.config.scale, mode="bicubic", antialias=True, align_corners=False
            )
        return plain + added.float()
