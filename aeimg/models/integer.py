"""`IntegerScales`: the part of the codec that must not differ by one bit between machines.

It computes the scale index of every symbol from integers alone: the side symbols, the magnitudes of the
symbols decoded before, and the quality. `FloatScales` is the same network as it is trained; `freeze` turns
its weights into integers:

    activations   multiples of 2^-8, rounded half up after every layer, in 0..2^20
    weights       multiples of 2^-12, int16
    sums          multiples of 2^-20, exact

All of it is computed in float64 on the CPU, as matrix products whose every partial sum is an integer below
2^53: the order of summation, the number of threads, the batch, the tile and the library can't matter. Float64
also has no reduced-precision mode (TF32, bf16) that a host program could have switched on.
The means of the symbols are computed elsewhere, in floating point: they never touch the coder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 4
"""In how many steps a picture's symbols are coded."""
ORDER = (0, 2, 3, 1)
"""When a position of the 2x2 square (raster order) is decoded in the first group of channels: the diagonal first."""

ACTIVATION_BITS = 8
WEIGHT_BITS = 12
SUM_BITS = ACTIVATION_BITS + WEIGHT_BITS
LARGEST_ACTIVATION = 1 << 20
LARGEST_MAGNITUDE = 255
QUALITIES = 100
OUTPUT_GAIN = 8
"""Indexes per unit of the last layer, a factor of e in the scale: so it learns at the pace of the others."""

Part = tuple[slice, slice, slice]
"""Channels, rows, columns."""


