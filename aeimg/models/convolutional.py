"""`convolutional`: small autoencoders of 3x3 convolutions with pooling, for images of any size.

Two of one kind: with a narrow code, to compress (16-8-8 channels, pooled three times); and with a wide one, noisy in
and clean out (32-32, pooled twice; Vincent et al. 2008).

Pooling takes the mean: the largest value forgets where it was, which costs a tenth of the cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Layers


@dataclass(frozen=True)
class ConvolutionalConfig:
    """The shape of `Convolutional`."""

    channels: tuple[int, ...] = (16, 8, 8)
    """The channels of the levels. Each level halves the resolution of the one before; the last is the code."""
    slope: float = 0.1
    """The slope of the rectifiers for negative values: of eight units none may die."""


class Level(nn.Module):
    """Two 3x3 convolutions, the second added to the first: `[N,A,H,W]` -> `[N,B,H,W]`, not rectified."""

    def __init__(self, a: int, b: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.conv1 = nn.Conv2d(a, b, 3, padding=1)
        self.conv2 = nn.Conv2d(b, b, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x)
        return h + self.conv2(F.leaky_relu(h, self.slope))


class Convolutional(nn.Module):
    """`[N,1,H,W]` in [0,1] <-> codes `[N,C,H/multiple,W/multiple]`."""

    task = "compress"

    def __init__(self, config: ConvolutionalConfig = ConvolutionalConfig()) -> None:
        super().__init__()
        self.config = config
        widths = (1, *config.channels)
        self.inward = Layers(Level(a, b, config.slope) for a, b in pairwise(widths))
        mirrored = (*reversed(config.channels), config.channels[0])
        self.outward = Layers(Level(a, b, config.slope) for a, b in pairwise(mirrored))
        self.last = nn.Conv2d(config.channels[0], 1, 3, padding=1)

    @torch.no_grad()
    def begin_at(self, mean: Tensor) -> None:
        """Sets the last bias so that a fresh network gives back something near the mean of `mean`, an image `[H,W]`
        in (0,1)."""
        assert self.last.bias is not None
        self.last.bias.fill_(torch.logit(mean.mean()))

    @property
    def multiple(self) -> int:
        """What height and width must be a multiple of, in pixels."""
        return int(2 ** len(self.config.channels))

    @property
    def halo(self) -> int:
        """How far from a pixel its value still depends on the input, in pixels, rounded up to `multiple`."""
        reach = 1 + sum(2 * 2**level + 2 * 2 ** (level + 1) for level in range(len(self.config.channels)))
        reach += 2 * self.multiple  # what pooling and up-sampling may be off by
        return -(-reach // self.multiple) * self.multiple

    def code_shape(self, side: int) -> tuple[int, ...]:
        """The shape of the code of a square image of `side` pixels a side."""
        return (self.config.channels[-1], side // self.multiple, side // self.multiple)

    def encode(self, x: Tensor) -> Tensor:
        h = x
        for number, level in enumerate(self.inward):
            h = level(h)
            if number < len(self.inward) - 1:
                h = F.leaky_relu(h, self.config.slope)
            h = F.avg_pool2d(h, 2)
        return h

    def logits(self, code: Tensor) -> Tensor:
        """Codes -> what the sigmoid makes pixels of, `[N,1,H,W]`."""
        h = code
        for level in self.outward:
            h = F.interpolate(F.leaky_relu(level(h), self.config.slope), scale_factor=2)
        return self.last(h)

    def pixels_of(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    def decode(self, code: Tensor) -> Tensor:
        return self.pixels_of(self.logits(code))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


@dataclass(frozen=True)
class DenoisingConfig:
    """The shape of `Denoising`."""

    channels: tuple[int, ...] = (32, 32)
    """See `ConvolutionalConfig`."""
    slope: float = 0.1
    """See `ConvolutionalConfig`."""


class Denoising(nn.Module):
    """A denoiser of `Convolutional`'s shape: grey, blind. `[N,3,H,W]` in, the grey of its channels out in all three."""

    task = "denoise"
    takes_grey = True
    blind = True

    def __init__(self, config: DenoisingConfig = DenoisingConfig()) -> None:
        super().__init__()
        self.config = config
        self.network = Convolutional(ConvolutionalConfig(config.channels, config.slope))

    def begin_at(self, mean: Tensor) -> None:
        """See `Convolutional.begin_at`."""
        self.network.begin_at(mean)

    @property
    def multiple(self) -> int:
        return self.network.multiple

    @property
    def halo(self) -> int:
        return self.network.halo

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.network(x.mean(1, keepdim=True)).expand_as(x)
