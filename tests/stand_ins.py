"""Networks so simple that tests know what they make, in the place of an upscaler and of a colorizer."""

from __future__ import annotations

import torch


class Doubled(torch.nn.Module):
    """Each pixel four times."""

    scale, halo, label = 2, 0, "doubled-1"

    def forward(self, x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Reddish(torch.nn.Module):
    """Everything is a little red."""

    label, side, multiple = "reddish-1", 16, 8

    def forward(self, luma):
        assert min(luma.shape[2:]) <= 24
        assert luma.shape[2] % 8 == luma.shape[3] % 8 == 0
        return torch.cat([-0.1 * torch.ones_like(luma), 0.2 * torch.ones_like(luma)], 1)
