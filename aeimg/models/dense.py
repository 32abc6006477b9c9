"""`dense`: autoencoders of fully connected layers, from principal components to deep stacks.

What the textbooks begin with: an image as one vector, through layers of given widths to a code, and mirrored back.
Without activations it learns the principal subspace (Bourlard and Kamp 1988; Baldi and Hornik 1989); one hidden layer
is the plain autoencoder, several a deep one (Hinton and Salakhutdinov 2006).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Layers


@dataclass(frozen=True)
class DenseConfig:
    """The shape of `Dense`."""

    side: int = 28
    """The side of the square greyscale image that is one vector, in pixels."""
    widths: tuple[int, ...] = (64,)
    """The widths of the layers after the input; the last layer is the code."""
    activation: bool = True
    """Whether rectifiers follow the hidden layers and a sigmoid the last one. Without them, all is linear."""
    rectified_code: bool = True
    """Whether a rectifier follows the code's layer too."""


class Dense(nn.Module):
    """`[N,1,side,side]` in [0,1] <-> codes `[N,D]`."""

    task = "compress"

    def __init__(self, config: DenseConfig = DenseConfig()) -> None:
        super().__init__()
        self.config = config
        widths = (config.side**2, *config.widths)
        self.encoder = Layers(nn.Linear(a, b) for a, b in pairwise(widths))
        self.decoder = Layers(nn.Linear(b, a) for a, b in reversed(list(pairwise(widths))))
        for layer in (*self.encoder, *self.decoder):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def begin_at(self, mean: Tensor) -> None:
        """Sets biases so that a fresh network gives back something near `mean`, the mean image `[side,side]` in (0,1).

        The first layer then sees how an image differs from that. Otherwise the first steps go into driving all of the
        dark background down at once, and of a deep one's first rectifiers a quarter fall dead of it.
        """
        flat = mean.flatten()
        first, last = self.encoder[0], self.decoder[-1]
        first.bias.copy_(-(first.weight @ flat))
        last.bias.copy_(torch.logit(flat) if self.config.activation else flat)

    @property
    def side(self) -> int:
        """The side of the images that it takes, in pixels."""
        return self.config.side

    def code_shape(self, side: int) -> tuple[int, ...]:
        """The shape of an image's code."""
        return (self.config.widths[-1],)

    def encode(self, x: Tensor) -> Tensor:
        h = x.flatten(1)
        for number, layer in enumerate(self.encoder):
            h = layer(h)
            last = number == len(self.encoder) - 1
            if self.config.activation and (not last or self.config.rectified_code):
                h = F.relu(h)
        return h

    def logits(self, code: Tensor) -> Tensor:
        """Codes -> what the sigmoid makes pixels of (or the pixels themselves, of a linear one), `[N,1,side,side]`."""
        h = code
        for number, layer in enumerate(self.decoder):
            h = layer(h)
            if self.config.activation and number < len(self.decoder) - 1:
                h = F.relu(h)
        return h.view(-1, 1, self.config.side, self.config.side)

    def pixels_of(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits) if self.config.activation else logits

    def decode(self, code: Tensor) -> Tensor:
        return self.pixels_of(self.logits(code))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))
