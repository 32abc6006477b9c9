"""`unet`: a bias-free denoising autoencoder on pixel-unshuffled input.

A U-shaped stack of plain 3x3 residual blocks. The image is unshuffled by 2 (Shi et al. 2016, run backwards),
a noise-level map is appended as in FFDNet (Zhang et al. 2018), and no layer has a bias, so that the network is
homogeneous of degree one and generalises over noise levels (Mohan et al. 2020). There is no global pooling:
a tile sees exactly what the whole image would show it.

A blind network reads one and the same level always and has to see for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Layers, ResidualBlock

ENOUGH = 96
"""Pixels; see `UNet.halo`."""

STRIP = 8 << 20
"""Bytes of a layer's result; see `UNet.forward`."""


@dataclass(frozen=True)
class UNetConfig:
    """The shape of `UNet`."""

    image_channels: int = 3
    """The number of channels of an image."""
    unshuffle: int = 2
    """The side of the squares of pixels that become the channels of one place."""
    channels: tuple[int, ...] = (32, 96, 128, 192)
    """Width of each level; each level halves the resolution of the one before."""
    blocks: tuple[int, ...] = (1, 1, 2, 2)
    """Residual blocks of each level on the way down (the last entry: at the bottom)."""
    blocks_up: tuple[int, ...] = (1, 1, 1)
    """Residual blocks of each level on the way up."""
    inner: tuple[int, ...] = ()
    """Width between the two convolutions of each level's blocks; none given: that of the level."""
    slope: float = 0.0
    """The slope of the rectifiers for negative values. Without biases or normalisation, units of slope 0 die in
    numbers, and nothing brings back one that no input excites."""
    takes_grey: bool = False
    """Whether grey images with grey noise were among what it learned from: three equal channels, and sigma as it is."""
    assumed_sigma: float | None = None
    """The noise level that the map of a blind network holds, whatever level it is given. None: the network is not
    blind."""


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
        self.down = Layers(nn.Conv2d(a, b, 2, stride=2, bias=False) for a, b in pairwise(widths))
        self.up = Layers(Upsample(b, a) for a, b in pairwise(widths))
        self.encoder = Layers(
            nn.Sequential(*(ResidualBlock(c, i, config.slope) for _ in range(n)))
            for c, i, n in zip(widths, inner, config.blocks, strict=True)
        )
        self.decoder = Layers(
            nn.Sequential(*(ResidualBlock(c, i, config.slope) for _ in range(n)))
            for c, i, n in zip(widths[:-1], inner[:-1], config.blocks_up, strict=True)
        )
        self.tail = nn.Conv2d(widths[0], config.image_channels * u2, 3, padding=1, bias=False)
        nn.init.zeros_(self.tail.weight)

    @property
    def takes_grey(self) -> bool:
        """Whether a grey image comes with its sigma as it is; see `contract.Denoiser`."""
        return self.config.takes_grey

    @property
    def blind(self) -> bool:
        """Whether the network ignores the noise level that it is given."""
        return self.config.assumed_sigma is not None

    @property
    def takes_map(self) -> bool:
        """Whether sigma may be a map, one level for each pixel; see `contract.Denoiser`."""
        return not self.blind

    @property
    def multiple(self) -> int:
        """What height and width must be a multiple of, in pixels."""
        return int(self.config.unshuffle * 2 ** (len(self.config.channels) - 1))

    @property
    def halo(self) -> int:
        """How far from a pixel the input still matters, in pixels: `reach`, or `ENOUGH` where that is less.

        From further away a trained network of four levels changes no pixel by 1/255, and few by a hundredth of that;
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
        """`x` `[N,C,H,W]`, `sigma` `[N]` or a map `[N,1,H,W]` in 8-bit units (15 means 15/255). Returns the clean
        image, of the shape of `x`.

        Where no gradient is wanted, large levels run in strips of rows, which changes nothing but speed and memory:
        what takes 32 MB or more, the C library asks of the system anew each time, and clearing its pages costs a
        convolution of 32 channels as much as its arithmetic does.
        """
        if self.config.assumed_sigma is not None:
            sigma = torch.full_like(sigma, self.config.assumed_sigma)
        u = self.config.unshuffle
        spread = sigma if sigma.dim() == 4 else sigma.view(-1, 1, 1, 1)
        plane = (spread / 255.0).to(x.dtype).expand(-1, 1, *x.shape[2:])
        skips = []
        h = _Rows(x)
        for level, down in enumerate(self.down):
            skip, lower = _Rows(), _Rows()
            for low, start, stop, high in self._strips(level, x, self.config.blocks):
                if level == 0:
                    rows = slice(u * low, u * high)
                    part = self._head(torch.cat([x[:, :, rows], plane[:, :, rows]], 1))
                else:
                    part = h.between(low, high)
                part = self.encoder[level](part)[:, :, start - low : stop - low]
                skip.append(part)
                lower.append(down(part))
            skips.append(skip)
            h = lower
        h = _Rows(self.encoder[-1](h.whole()))
        for level in reversed(range(len(self.down))):
            skip, upper = skips.pop(), _Rows()
            for low, start, stop, high in self._strips(level, x, self.config.blocks_up):
                part = self.up[level](h.between(low // 2, high // 2))
                part = self.decoder[level](skip.add_to(part, low))
                if level == 0:
                    noise = F.pixel_shuffle(self.tail(part)[:, :, start - low : stop - low], u)
                    upper.append(x[:, :, u * start : u * stop] - noise)
                else:
                    upper.append(part[:, :, start - low : stop - low])
            h = upper
        return h.whole()

    def _head(self, x: Tensor) -> Tensor:
        """The head on what unshuffling makes of `x`, as the one strided convolution that both equal: fewer copies.

        In fp32 whatever the rest runs in: bf16 would round bright pixels as coarsely as 8 bits do, before anything has
        been taken from them. It is what most of the cost of bf16 in quality was.
        """
        u, c = self.config.unshuffle, x.shape[1]
        kernel = self.head.weight.view(-1, c, u, u, 3, 3).permute(0, 1, 4, 2, 5, 3).reshape(-1, c, 3 * u, 3 * u)
        device = x.device.type
        with torch.autocast(device, enabled=False):
            h = F.conv2d(x, kernel.contiguous(memory_format=torch.channels_last), stride=u, padding=u)
        return h.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else h

    def _strips(self, level: int, x: Tensor, blocks: tuple[int, ...]) -> Iterator[tuple[int, int, int, int]]:
        """Strips of rows of a level: from where it is computed, from where and up to where it is right, up to where."""
        height, width = (side // (self.config.unshuffle * 2**level) for side in x.shape[2:])
        row = x.shape[0] * self.config.channels[level] * width * x.element_size()
        whole = torch.is_grad_enabled() or height * row <= 2 * STRIP
        step = height if whole else max(STRIP // row // 2 * 2, 2)
        # A row past the strip's ends for each 3x3 convolution, and an even number of them.
        margin = 2 * blocks[level] + (2 if level == 0 else 0)
        for start in range(0, height, step):
            stop = min(start + step, height)
            yield max(start - margin, 0), start, stop, min(stop + margin, height)


class _Rows:
    """What has rows, `[N,C,H,W]`, in strips one below the other: put together in fresh memory, it would be copied into
    pages that have to be cleared first."""

    def __init__(self, *strips: Tensor) -> None:
        self._strips = list(strips)

    def append(self, strip: Tensor) -> None:
        self._strips.append(strip)

    def _among(self, low: int, high: int) -> Iterator[tuple[int, Tensor]]:
        """What lies between two rows: which row each piece begins with, and the piece."""
        top = 0
        for strip in self._strips:
            start, stop = max(low, top), min(high, top + strip.shape[2])
            if start < stop:
                yield start, strip[:, :, start - top : stop - top]
            top += strip.shape[2]

    def between(self, low: int, high: int) -> Tensor:
        pieces = [piece for _, piece in self._among(low, high)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)

    def whole(self) -> Tensor:
        return self.between(0, sum(strip.shape[2] for strip in self._strips))

    def add_to(self, part: Tensor, low: int) -> Tensor:
        """Adds the rows from `low` on to `part`, in place."""
        for start, piece in self._among(low, low + part.shape[2]):
            part[:, :, start - low : start - low + piece.shape[2]].add_(piece)
        return part
