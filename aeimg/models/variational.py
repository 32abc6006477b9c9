"""`variational`: an autoencoder whose code is a distribution (Kingma and Welling 2014).

The encoder gives mean and log-variance of each code value; training draws from that, and pays for how far it is from a
standard normal distribution, in closed form. So the plane of codes can be walked through, and drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class VariationalConfig:
    """The shape of `Variational`."""

    side: int = 28
    """The side of the square greyscale image, in pixels."""
    hidden: int = 64
    """The number of units of the hidden layer, on either side of the code."""
    code: int = 2
    """The number of values of the code."""


class Variational(nn.Module):
    """`[N,1,side,side]` in [0,1] <-> codes `[N,D]`; a code is the mean of its distribution."""

    task = "compress"
    prior = True
    """Codes are drawn from a standard normal distribution."""

    def __init__(self, config: VariationalConfig = VariationalConfig()) -> None:
        super().__init__()
        self.config = config
        self.inward = nn.Linear(config.side**2, config.hidden)
        self.mean = nn.Linear(config.hidden, config.code)
        self.log_variance = nn.Linear(config.hidden, config.code)
        self.outward = nn.Linear(config.code, config.hidden)
        self.pixels = nn.Linear(config.hidden, config.side**2)

    @torch.no_grad()
    def begin_at(self, mean: Tensor) -> None:
        """Sets biases so that a fresh network gives back something near `mean`, the mean image `[side,side]` in (0,1);
        see `dense.Dense.begin_at`."""
        flat = mean.flatten()
        self.inward.bias.copy_(-(self.inward.weight @ flat))
        self.pixels.bias.copy_(torch.logit(flat))

    @property
    def side(self) -> int:
        """The side of the images that it takes, in pixels."""
        return self.config.side

    def code_shape(self, side: int) -> tuple[int, ...]:
        """The shape of an image's code."""
        return (self.config.code,)

    def distribution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the codes, `[N,D]` both."""
        h = F.relu(self.inward(x.flatten(1)))
        return self.mean(h), self.log_variance(h)

    def encode(self, x: Tensor) -> Tensor:
        return self.distribution(x)[0]

    def logits(self, code: Tensor) -> Tensor:
        """Codes -> what the sigmoid makes pixels of, `[N,1,side,side]`."""
        return self.pixels(F.relu(self.outward(code))).view(-1, 1, self.config.side, self.config.side)

    def pixels_of(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    def decode(self, code: Tensor) -> Tensor:
        return self.pixels_of(self.logits(code))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The logits of a decoded draw, and mean and log-variance of what it was drawn from."""
        mean, log_variance = self.distribution(x)
        draw = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.logits(draw), mean, log_variance


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each image's distribution from the standard normal one, in nats, `[N]`."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
