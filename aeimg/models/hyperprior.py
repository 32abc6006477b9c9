"""`hyperprior`: a variable-rate convolutional autoencoder with an entropy model.

    pixels --analysis--> codes y --round(y - mean)--> symbols s          (coded; one code vector a 16x16 block)
                         |                 ^
                         +--hyper analysis-+--> side symbols z           (coded first; one vector a 64x64 block)
    symbols + means --synthesis--> pixels

- **Linear shortcut.** The codes are a lapped linear transform of the pixels plus what a convolutional network adds to
  them; the way back is mirrored. The transform's 32x32 kernels start as the leading principal components of the
  16x16x3 blocks and the networks' last layers start at zero, so training starts from the linear autoencoder and learns
  what it lacks.
- **Entropy model.** Mean and scale of every code are predicted from side symbols (Minnen et al. 2018) and from
  codes decoded before, in four steps: each step decodes, at each position of a 2x2 square, another quarter of the
  channels (the quadtree partition of DCVC-DC, Li et al. 2023). `round(y - mean)` is coded with zero-mean tables,
  and scales come from `IntegerScales`, so means may be computed in floating point on any device.
- **Rate.** One set of weights for all rates: the quantiser's step falls with the quality and learned gains per
  channel, interpolated over a few rate points, refine it (Cui et al. 2021).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.nn import functional as F

from ..entropy import LEVELS, SMALLEST, STEP, bits
from ..ssimulacra2 import ssimulacra2
from .integer import STEPS, FloatScales, ScalesConfig, at_quality, first_layer, last_layer, put, take
from .layers import Layers

BLOCK = 16
"""Side of the block of pixels that one code vector stands for."""
SIDE = 4
"""Side of the square of code vectors that one vector of side symbols stands for."""
ERROR_WEIGHT = 1.6
"""How much an error counts in rate-distortion optimised quantisation; it would be 1 if codes were independent."""
KERNEL_SCALE = 0.2
"""What a kernel's learned part is multiplied by. The entries of the linear kernels are small, about 1/28, so they must
learn more slowly than other weights."""
NEIGHBOUR_SCALE = 0.06
"""The same for the part of the kernels that reaches into neighbouring blocks, which starts from zero."""
LARGEST = (1 << 15) - 1
"""Symbols of a larger magnitude do not occur."""
LEADING = 32
"""The codes of so many principal components are so large that bf16 would round them visibly: the linear transform
computes them in fp32 always."""
EXTRA = 32.0
"""8-bit units per unit of what the analysis network adds to the linear codes."""


@dataclass(frozen=True)
class HyperpriorConfig:
    codes: int = 320
    """Code values per 16x16 block."""
    width8: int = 128
    """Channels at 1/8 of the resolution."""
    analysis8: int = 2
    """Residual blocks at 1/8 in the analysis."""
    synthesis8: int = 3
    width16: int = 192
    analysis16: int = 2
    synthesis16: int = 1
    hyper: int = 64
    """Side symbols per 64x64 block."""
    features: int = 128
    context: int = 128
    hidden: int = 256
    rate_points: int = 8
    coarsest: float = 180.0
    """Quantiser's step at the lowest rate, in 8-bit units."""
    octaves: float = 4.4
    """By how many factors of two the step falls towards the highest rate."""

    @property
    def scales(self) -> ScalesConfig:
        return ScalesConfig(codes=self.codes, hyper=self.hyper, rate_points=self.rate_points)


