"""`colorizer`: an autoencoder of the U-net kind that predicts the chroma of a picture from its luma.

The luma is unshuffled by 2 (Shi et al. 2016, run backwards) and goes through residual blocks at ever lower resolution
and back (Ronneberger et al. 2015). What comes out is either two planes of chroma, a regression, or, for each place, how
likely each of a grid of chroma values is, a classification, of which the annealed mean is taken (Zhang, Isola and Efros
2016). A regression learns the mean of all likely colours, which is greyer than each of them; classes can prefer one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Layers, ResidualBlock


@dataclass(frozen=True)
class ColorizerConfig:
    """The shape of `Colorizer`. The defaults take 4.5 MB in fp16."""

    channels: tuple[int, ...] = (24, 48, 96, 128, 160)
    """Width of each level; each level halves the resolution of the one before, and the first that of the picture."""
    bottom: int = 2
    """Residual blocks at the lowest level."""
    bins: int = 0
    """The number of chroma values on each axis of the grid of classes; 0 for a regression."""
    temperature: float = 0.38
    """Of classes: what logits are divided by before their mean is taken. 1 takes the mean, 0.38 prefers the likely."""
    side: int = 320
    """The shorter side, in pixels, to which pictures are reduced; see `contract.Colorizer`."""
    slope: float = 0.1
    """The slope of the rectifiers for negative values."""


class Colorizer(nn.Module):
    """Turns luma `[N,1,H,W]`, float in [0,1], into Cb and Cr `[N,2,H,W]`. `H` and `W` are multiples of `multiple`."""

    task = "colorize"
    channels = 1

    def __init__(self, config: ColorizerConfig = ColorizerConfig()) -> None:
        super().__init__()
        self.config = config
        widths, slope = config.channels, config.slope
        self.head = nn.Conv2d(4, widths[0], 3, padding=1)
        self.encoder = Layers(ResidualBlock(width, width, slope, bias=True) for width in widths[:-1])
        self.down = Layers(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        lowest = widths[-1]
        self.bottom = nn.Sequential(*(ResidualBlock(lowest, lowest, slope, bias=True) for _ in range(config.bottom)))
        self.up = Layers(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.decoder = Layers(ResidualBlock(width, width, slope, bias=True) for width in widths[:-1])
        self.tail = nn.Conv2d(widths[0], config.bins**2 or 8, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]  # there is one

    @property
    def multiple(self) -> int:
        """What height and width must be a multiple of, in pixels."""
        return int(2 ** len(self.config.channels))

    @property
    def side(self) -> int:
        """The shorter side, in pixels, to which pictures are reduced."""
        return self.config.side

    def last(self, luma: Tensor) -> Tensor:
        """What the last layer makes of luma: for classes, their logits `[N,bins^2,H/2,W/2]`."""
        x = self.head(F.pixel_unshuffle(luma - 0.5, 2))
        skips = []
        for encoder, down in zip(self.encoder, self.down, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.bottom(x)
        for level in reversed(range(len(self.up))):
            x = self.decoder[level](self.up[level](x) + skips[level])
        made: Tensor = self.tail(x)
        return made

    def forward(self, luma: Tensor) -> Tensor:
        """`luma` `[N,1,H,W]`. Returns Cb and Cr `[N,2,H,W]`, unclipped, in fp32."""
        return self.chroma(self.last(luma).float())

    def chroma(self, last: Tensor) -> Tensor:
        """Turns what `last` returns into Cb and Cr `[N,2,H,W]`."""
        if not self.config.bins:
            return F.pixel_shuffle(last, 2)
        likely = (last / self.config.temperature).softmax(1)
        mean = torch.einsum("nbhw,bc->nchw", likely, self.centres(last))
        return F.interpolate(mean, scale_factor=2, mode="bilinear", align_corners=False)

    def centres(self, like: Tensor) -> Tensor:
        """Cb and Cr of each class, `[bins^2,2]`."""
        axis = (torch.arange(self.config.bins, device=like.device, dtype=torch.float32) + 0.5) / self.config.bins - 0.5
        return torch.cartesian_prod(axis, axis)

    def classes(self, chroma: Tensor) -> Tensor:
        """The class that is nearest to each of Cb and Cr `[N,2,H,W]`: whole numbers `[N,H,W]`."""
        bins = self.config.bins
        at = ((chroma + 0.5) * bins).long().clamp(0, bins - 1)
        return at[:, 0] * bins + at[:, 1]
