"""`IntegerScales`: the part of the codec that must not differ by one bit between machines.

It computes the scale index of every symbol from integers alone: the side symbols, the magnitudes of the
symbols decoded before, and the quality. `FloatScales` is the same network as it is trained, with the same rounding;
`freeze` turns its weights into integers:

    activations   multiples of 1/16, rounded half up after every layer, 0..255 of them
    weights       multiples of 2^-k, -127..127 of them, with a k for each output channel
    sums          multiples of 2^-(k+4), exact

All of it is computed in float32 on the CPU, as matrix products of integers whose every partial sum is an integer below
2^24, which `freeze` makes sure of: the order of summation, the number of threads, the batch, the tile and the library
can't matter. Nor can a reduced-precision mode that a host program has switched on (TF32, bf16 products): the factors
have 8 bits, which is exact in all of them, as long as sums are kept in float32.
The means of the symbols are computed elsewhere, in floating point: they never touch the coder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Layers

STEPS = 4
"""In how many steps a picture's symbols are coded."""
ORDER = (0, 2, 3, 1)
"""When a position of the 2x2 square (raster order) is decoded in the first group of channels: the diagonal first."""

ACTIVATION_BITS = 4
"""Activations are multiples of 2^-4."""
LARGEST_ACTIVATION = 255
LARGEST_WEIGHT = 127
LARGEST_SHIFT = 14
"""Weights are multiples of 2^-k, with k of 0 to this."""
EXACT = 1 << 24
"""Integers below are exact in float32, and so are sums of them."""
LARGEST_MAGNITUDE = 255
SIDE_BITS = 3
"""What side symbols are multiplied by are multiples of 2^-3."""
QUALITIES = 100
OUTPUT_GAIN = 8
"""Indexes per unit of the last layer, a factor of e in the scale: so that it learns as fast as the others."""

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


def last_layer(weight: Tensor, bias: Tensor, hidden: Tensor, step: int) -> Tensor:
    """A 1x1 convolution of `hidden` `[N,*,H,W]`, computed at the symbols of `step` only: `[N,M]`, as `take` orders."""
    hidden = hidden.permute(0, 2, 3, 1)
    weight = weight.flatten(1)
    count, channels = len(hidden), hidden.shape[3]
    parts = [
        F.linear(hidden[:, i, j].reshape(-1, channels), weight[c], bias[c]).view(count, -1)
        for c, i, j in step_parts(step, len(weight))
    ]
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class ScalesConfig:
    codes: int
    hyper: int
    """Channels of the side symbols."""
    features: int = 96
    """Channels of what the side symbols are expanded to."""
    context: int = 96
    hidden: int = 160
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


def _nearest(x: Tensor) -> Tensor:
    """`x` rounded half up; the gradient passes straight through."""
    return x + (torch.floor(x + 0.5) - x).detach()


def _activated(x: Tensor) -> Tensor:
    """ReLU, limited and rounded as integers will be."""
    return _nearest(x.clamp(0, LARGEST_ACTIVATION / 2**ACTIVATION_BITS) * 2**ACTIVATION_BITS) / 2**ACTIVATION_BITS


@torch.no_grad()
def _shifts(weight: Tensor) -> Tensor:
    """For rows `[D,K]` of real weights the largest k of each at which they fit into 8 bits as multiples of 2^-k."""
    largest = weight.abs().amax(1).clamp(min=1e-9)
    return torch.floor(torch.log2(LARGEST_WEIGHT / largest)).clamp(0, LARGEST_SHIFT)


def _rounded(weight: Tensor) -> Tensor:
    """Weights `[D,...]` rounded as `freeze` will round them; the gradient passes straight through."""
    scale = torch.exp2(_shifts(weight.flatten(1))).view(-1, *[1] * (weight.dim() - 1))
    return _nearest((weight * scale).clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)) / scale