class Block(nn.Module):
    """x + conv(act(conv(x))), 3x3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight, a=0.1)
        nn.init.normal_(self.conv2.weight, std=0.2 / (9 * width) ** 0.5)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.leaky_relu(self.conv1(x), 0.1))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Analysis(nn.Module):
    """Features of image units -> what is added to the linear codes, `[N,codes,H/16,W/16]`."""

    def __init__(self, c: HyperpriorConfig) -> None:
        super().__init__()
        self.head = nn.Conv2d(3 * 64, c.width8, 1)
        self.blocks8 = nn.Sequential(*(Block(c.width8) for _ in range(c.analysis8)))
        self.gain = nn.Parameter(torch.zeros(c.rate_points, c.width8))
        self.down = nn.Conv2d(c.width8, c.width16, 3, stride=2, padding=1)
        self.blocks16 = nn.Sequential(*(Block(c.width16) for _ in range(c.analysis16)))
        self.tail = _zero(nn.Conv2d(c.width16, c.codes, 1))

    def features(self, x: Tensor) -> Tensor:
        """Image units, unshuffled by 8, `[N,192,H/8,W/8]` -> `[N,width8,H/8,W/8]`, the part that does not depend on the
        rate."""
        return self.blocks8(self.head(x))

    def forward(self, features: Tensor, q: Tensor) -> Tensor:
        h = features * (1 + at_quality(self.gain, q)[:, :, None, None]).to(features.dtype)
        return self.tail(F.leaky_relu(self.blocks16(self.down(h)), 0.1))


class Synthesis(nn.Module):
    """Normalised codes `[N,codes,H/16,W/16]` -> what is added to the linear reconstruction, in quarters of a pixel's
    range, unshuffled by 8: `[N,192,H/8,W/8]`."""

    def __init__(self, c: HyperpriorConfig) -> None:
        super().__init__()
        self.head = nn.Conv2d(c.codes, c.width16, 1)
        self.blocks16 = nn.Sequential(*(Block(c.width16) for _ in range(c.synthesis16)))
        self.up = nn.Conv2d(c.width16, 4 * c.width8, 1)
        self.gain = nn.Parameter(torch.zeros(c.rate_points, c.width8))
        self.blocks8 = nn.Sequential(*(Block(c.width8) for _ in range(c.synthesis8)))
        self.tail = _zero(nn.Conv2d(c.width8, 3 * 64, 1))

    def forward(self, y: Tensor, q: Tensor) -> Tensor:
        h = F.pixel_shuffle(self.up(self.blocks16(self.head(y))), 2)
        h = h * (1 + at_quality(self.gain, q)[:, :, None, None]).to(h.dtype)
        return self.tail(F.leaky_relu(self.blocks8(h), 0.1))


class Means(nn.Module):
    """Means of the codes, normalised, from side symbols and from codes of earlier steps."""

    def __init__(self, c: HyperpriorConfig) -> None:
        super().__init__()
        self.expand1 = nn.Conv2d(c.hyper, 4 * c.features, 1)
        self.expand2 = nn.Conv2d(c.features, c.features, 3, padding=1)
        self.expand3 = nn.Conv2d(c.features, 4 * c.features, 1)
        self.expand4 = Block(c.features)
        self.gather1 = Layers(nn.Conv2d(c.codes, c.context, 1) for _ in range(STEPS - 1))
        self.gather2 = Layers(Block(c.context) for _ in range(STEPS - 1))
        self.combine1 = Layers(nn.Conv2d(c.features + (c.context if step else 0), c.hidden, 1) for step in range(STEPS))
        self.combine2 = Layers(_zero(nn.Conv2d(c.hidden, c.codes, 1)) for _ in range(STEPS))
        self.rate = nn.Parameter(torch.zeros(c.rate_points, STEPS, c.hidden))

    def expand(self, side: Tensor) -> Tensor:
        """Dequantised side symbols `[N,hyper,h,w]` -> features `[N,features,4h,4w]`."""
        h = F.leaky_relu(F.pixel_shuffle(self.expand1(side), 2), 0.1)
        h = F.leaky_relu(self.expand2(h), 0.1)
        return self.expand4(F.pixel_shuffle(self.expand3(h), 2))

    def forward(self, step: int, features: Tensor, earlier: Sequence[Tensor], q: Tensor) -> Tensor:
        """Means of the codes of `step` from the codes of `earlier` steps, all `[N,M]` as `take` orders them."""
        h = features
        if step:
            first = self.gather1[step - 1]
            assert first.bias is not None
            context = first_layer(first.weight, first.bias, earlier, *h.shape[2:])
            h = torch.cat([h, self.gather2[step - 1](context)], 1)
        h = self.combine1[step](F.leaky_relu(h, 0.1)) + at_quality(self.rate[:, step], q)[:, :, None, None]
        last = self.combine2[step]
        assert last.bias is not None
        with torch.autocast(h.device.type, enabled=False):  # what is rounded here is the mean itself
            return last_layer(last.weight, last.bias, F.leaky_relu(h.float(), 0.1), step)


def _asinh(x: Tensor) -> Tensor:
    """asinh of what is not negative; on a CPU several times as fast as torch's, which is not vectorised."""
    return torch.log(x + torch.sqrt(x * x + 1))


