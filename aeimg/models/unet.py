"""`unet`: a bias-free denoising autoencoder on pixel-unshuffled input.

A U-shaped stack of plain 3x3 residual blocks. The image is unshuffled by 2 (Shi et al. 2016, run backwards),
a noise-level map is appended as in FFDNet (Zhang et al. 2018), and no layer has a bias, so that the network is
homogeneous of degree one and generalises over noise levels (Mohan et al. 2020). There is no global pooling:
a tile sees exactly what the whole image would show it.

A blind network reads one and the same level always and has to see for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ENOUGH = 96
"""Pixels; see `UNet.halo`."""


@dataclass(frozen=True)
class UNetConfig:
    image_channels: int = 3
    unshuffle: int = 2
    channels: tuple[int, ...] = (32, 96, 128, 192)
    """Width of each level; each level halves the resolution of the one before."""
    blocks: tuple[int, ...] = (1, 1, 2, 2)
    """Residual blocks of each level on the way down (the last entry: at the bottom)."""
    blocks_up: tuple[int, ...] = (1, 1, 1)
    """Residual blocks of each level on the way up."""
    inner: tuple[int, ...] = ()
    """Width between the two convolutions of each level's blocks; none given: that of the level."""
    slope: float = 0.0
    """Of the rectifiers for negative values. Without biases or normalisation, units of slope 0 die in numbers: nothing
    brings back one that no input excites."""
    takes_grey: bool = False
    """Whether grey images with grey noise were among what it learned from: three equal channels, and sigma as it is."""
    assumed_sigma: float | None = None
    """Of a blind network: the noise level that its map holds, whatever it is told."""


class ResidualBlock(nn.Module):
    """x + conv(rectify(conv(x))), 3x3, no biases."""

    def __init__(self, channels: int, inner: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        # A small start keeps the sum of all blocks near the identity, which trains at a higher rate.
        nn.init.normal_(self.conv2.weight, std=0.1 / (9 * inner) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        # Added in place: fresh memory costs more than the sum.
        return self.conv2(F.leaky_relu_(self.conv1(x), self.slope)).add_(x)


class Upsample(nn.Conv2d):
    """A 1x1 convolution to four times the channels, and these as 2x2 pixels (Shi et al. 2016).

    Run as the transposed convolution that it equals, at less than half the time on a processor.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, 4 * out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.view(-1, 2, 2, self.in_channels).permute(3, 0, 1, 2)
        return F.conv_transpose2d(x, kernel, stride=2)


class UNet(nn.Module):
    """Denoises `[N,C,H,W]` float in [0,1], given the noise level of each image.

    `H` and `W` must be multiples of `multiple`. Values outside [0,1] are allowed in and come out unclipped.
    """

    task = "denoise"

    def __init__(self, config: UNetConfig = UNetConfig()) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        inner = config.inner or widths
        u2 = config.unshuffle**2
        self.head = nn.Conv2d((config.image_channels + 1) * u2, widths[0], 3, padding=1, bias=False)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2, bias=False) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Upsample(b, a) for a, b in pairwise(widths))
        self.encoder = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(c, i, config.slope) for _ in range(n)))
            for c, i, n in zip(widths, inner, config.blocks, strict=True)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(c, i, config.slope) for _ in range(n)))
            for c, i, n in zip(widths[:-1], inner[:-1], config.blocks_up, strict=True)
        )
        self.tail = nn.Conv2d(widths[0], config.image_channels * u2, 3, padding=1, bias=False)
        nn.init.zeros_(self.tail.weight)

    @property
    def takes_grey(self) -> bool:
        """Whether grey images are to be told their sigma as it is."""
        return self.config.takes_grey

    @property
    def blind(self) -> bool:
        """Whether the noise level that it is told means nothing to it."""
        return self.config.assumed_sigma is not None

    @property
    def multiple(self) -> int:
        """What height and width must be a multiple of, in pixels."""
        return int(self.config.unshuffle * 2 ** (len(self.config.channels) - 1))

    @property
    def halo(self) -> int:
        """How far from a pixel the input still matters, in pixels: `reach`, or `ENOUGH` where that is less.

        From further away a trained network of four levels moves no pixel by 1/255, and few by a hundredth of that;
        tiles that saw as far as it reaches would cost a fifth more.
        """
        enough = -(-ENOUGH // self.multiple) * self.multiple
        return min(self.reach, enough)

    @property
    def reach(self) -> int:
        """How far from a pixel its denoised value can depend on the input at all, rounded up to `multiple`."""
        reach = 2 * self.config.unshuffle  # head and tail
        for level, blocks in enumerate(self.config.blocks):
            convolutions = 2 * (blocks + (self.config.blocks_up[level] if level < len(self.config.blocks_up) else 0))
            reach += (convolutions + 1) * self.config.unshuffle * 2**level
        return -(-reach // self.multiple) * self.multiple

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """`x` `[N,C,H,W]`, `sigma` `[N]` in 8-bit units (15 means 15/255). Returns the clean image, same shape."""
        if self.config.assumed_sigma is not None:
            sigma = torch.full_like(sigma, self.config.assumed_sigma)
        plane = (sigma / 255.0).to(x.dtype).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        h = self.head(F.pixel_unshuffle(torch.cat([x, plane], 1), self.config.unshuffle))
        skips = []
        for encoder, down in zip(self.encoder, self.down, strict=False):
            h = encoder(h)
            skips.append(h)
            h = down(h)
        h = self.encoder[-1](h)
        for level in reversed(range(len(self.down))):
            h = self.decoder[level](self.up[level](h).add_(skips[level]))
        return x - F.pixel_shuffle(self.tail(h), self.config.unshuffle)