class FloatScales(nn.Module):
    """The scale network as it is trained: real-valued indexes from side symbols, magnitudes and rate.

    Weights and activations are rounded as they will be in integers, so what is trained is what runs.
    """

    def __init__(self, config: ScalesConfig) -> None:
        super().__init__()
        self.config = c = config
        self.expand1 = nn.Conv2d(c.hyper, 4 * c.context, 1)
        self.expand2 = nn.Conv2d(c.context, c.context, 3, padding=1)
        self.expand3 = nn.Conv2d(c.context, 4 * c.features, 1)
        self.gather1 = Layers(nn.Conv2d(c.codes, c.context, 1) for _ in range(STEPS - 1))
        self.gather2 = Layers(nn.Conv2d(c.context, c.context, 3, padding=1) for _ in range(STEPS - 1))
        self.combine1 = Layers(nn.Conv2d(c.features + (c.context if step else 0), c.hidden, 1) for step in range(STEPS))
        self.combine2 = Layers(nn.Conv2d(c.hidden, c.codes, 1) for _ in range(STEPS))
        for layer in self.combine2:
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.rate = nn.Parameter(torch.zeros(c.rate_points, STEPS, c.hidden))
        self.base = nn.Parameter(torch.zeros(c.rate_points, c.codes))
        """Index of each code before anything is known of the picture; set from the data before training."""
        self.side = nn.Parameter(torch.full((c.rate_points, c.hyper), 20.0))
        """Index of each side symbol."""
        self.side_log_step = nn.Parameter(torch.zeros(c.rate_points, c.hyper))
        with torch.no_grad():  # on the CPU, because torch imports sympy for it on the meta device
            self.side_log_step.copy_(torch.linspace(0.7, 0, c.rate_points, device="cpu")[:, None])
        """Logarithm of the quantiser's step of each side symbol: coarser where few bits are spent on the codes."""

    @staticmethod
    def _layer(module: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(x, _rounded(module.weight), module.bias, padding=module.padding)

    def side_step(self, q: Tensor) -> Tensor:
        """The quantiser's step of each side symbol, `[N,hyper,1,1]`."""
        step = torch.exp(at_quality(self.side_log_step, q))[:, :, None, None]
        return _nearest((step * 2**SIDE_BITS).clamp(1, LARGEST_ACTIVATION)) / 2**SIDE_BITS

    def expand(self, side: Tensor) -> Tensor:
        """Dequantised side symbols `[N,hyper,h,w]` -> features `[N,features,4h,4w]`."""
        limit = LARGEST_ACTIVATION / 2**SIDE_BITS
        h = side.clamp(-limit, limit) * 2 ** (SIDE_BITS - ACTIVATION_BITS)
        h = _activated(F.pixel_shuffle(self._layer(self.expand1, h), 2))
        h = _activated(self._layer(self.expand2, h))
        return _activated(F.pixel_shuffle(self._layer(self.expand3, h), 2))

    def forward(self, step: int, features: Tensor, earlier: Sequence[Tensor], q: Tensor) -> Tensor:
        """Real-valued indexes of the symbols of `step`, `[N,M]` as `take` orders them.

        `earlier`: `|s|` of the symbols of each earlier step, `[N,M]`; `q` `[N]` in [0,1].
        """
        h = features
        if step:
            first = self.gather1[step - 1]
            assert first.bias is not None
            logarithms = [
                _nearest(torch.log2(1 + magnitudes.clamp(max=LARGEST_MAGNITUDE)) * 2**ACTIVATION_BITS)
                / 2**ACTIVATION_BITS
                for magnitudes in earlier
            ]
            context = _activated(first_layer(_rounded(first.weight), first.bias, logarithms, *h.shape[2:]))
            context = _activated(self._layer(self.gather2[step - 1], context))
            h = torch.cat([h, context], 1)
        rate = at_quality(self.rate[:, step], q)[:, :, None, None]
        h = _activated(self._layer(self.combine1[step], h) + rate)
        base = at_quality(self.base, q)[:, :, None, None].expand(-1, -1, *h.shape[2:])
        last = self.combine2[step]
        assert last.bias is not None
        weight = _rounded(OUTPUT_GAIN * last.weight)
        return last_layer(weight, OUTPUT_GAIN * last.bias, h, step).float() + take(base, step)

    def side_index(self, q: Tensor) -> Tensor:
        """Real-valued indexes `[N,hyper]` of the side symbols."""
        return at_quality(self.side, q)


@torch.no_grad()
def freeze(network: FloatScales) -> dict[str, Tensor]:
    """The integer tensors that `IntegerScales` runs on. Everything that depends on the quality becomes a table."""
    q = quality_to_q(torch.arange(1, QUALITIES + 1)).to(network.base.device)
    rate, base = at_quality(network.rate, q).double(), at_quality(network.base, q).double().clamp(-1000, 1000)
    tensors = {
        "rate": torch.zeros(rate.shape, dtype=torch.int32),
        "base": torch.zeros(STEPS, *base.shape, dtype=torch.int32),
    }
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        assert module.bias is not None
        last = name.startswith("combine2")
        gain = OUTPUT_GAIN if last else 1
        # Rows in the order of `F.unfold`, so that a 3x3 convolution is one matrix product.
        weight, bias = gain * module.weight.flatten(1).double(), gain * module.bias.double()
        step = int(name.rsplit(".", 1)[1]) if name.startswith("combine") else 0
        added = rate[:, step] if name.startswith("combine1") else base if last else torch.zeros(1, len(bias)).to(bias)
        shift = _shifts(weight)
        while True:
            scale = torch.exp2(shift)
            rows = (weight * scale[:, None] + 0.5).floor().clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)
            sums = ((bias + added) * scale * 2**ACTIVATION_BITS).round()
            # The largest sum there can be, and what is added to round it to an activation or an index.
            reach = rows.abs().sum(1) * LARGEST_ACTIVATION + sums.abs().amax(0) + scale * 2**ACTIVATION_BITS
            large = reach >= EXACT
            if not large.any():
                break
            shift = torch.where(large, shift - 1, shift)
        tensors[f"{name}.weight"] = rows.to(torch.int8)
        tensors[f"{name}.shift"] = shift.to(torch.int8)
        if name.startswith("combine1"):
            tensors["rate"][:, step] = sums.int().cpu()
        elif last:
            tensors["base"][step] = sums.int().cpu()
        else:
            tensors[f"{name}.bias"] = sums[0].to(torch.int32)
    tensors["side"] = at_quality(network.side, q).round().clamp(0, 63).to(torch.int32)
    tensors["side_step"] = (network.side_step(q)[:, :, 0, 0] * 2**SIDE_BITS).round().to(torch.int32)
    magnitudes = torch.arange(LARGEST_MAGNITUDE + 1)
    logarithms = torch.log2(1 + magnitudes.double()) * 2**ACTIVATION_BITS
    tensors["magnitude"] = (logarithms + 0.5).floor().to(torch.int32)
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