class HyperAnalysis(nn.Module):
    """Codes `[N,codes,h,w]` -> side codes `[N,hyper,ceil(h/4),ceil(w/4)]`, before rounding."""

    def __init__(self, c: HyperpriorConfig) -> None:
        super().__init__()
        self.head = nn.Conv2d(2 * c.codes, c.width16, 1)
        self.down1 = nn.Conv2d(c.width16, c.width16, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(c.width16, c.width16, 3, stride=2, padding=1)
        self.tail = nn.Conv2d(c.width16, c.hyper, 1)

    def forward(self, y: Tensor) -> Tensor:
        height, width = y.shape[2:]
        y = F.pad(y, (0, -width % SIDE, 0, -height % SIDE), mode="replicate")
        magnitude = y.abs()
        h = torch.cat([y.sign() * _asinh(magnitude), _asinh(2 * magnitude)], 1)
        h = F.leaky_relu(self.head(h), 0.1)
        h = F.leaky_relu(self.down2(F.leaky_relu(self.down1(h), 0.1)), 0.1)
        return self.tail(h)


def lagrange_multiplier(q: Tensor) -> Tensor:
    """Bits per pixel that a squared error of one (8-bit units, mean over pixels and channels) costs at the rate `q`.

    From the lowest to the highest rate it rises by 9.2 octaves, which takes photographs from about 0.05 to 2 bits per
    pixel.
    """
    return 0.0004 * torch.exp2(9.2 * q)


def bits_per_point(q: Tensor) -> Tensor:
    """Bits per pixel that a point of SSIMULACRA2 costs at the rate `q`.

    At each rate about what makes the same rate the best one as `lagrange_multiplier` does for squared errors.
    """
    return 0.00047 * torch.exp2(8.64 * q)


def distortion(target: Tensor, decoded: Tensor, q: Tensor, share: float) -> tuple[Tensor, dict[str, Tensor]]:
    """What decoded pixels lack of the target, `[N]` in bits per pixel; and what was measured: `mse` in 8-bit units, and
    where `share` is not 0, `ssimulacra2`.

    Both are float `[N,3,H,W]` in [0,1]. SSIMULACRA2 counts to a share of `share`, squared error counts to the rest.
    """
    mse = (decoded - target).square().flatten(1).mean(1) * 255.0**2
    bits_lost, measured = (1 - share) * lagrange_multiplier(q) * mse, {"mse": mse}
    if share:
        measured["ssimulacra2"] = score = ssimulacra2(target, decoded)
        bits_lost = bits_lost + share * bits_per_point(q) * (100 - score)
    return bits_lost, measured


@functools.cache
def _saved() -> Tensor:
    """Bits saved by a magnitude of n instead of n + 1, for n = 0..15, by index: `[LEVELS * 16]`."""
    magnitudes, indexes = (torch.arange(n, dtype=torch.float32) for n in (17, LEVELS))
    cost = bits(magnitudes.expand(LEVELS, -1), indexes[:, None])
    return torch.diff(cost, dim=1).flatten()


def _decide(residual: Tensor, index: Tensor, multiplier: Tensor) -> Tensor:
    """`residual` rounded, or one step less where the squared error that adds, times `multiplier`, is less than the bits
    that are saved."""
    symbol = residual.round()
    size = symbol.abs()
    place = index.round().clamp_(0, LEVELS - 1).mul_(16).add_((size - 1).clamp_(0, 15))
    gain = _saved().to(residual.device)[place.int()]
    added = 2 * (residual.abs() - size) + 1
    return symbol - symbol.sign() * (multiplier * added < gain)


class _Clamp(torch.autograd.Function):
    """Clamps to the tables' indexes. A gradient that leads back inside passes: no code is lost outside."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, LEVELS - 1)

    @staticmethod
    def backward(ctx: BackwardCFunction, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(((x < 0) & (grad > 0)) | ((x > LEVELS - 1) & (grad < 0)), 0.0, grad)


def _round(x: Tensor) -> Tensor:
    """Rounds; the gradient passes straight through."""
    return x + (x.round() - x).detach()


class Hyperprior(nn.Module):
    """See the module's docstring. Pixels are `[N,3,H,W]` float in [0,1]; `q` `[N]` in [0,1] is the rate."""

    task = "compress"
    multiple = BLOCK
    linear: Tensor
    spread: Tensor
    analysis_kernels: Tensor | None
    synthesis_kernels: Tensor | None

    def __init__(self, config: HyperpriorConfig = HyperpriorConfig()) -> None:
        super().__init__()
        self.config = c = config
        self.analysis = Analysis(c)
        self.synthesis = Synthesis(c)
        self.hyper_analysis = HyperAnalysis(c)
        self.means = Means(c)
        self.scales = FloatScales(c.scales)
        self.log_gain = nn.Parameter(torch.zeros(c.rate_points, c.codes))
        self.register_buffer("linear", torch.zeros(c.codes, 3 * BLOCK**2))
        """Orthonormal rows: the principal components of the blocks."""
        self.analysis_shift = nn.Parameter(torch.zeros(c.codes, 3 * 64, 4, 4))
        self.synthesis_shift = nn.Parameter(torch.zeros(c.codes, 3 * 64, 4, 4))
        """How far the learned kernels have moved from the principal components; see `_kernels`."""
        self.register_buffer("spread", torch.ones(c.codes))
        """Standard deviation of each component, in 8-bit units."""
        self.register_buffer("analysis_kernels", None, persistent=False)
        self.register_buffer("synthesis_kernels", None, persistent=False)
        """The linear transform's kernels, those of the synthesis in parts of 255, where `fold` has computed them."""

    # -- the linear autoencoder -------------------------------------------------------------------------

    @torch.no_grad()
    def fit_linear(self, blocks: Tensor) -> None:
        """Sets the shortcut, and the start of the scales, from training blocks `[M,768]` in 8-bit units.

        A block's values are ordered as `F.pixel_unshuffle` orders them.
        """
        centred = (blocks - 127.5).double()
        variance, components = torch.linalg.eigh(centred.T @ centred / len(blocks))
        order = variance.argsort(descending=True)[: self.config.codes]
        self.linear.copy_(components[:, order].T)
        self.spread.copy_(variance[order].clamp(min=0).sqrt())
        q = torch.linspace(0, 1, self.config.rate_points)
        sigma = self.spread / self.steps(q) * 0.6
        self.scales.base.copy_((sigma / SMALLEST).log() / STEP)

    def _kernels(self, shift: Tensor) -> Tensor:
        """The linear transform's kernels, 32x32 pixels on a grid of 16, unshuffled by 8: `[codes,192,4,4]`."""
        halves = self.linear.view(-1, 3, 2, 8, 2, 8).permute(0, 1, 3, 5, 2, 4).reshape(-1, 3 * 64, 2, 2)
        inner = torch.full((2, 2), KERNEL_SCALE, dtype=shift.dtype, device=shift.device)
        return F.pad(halves, (1, 1, 1, 1)) + F.pad(inner, (1, 1, 1, 1), value=NEIGHBOUR_SCALE) * shift

    @torch.no_grad()
    def fold(self) -> None:
        """Computes the linear transform's kernels once and for all: for networks that are not trained any more."""
        self.analysis_kernels = self._kernels(self.analysis_shift).contiguous(memory_format=torch.channels_last)
        pixels = self._kernels(self.synthesis_shift) / 255
        self.synthesis_kernels = pixels.contiguous(memory_format=torch.channels_last)

    def _small_dtype(self, x: Tensor) -> torch.dtype | None:
        """The precision of the linear transform's small codes, where it is not fp32; training keeps it in fp32."""
        kind = x.device.type
        folded = self.analysis_kernels is not None and self.config.codes > LEADING
        return torch.get_autocast_dtype(kind) if folded and torch.is_autocast_enabled(kind) else None

    def _linear_analysis(self, parts: Tensor) -> Tensor:
        """8-bit units, unshuffled by 8, with 8 pixels more on each side, `[N,192,H/8+2,W/8+2]` -> linear codes in 8-bit
        units."""
        small = self._small_dtype(parts)
        with torch.autocast(parts.device.type, enabled=False):
            folded = self.analysis_kernels
            kernels = self._kernels(self.analysis_shift) if folded is None else folded
            if small is None:
                return F.conv2d(parts, kernels, stride=2)
            leading = F.conv2d(parts, kernels[:LEADING], stride=2)
            others = F.conv2d(parts.to(small), kernels[LEADING:].to(small), stride=2)
            return torch.cat([leading, others.float()], 1)

    def _linear_synthesis(self, codes: Tensor) -> Tensor:
        """Codes in 8-bit units -> pixels, unshuffled by 8, `[N,192,H/8,W/8]`."""
        small = self._small_dtype(codes)
        with torch.autocast(codes.device.type, enabled=False):
            folded = self.synthesis_kernels
            kernels = self._kernels(self.synthesis_shift) / 255 if folded is None else folded
            grey = codes.new_full((3 * 64,), 0.5)
            if small is None:
                return F.conv_transpose2d(codes, kernels, grey, stride=2, padding=1)
            pixels = F.conv_transpose2d(codes[:, :LEADING], kernels[:LEADING], grey, stride=2, padding=1)
            others = codes[:, LEADING:].to(small), kernels[LEADING:].to(small)
            return pixels.add_(F.conv_transpose2d(*others, stride=2, padding=1))

    def steps(self, q: Tensor) -> Tensor:
        """The quantiser's step of each code in 8-bit units, `[N,codes]`."""
        c = self.config
        return c.coarsest * torch.exp2(-c.octaves * q)[:, None] * torch.exp(at_quality(self.log_gain, q))

    def _norm(self, q: Tensor) -> Tensor:
        """What codes in quantiser steps are divided by to be of order one for the networks. `[N,codes,1,1]`."""
        return ((self.spread + 8.0) / self.steps(q))[:, :, None, None]

    # -- transforms ---------------------------------------------------------------------------------------

    def analyse(self, x: Tensor, q: Tensor) -> Tensor:
        """Pixels -> codes `[N,codes,H/16,W/16]` in quantiser steps. H and W are multiples of 16."""
        return self.finish(self.prepare(x), q)

    def prepare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What of the analysis does not depend on the rate: linear codes in 8-bit units, and features at 1/8."""
        with torch.autocast(x.device.type, enabled=False):
            mirrored = F.pad(255 * x.float() - 127.5, (8, 8, 8, 8), mode="reflect")
            parts = F.pixel_unshuffle(mirrored, 8).contiguous(memory_format=torch.channels_last)
            inner = parts[:, :, 1:-1, 1:-1] * (4 / 255)
        return self._linear_analysis(parts), self.analysis.features(inner)

    def finish(self, prepared: tuple[Tensor, Tensor], q: Tensor) -> Tensor:
        """What `prepare` made -> codes in quantiser steps."""
        linear, features = prepared
        extra = self.analysis(features, q)
        with torch.autocast(linear.device.type, enabled=False):
            y: Tensor = (linear + EXTRA * extra.float()) / self.steps(q)[:, :, None, None]
            return y

    def synthesise(self, y: Tensor, q: Tensor) -> Tensor:
        """Codes in quantiser steps -> pixels, not clipped."""
        with torch.autocast(y.device.type, enabled=False):
            y = y.float().contiguous(memory_format=torch.channels_last)
            codes, normal = y * self.steps(q)[:, :, None, None], y / self._norm(q)
        return F.pixel_shuffle(self._linear_synthesis(codes).add_(self.synthesis(normal, q), alpha=0.25), 8)

    def predict(self, step: int, features: Tensor, earlier: Sequence[Tensor], q: Tensor) -> Tensor:
        """Means of the codes of `step`, in quantiser steps, from the codes of `earlier` steps; all `[N,M]`."""
        grid = self._norm(q).expand(-1, -1, *features.shape[2:])
        normal = [codes / take(grid, number) for number, codes in enumerate(earlier)]
        return self.means(step, features, normal, q).float() * take(grid, step)

    # -- coding, without the coder --------------------------------------------------------------------------

    @torch.no_grad()
    def quantise(self, y: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Codes in quantiser steps -> side symbols and symbols, both int16.

        A code is rounded towards zero where that saves more bits than the error it adds costs (rate-distortion
        optimised quantisation), by the real-valued scales: nothing that a decoder would have to know.
        """
        height, width = y.shape[2:]
        y = y.clamp(-LARGEST / 2, LARGEST / 2)
        side_step = self.scales.side_step(q)
        z = (self.hyper_analysis(y) / side_step).round().clamp(-LARGEST, LARGEST)
        side = z * side_step
        features = self.scales.expand(side)[:, :, :height, :width]
        multiplier = self._error_cost(y, q)
        symbols = torch.zeros_like(y)
        codes: list[Tensor] = []
        magnitudes: list[Tensor] = []
        for step, mean in self._walk(side, codes, y.shape, q):
            index = self.scales(step, features, magnitudes, q)
            symbol = _decide(take(y, step) - mean, index, take(multiplier, step))
            put(symbols, step, symbol)
            codes.append(symbol + mean)
            magnitudes.append(symbol.abs())
        return z.short(), symbols.short()

    @torch.no_grad()
    def dequantise(self, z: Tensor, symbols: Tensor, q: Tensor) -> Tensor:
        """Side symbols and symbols -> codes in quantiser steps: the mirror of `quantise`."""
        known = torch.empty(
            symbols.shape, dtype=torch.float32, device=symbols.device, memory_format=torch.channels_last
        )
        codes: list[Tensor] = []
        side = z.float() * self.scales.side_step(q)
        for step, mean in self._walk(side, codes, symbols.shape, q):
            codes.append(take(symbols, step) + mean)
            put(known, step, codes[-1])
        return known

    def spent_bits(self, z: Tensor, symbols: Tensor, codes: Tensor, q: Tensor) -> Tensor:
        """Bits `[N]` of symbols and side symbols by the real-valued scales.

        `z` and `symbols` as from `quantise`, `codes` from `dequantise`. The gradient that reaches `codes` says how each
        would make those of later steps cheaper; what its own symbol costs is taken as given.
        """
        height, width = codes.shape[2:]
        side = z.float() * self.scales.side_step(q)
        features = self.scales.expand(side)[:, :, :height, :width]
        index = self.scales.side_index(q).clamp(0, LEVELS - 1)[:, :, None, None].expand(z.shape)
        total = bits(z.float(), index).flatten(1).sum(1)
        known: list[Tensor] = []
        magnitudes: list[Tensor] = []
        for step, mean in self._walk(side, known, codes.shape, q):
            index = self.scales(step, features, magnitudes, q).clamp(0, LEVELS - 1)
            code = take(codes, step)
            symbol = take(symbols, step).to(code)
            total = total + bits(symbol + mean.detach() - mean, index).sum(1)
            known.append(code)
            magnitudes.append((symbol + code - code.detach()).abs())
        return total

    def _walk(self, side: Tensor, codes: list[Tensor], shape: torch.Size, q: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Step by step the means of its codes; the caller appends the codes themselves in between."""
        features = self.means.expand(side)[:, :, : shape[2], : shape[3]]
        for step in range(STEPS):
            yield step, self.predict(step, features, codes, q)

    # -- training ---------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, q: Tensor, *, decide: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels -> reconstruction, bits of the symbols `[N]`, bits of the side symbols `[N]`.

        The rate is charged on codes with uniform noise (Balle et al. 2018), the reconstruction sees rounded ones.
        With `decide` they are rounded as the encoder will round them, by rate and distortion, and the scales and what
        they cost are learned from these symbols.
        """
        y = self.analyse(x, q)
        z = self.hyper_analysis(y)
        height, width = y.shape[2:]
        with torch.autocast(x.device.type, enabled=False):
            side_step = self.scales.side_step(q)
            z = z.float() / side_step
            index = _Clamp.apply(self.scales.side_index(q))[:, :, None, None].expand_as(z)
            side_bits = bits(z + torch.rand_like(z) - 0.5, index).flatten(1).sum(1)
            side = _round(z) * side_step
        mean_features = self.means.expand(side)[:, :, :height, :width]
        scale_features = self.scales.expand(side)[:, :, :height, :width]
        multiplier = self._error_cost(y, q) if decide else None
        known = torch.empty_like(y)
        codes: list[Tensor] = []
        magnitudes: list[Tensor] = []
        noisy, indexes, symbols = [], [], []
        for step in range(STEPS):
            code = take(y, step)
            mean = self.predict(step, mean_features, codes, q)
            residual = code - mean
            indexes.append(self.scales(step, scale_features, magnitudes, q))
            noisy.append(residual + torch.rand_like(residual) - 0.5)
            if multiplier is None:
                symbol = _round(residual)
            else:
                with torch.no_grad():
                    chosen = _decide(residual, indexes[-1], take(multiplier, step))
                symbol = residual + (chosen - residual).detach()
            symbols.append(symbol)
            codes.append(symbol + mean)
            magnitudes.append(symbol.abs())
            put(known, step, codes[-1])
        with torch.autocast(x.device.type, enabled=False):
            index = _Clamp.apply(torch.cat(indexes, 1))
            code_bits = self._code_bits(torch.cat(noisy, 1), index, torch.cat(symbols, 1) if decide else None)
        return self.synthesise(known, q), code_bits, side_bits

    @staticmethod
    def _code_bits(noisy: Tensor, index: Tensor, symbols: Tensor | None) -> Tensor:
        """Bits `[N]` of codes; given their symbols, these are what is counted, and the noisy ones lend the slope."""
        if symbols is None:
            return bits(noisy, index).sum(1)
        slope = bits(noisy, index.detach()).sum(1)
        return bits(symbols.detach(), index).sum(1) + slope - slope.detach()

    def _error_cost(self, y: Tensor, q: Tensor) -> Tensor:
        """Bits that a squared error of one quantiser step costs, for codes `y`; see `_decide`."""
        per_step = ERROR_WEIGHT / 3 * lagrange_multiplier(q)[:, None, None, None] * self.steps(q)[:, :, None, None] ** 2
        return per_step.expand_as(y)