def step_parts(step: int, codes: int) -> list[Part]:
    """The symbols that `step` codes, as four regular grids: of each position in a 2x2 square every fourth channel.

    The quadtree partition of DCVC-DC (Li et al. 2023).
    """
    return [
        (slice((step - turn) % STEPS, codes, STEPS), slice(position // 2, None, 2), slice(position % 2, None, 2))
        for position, turn in enumerate(ORDER)
    ]


def take(x: Tensor, step: int) -> Tensor:
    """The values of `x` `[N,C,H,W]` at the symbols of `step`: `[N,M]`; by part, row, column, and channel last."""
    parts = [x[:, c, i, j].permute(0, 2, 3, 1).flatten(1) for c, i, j in step_parts(step, x.shape[1])]
    return torch.cat(parts, 1)


def put(x: Tensor, step: int, values: Tensor) -> None:
    """The mirror of `take`: sets `x` in place."""
    at = 0
    for c, i, j in step_parts(step, x.shape[1]):
        part = x[:, c, i, j].permute(0, 2, 3, 1)
        count = part[0].numel()
        part.copy_(values[:, at : at + count].view(part.shape))
        at += count


def first_layer(weight: Tensor, bias: Tensor, earlier: Sequence[Tensor], height: int, width: int) -> Tensor:
    """A 1x1 convolution that reads the symbols of earlier steps, as if all others were zero.

    `earlier`: for step 0, 1, ... values `[N,M]` as `take` orders them; `weight` `[D,C]` (or `[D,C,1,1]`), `bias` `[D]`
    -> `[N,D,height,width]`.
    """
    weight = weight.flatten(1)
    result: Tensor | None = None
    at = 0
    for position, (_, i, j) in enumerate(step_parts(0, weight.shape[1])):
        shape = (len(earlier[0]), len(range(height)[i]), len(range(width)[j]), weight.shape[1] // STEPS)
        count = shape[1] * shape[2] * shape[3]
        inputs = torch.cat([values[:, at : at + count].view(shape) for values in earlier], 3)
        at += count
        channels = [step_parts(step, weight.shape[1])[position][0] for step in range(len(earlier))]
        part = F.linear(inputs, torch.cat([weight[:, c] for c in channels], 1), bias).permute(0, 3, 1, 2)
        if result is None:
            size = (len(part), len(weight), height, width)
            result = torch.empty(size, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)
        result[:, :, i, j] = part
    assert result is not None
    return result


def last_layer(layer: nn.Conv2d, hidden: Tensor, step: int) -> Tensor:
    """A 1x1 convolution of `hidden` `[N,*,H,W]`, computed at the symbols of `step` only: `[N,M]`, as `take` orders."""
    assert layer.bias is not None
    hidden = hidden.permute(0, 2, 3, 1)
    weight = layer.weight.flatten(1)
    parts = [
        F.linear(hidden[:, i, j], weight[c], layer.bias[c]).flatten(1) for c, i, j in step_parts(step, len(weight))
    ]
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class ScalesConfig:
    codes: int
    hyper: int
    """Channels of the side symbols."""
    features: int = 96
    """Channels of what the side symbols are expanded to."""
    context: int = 64
    hidden: int = 128
    rate_points: int = 8


def at_quality(table: Tensor, q: Tensor) -> Tensor:
    """`table` `[P,...]`, values at P equally spaced rates, interpolated at `q` `[N]` in [0,1]: `[N,...]`."""
    position = q.clamp(0, 1) * (table.shape[0] - 1)
    low = position.floor().long().clamp(max=table.shape[0] - 2)
    weight = (position - low).view(-1, *[1] * (table.dim() - 1))
    return torch.lerp(table[low], table[low + 1], weight)


def quality_to_q(quality: Tensor) -> Tensor:
    """Quality 1..100 -> [0,1]."""
    return (quality.float() - 1) / (QUALITIES - 1)


class FloatScales(nn.Module):
    """The scale network as it is trained: real-valued indexes from side symbols, magnitudes and rate."""

    def __init__(self, config: ScalesConfig) -> None:
        super().__init__()
        self.config = c = config
        self.expand1 = nn.Conv2d(c.hyper, 4 * c.context, 1)
        self.expand2 = nn.Conv2d(c.context, c.context, 3, padding=1)
        self.expand3 = nn.Conv2d(c.context, 4 * c.features, 1)
        self.gather1 = nn.ModuleList(nn.Conv2d(c.codes, c.context, 1) for _ in range(STEPS - 1))
        self.gather2 = nn.ModuleList(nn.Conv2d(c.context, c.context, 3, padding=1) for _ in range(STEPS - 1))
        self.combine1 = nn.ModuleList(
            nn.Conv2d(c.features + (c.context if step else 0), c.hidden, 1) for step in range(STEPS)
        )
        self.combine2 = nn.ModuleList(nn.Conv2d(c.hidden, c.codes, 1) for _ in range(STEPS))
        for layer in self.combine2:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.rate = nn.Parameter(torch.zeros(c.rate_points, STEPS, c.hidden))
        self.base = nn.Parameter(torch.zeros(c.rate_points, c.codes))
        """Index of each code before anything is known of the picture; set from the data before training."""
        self.side = nn.Parameter(torch.full((c.rate_points, c.hyper), 20.0))
        """Index of each side symbol."""

    def expand(self, z: Tensor) -> Tensor:
        """Side symbols `[N,hyper,h,w]` -> features `[N,features,4h,4w]`."""
        h = F.relu(F.pixel_shuffle(self.expand1(z), 2))
        h = F.relu(self.expand2(h))
        return F.relu(F.pixel_shuffle(self.expand3(h), 2))

    def forward(self, step: int, features: Tensor, earlier: Sequence[Tensor], q: Tensor) -> Tensor:
        """Real-valued indexes of the symbols of `step`, `[N,M]` as `take` orders them.

        `earlier`: `|s|` of the symbols of each earlier step, `[N,M]`; `q` `[N]` in [0,1].
        """
        h = features
        if step:
            first = self.gather1[step - 1]
            logarithms = [torch.log2(1 + magnitudes.clamp(max=LARGEST_MAGNITUDE)) for magnitudes in earlier]
            context = first_layer(first.weight, first.bias, logarithms, *h.shape[2:])  # type: ignore[arg-type]
            h = torch.cat([h, F.relu(self.gather2[step - 1](F.relu(context)))], 1)
        h = F.relu(self.combine1[step](h) + at_quality(self.rate[:, step], q)[:, :, None, None])
        base = at_quality(self.base, q)[:, :, None, None].expand(-1, -1, *h.shape[2:])
        return OUTPUT_GAIN * last_layer(self.combine2[step], h, step).float() + take(base, step)  # type: ignore[arg-type]

    def side_index(self, q: Tensor) -> Tensor:
        """Real-valued indexes `[N,hyper]` of the side symbols."""
        return at_quality(self.side, q)


@torch.no_grad()
def freeze(network: FloatScales) -> dict[str, Tensor]:
    """The integer tensors that `IntegerScales` runs on. Everything that depends on the quality becomes a table."""

    def fixed(x: Tensor, fraction: int, kind: torch.dtype) -> Tensor:
        limits = torch.iinfo(kind)
        return (x.double() * 2.0**fraction).round().clamp(limits.min, limits.max).to(kind)

    tensors = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            gain = OUTPUT_GAIN if name.startswith("combine2") else 1
            # Rows in the order of `F.unfold`, so that a 3x3 convolution is one matrix product.
            tensors[f"{name}.weight"] = fixed(gain * module.weight.flatten(1), WEIGHT_BITS, torch.int16)
            tensors[f"{name}.bias"] = fixed(gain * module.bias, SUM_BITS, torch.int32)
    q = quality_to_q(torch.arange(1, QUALITIES + 1)).to(network.base.device)
    tensors["rate"] = fixed(at_quality(network.rate, q), SUM_BITS, torch.int32)
    tensors["base"] = fixed(at_quality(network.base, q).clamp(-1000, 1000), SUM_BITS, torch.int32)
    tensors["side"] = at_quality(network.side, q).round().clamp(0, 63).to(torch.int32)
    magnitudes = torch.arange(LARGEST_MAGNITUDE + 1)
    tensors["magnitude"] = fixed(torch.log2(1 + magnitudes.double()), ACTIVATION_BITS, torch.int32)
    return {name: tensor.cpu() for name, tensor in tensors.items()}


class IntegerScales:
    """The scale network as it decodes: int32 indexes 0..63, the same everywhere. Stateless after construction."""

    def __init__(self, tensors: Mapping[str, Tensor], config: ScalesConfig, levels: int) -> None:
        self.config = config
        self.levels = levels
        # int32 values are exact in float64.
        self._t = {name: tensor.cpu().double() for name, tensor in tensors.items()}

    def _layer(self, name: str, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """A convolution over integers: `[C,H,W]` multiples of 2^-8 in, `[C,H,W]` multiples of 2^-20 out."""
        weight = self._t[f"{name}.weight"]
        height, width = x.shape[1:]
        columns = x.flatten(1) if weight.shape[1] == x.shape[0] else F.unfold(x[None], 3, padding=1)[0]
        bias = self._t[f"{name}.bias"] if extra is None else self._t[f"{name}.bias"] + extra
        return torch.addmm(bias[:, None], weight, columns).view(-1, height, width)

    @staticmethod
    def _activate(x: Tensor) -> Tensor:
        """Rounds half up to a multiple of 2^-8 and clips below at zero."""
        return torch.floor_(x.add_(2.0 ** (WEIGHT_BITS - 1)).mul_(2.0**-WEIGHT_BITS)).clamp_(0, LARGEST_ACTIVATION)

    def expand(self, z: Tensor) -> Tensor:
        """Side symbols `[hyper,h,w]` -> features, float64 integers `[features,4h,4w]`."""
        h = z.double().clamp(-LARGEST_MAGNITUDE, LARGEST_MAGNITUDE) * 2.0**ACTIVATION_BITS
        h = self._activate(F.pixel_shuffle(self._layer("expand1", h), 2))
        h = self._activate(self._layer("expand2", h))
        return self._activate(F.pixel_shuffle(self._layer("expand3", h), 2))

    def magnitudes(self, symbols: Tensor) -> Tensor:
        """Symbols, any shape -> what the network is told of them, float64 integers."""
        return self._t["magnitude"][symbols.int().abs().clamp_(0, LARGEST_MAGNITUDE)]

    def indexes(self, step: int, features: Tensor, earlier: Sequence[Tensor], quality: int) -> Tensor:
        """uint8 indexes `[M]` of the symbols of `step`, as `take` orders them.

        `features`: from `expand`, cropped to `[features,H,W]`; `earlier`: `magnitudes` of the symbols of each earlier
        step, `[M]`; `quality` 1..100.
        """
        h = features
        if step:
            weight, bias = (self._t[f"gather1.{step - 1}.{name}"] for name in ("weight", "bias"))
            context = first_layer(weight, bias, [values[None] for values in earlier], *h.shape[1:])[0]
            context = self._activate(context.contiguous())
            context = self._activate(self._layer(f"gather2.{step - 1}", context))
            h = torch.cat([h, context])
        h = self._activate(self._layer(f"combine1.{step}", h, self._t["rate"][quality - 1, step]))
        weight = self._t[f"combine2.{step}.weight"]
        bias = self._t[f"combine2.{step}.bias"] + self._t["base"][quality - 1]
        parts = [
            torch.addmm(bias[c], h[:, i, j].flatten(1).T, weight[c].T).flatten()
            for c, i, j in step_parts(step, len(weight))
        ]
        t = torch.cat(parts)
        return torch.floor_(t.add_(2.0 ** (SUM_BITS - 1)).mul_(2.0**-SUM_BITS)).clamp_(0, self.levels - 1).byte()

    def side_index(self, quality: int) -> Tensor:
        """int32 indexes `[hyper]` of the side symbols at `quality` 1..100."""
        return self._t["side"][quality - 1].int()