class IntegerScales:
    """The scale network as it decodes: uint8 indexes 0..63, the same everywhere. Stateless after construction."""

    def __init__(self, tensors: Mapping[str, Tensor], config: ScalesConfig, levels: int) -> None:
        """`tensors` as `freeze` makes them. Raises `ValueError` where a sum could leave what float32 holds exactly."""
        self.config = config
        self.levels = levels
        self._t = {name: tensor.cpu().float() for name, tensor in tensors.items()}
        self._unit: dict[str, Tensor] = {}
        self._taps: dict[str, Tensor] = {}
        for name in [name.removesuffix(".shift") for name in tensors if name.endswith(".shift")]:
            shift = tensors[f"{name}.shift"].cpu().double()
            bias = self._bias_tables(name)
            most = tensors[f"{name}.weight"].cpu().double().abs().sum(1) * LARGEST_ACTIVATION
            if (most + bias.double().abs().amax(0) + torch.exp2(shift + ACTIVATION_BITS) > EXACT).any() or (
                shift < 0
            ).any():
                raise ValueError("integer scales: weights whose sums are not exact in float32")
            self._unit[name] = torch.exp2(-shift).float()
            rows = self._t[f"{name}.weight"]
            if name == "expand2" or name.startswith("gather2"):  # 3x3
                self._taps[name] = rows.view(len(rows), -1, 9).permute(2, 0, 1).contiguous()

    def _bias_tables(self, name: str) -> Tensor:
        """All biases that the layer may have, `[*,D]`."""
        kind, _, step = name.partition(".")
        if kind == "combine1":
            return self._t["rate"][:, int(step)]
        return self._t["base"][int(step)] if kind == "combine2" else self._t[f"{name}.bias"][None]

    def _layer(self, name: str, x: Tensor, bias: Tensor) -> Tensor:
        """A convolution of integers `[C,H,W]`, multiples of 2^-4, in multiples of 2^-4 that are not yet rounded."""
        weight = self._t[f"{name}.weight"]
        channels, height, width = x.shape
        with torch.autocast("cpu", enabled=False):  # which would round the sums
            if weight.shape[1] == channels:
                sums = torch.addmm(bias[:, None], weight, x.flatten(1)).view(-1, height, width)
            else:
                sums = self._convolved(self._taps[name], x, bias)
        return sums.mul_(self._unit[name][:, None, None])

    @staticmethod
    def _convolved(taps: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """A 3x3 convolution of `[C,H,W]` by weights `[9,D,C]`: a sum of matrix products, one for each tap.

        They work on rows that lie one behind the other with a zero between them, so that a step to a neighbour is a
        step in memory, and nothing is copied for each tap.
        """
        channels, height, width = x.shape
        stride = width + 1
        padded = x.new_zeros(channels, (height + 2) * stride + 2)
        padded[:, stride + 1 : -stride - 1].unflatten(1, (height, stride))[:, :, :width] = x
        length = height * stride
        sums = bias[:, None].expand(-1, length).contiguous()
        for number, tap in enumerate(taps):
            start = number // 3 * stride + number % 3
            sums.addmm_(tap, padded[:, start : start + length])
        return sums.view(-1, height, stride)[:, :, :width]

    @staticmethod
    def _activate(x: Tensor) -> Tensor:
        """Rounds half up and limits to 0..255."""
        return torch.floor_(x.add_(0.5)).clamp_(0, LARGEST_ACTIVATION)

    def expand(self, side: Tensor, quality: int) -> Tensor:
        """Side symbols `[hyper,h,w]` -> features, float32 integers `[features,4h,4w]`."""
        limit = LARGEST_ACTIVATION
        step = self._t["side_step"][quality - 1][:, None, None]
        h = (side.float().clamp(-limit, limit) * step).clamp_(-limit, limit)
        h = self._activate(F.pixel_shuffle(self._layer("expand1", h, self._t["expand1.bias"]), 2))
        h = self._activate(self._layer("expand2", h, self._t["expand2.bias"]))
        return self._activate(F.pixel_shuffle(self._layer("expand3", h, self._t["expand3.bias"]), 2))

    def magnitudes(self, symbols: Tensor) -> Tensor:
        """Symbols, any shape -> what the network gets of them, float32 integers."""
        return self._t["magnitude"][symbols.int().abs().clamp_(0, LARGEST_MAGNITUDE)]

    def indexes(self, step: int, features: Tensor, earlier: Sequence[Tensor], quality: int) -> Tensor:
        """uint8 indexes `[M]` of the symbols of `step`, as `take` orders them.

        `features`: from `expand`, cropped to `[features,H,W]`; `earlier`: `magnitudes` of the symbols of each earlier
        step, `[M]`; `quality` 1..100.
        """
        h = features
        if step:
            context = self._first(f"gather1.{step - 1}", earlier, (h.shape[1], h.shape[2]))
            name = f"gather2.{step - 1}"
            context = self._activate(self._layer(name, context, self._t[f"{name}.bias"]))
            h = torch.cat([h, context])
        h = self._activate(self._layer(f"combine1.{step}", h, self._t["rate"][quality - 1, step]))
        t = self._last(f"combine2.{step}", step, h, self._t["base"][step, quality - 1])
        return torch.floor_(t.add_(0.5)).clamp_(0, self.levels - 1).byte()

    def _first(self, name: str, earlier: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        weight, bias, values = self._t[f"{name}.weight"], self._t[f"{name}.bias"], [part[None] for part in earlier]
        with torch.autocast("cpu", enabled=False):
            sums = first_layer(weight, bias, values, *size)[0].contiguous()
        return self._activate(sums.mul_(self._unit[name][:, None, None]))

    def _last(self, name: str, step: int, h: Tensor, bias: Tensor) -> Tensor:
        """Indexes that are not yet rounded."""
        weight, unit = self._t[f"{name}.weight"], self._unit[name] * 2.0**-ACTIVATION_BITS
        with torch.autocast("cpu", enabled=False):
            return torch.cat(
                [
                    torch.addmm(bias[c], h[:, i, j].flatten(1).T, weight[c].T).mul_(unit[c]).flatten()
                    for c, i, j in step_parts(step, len(weight))
                ]
            )

    def side_index(self, quality: int) -> Tensor:
        """int32 indexes `[hyper]` of the side symbols at `quality` 1..100."""
        return self._t["side"][quality - 1].int()
