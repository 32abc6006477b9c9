"""What a loaded codec does to a batch. Encoding and decoding are mirrored neighbours:

    encode       pixels -> symbols       on the device, batched: networks in floating point
    to_bytes     symbols -> bytes        on the CPU: the integer scale network and the range coder
    from_bytes   bytes -> symbols        the same, backwards
    decode       symbols -> pixels       on the device, batched

What is coded is integers all through, so `to_bytes` and `from_bytes` agree on every machine, and a decoder on
other hardware gets the same symbols to the last one (their checksum is in the file) before any network runs in
floating point.

Pictures are coded in tiles of `TILE` code vectors a side, each on its own. The transforms work on areas of `AREA` code
vectors a side, which are many times as large, and see past their edges. So a part of a picture is decoded from the
tiles around it alone, by `from_bytes_within` and `decode_within`.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .entropy import LEVELS, Decoder, Encoder, Tables, integer_tables, join_parts, split_parts
from .errors import ChecksumMismatch
from .models.hyperprior import BLOCK, LARGEST, SIDE, Hyperprior, distortion, lagrange_multiplier
from .models.integer import (
    EXACT,
    LARGEST_ACTIVATION,
    LARGEST_MAGNITUDE,
    LARGEST_SHIFT,
    QUALITIES,
    STEPS,
    IntegerScales,
    put,
    quality_to_q,
    take,
)
from .pixels import as_float, as_pixels, pad, padded
from .tiles import Box, Tile, Window, counted, grid

TILE = 64
"""Side of the independently coded tiles, in code vectors (of 16x16 pixels). Part of the format."""
AREA = 128
"""Side of what the transforms work on at once, in code vectors; a multiple of `TILE`."""
ANALYSIS_HALO = 7
"""How many code vectors past its own the analysis of an area sees; its reach is 6.5."""
SYNTHESIS_HALO = 5
"""How many code vectors past its own the synthesis of an area sees: its reach."""

PERCEPTUAL = 0.25
"""The share of the distortion that SSIMULACRA2 measures in refining; squared error measures the rest."""
ROUNDS = 2
"""Rounds of refining for each step of the effort above 1."""
CURVATURE = 0.8
"""The curvature of the cost that a round takes for given, in that of squared errors of an orthonormal synthesis."""
LERP = 0.6
"""How far the first round goes towards the minimum that it expects."""
FARTHEST = 1.0
"""That minimum lies no further from a quantised code than so many quantiser steps."""


@dataclass(frozen=True)
class Symbols:
    """The integers that stand for one tile."""

    side: Tensor
    """int16 `[hyper,ceil(h/4),ceil(w/4)]`."""
    codes: Tensor
    """int16 `[codes,h,w]`."""

    @property
    def crc(self) -> int:
        """CRC-32 of the side symbols, then the codes, in raster order, as 16-bit little-endian integers."""
        parts = (part.contiguous().numpy().astype("<i2", copy=False) for part in (self.side, self.codes))
        return functools.reduce(lambda crc, part: zlib.crc32(part.tobytes(), crc), parts, 0)


def _check_integers(integers: Mapping[str, Tensor], network: Hyperprior) -> None:
    """Raises `KeyError` or `ValueError` where `integers` are not what `integer.freeze` makes of a network like this
    one."""
    c = network.scales.config
    shapes: dict[str, tuple[int, ...]] = {
        "rate": (QUALITIES, STEPS, c.hidden), "base": (STEPS, QUALITIES, c.codes), "side": (QUALITIES, c.hyper),
        "side_step": (QUALITIES, c.hyper), "magnitude": (LARGEST_MAGNITUDE + 1,),
    }  # fmt: skip
    for name, module in network.scales.named_modules():
        if isinstance(module, nn.Conv2d):
            shapes[f"{name}.weight"] = (module.out_channels, module.weight[0].numel())
            shapes[f"{name}.shift"] = (module.out_channels,)
            if not name.startswith("combine"):
                shapes[f"{name}.bias"] = (module.out_channels,)
    bounds = {"side": (0, LEVELS - 1), "side_step": (1, LARGEST_ACTIVATION), "magnitude": (0, LARGEST_ACTIVATION)}
    for name, shape in shapes.items():
        found = integers[name]
        if found.shape != shape or found.dtype not in (torch.int8, torch.int32):
            raise ValueError(f"integer/{name} is {found.dtype} {list(found.shape)}, not integers {list(shape)}")
        low, high = bounds.get(name, (-EXACT, EXACT))
        if name.endswith(".shift"):
            low, high = 0, LARGEST_SHIFT
        if int(found.min()) < low or int(found.max()) > high:
            raise ValueError(f"integer/{name} has values outside {low}..{high}")


_PreparedArea = tuple[Tensor, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Prepared:
    """Pictures, and the part of their analysis that does not depend on the rate."""

    pixels: Tensor
    areas: list[_PreparedArea]


def vectors(height: int, width: int) -> tuple[int, int]:
    """How many code vectors a picture of so many pixels has downwards and across."""
    return padded(height, BLOCK) // BLOCK, padded(width, BLOCK) // BLOCK


def tiles_of(height: int, width: int) -> list[Tile]:
    """The independently coded tiles of a picture of so many pixels, on the grid of its code vectors."""
    return list(grid(*vectors(height, width), TILE, 0))


def areas_of(height: int, width: int) -> list[Tile]:
    """What the transforms see at once of a picture of so many pixels, on the grid of its code vectors."""
    return list(grid(*vectors(height, width), AREA, ANALYSIS_HALO))


def window_of(box: Box, height: int, width: int) -> Tile:
    """The code vectors that the pixels of `box` need in a picture of that size (`top:bottom`), and those that hold them
    (`keep_top:keep_bottom`)."""
    rows, columns = vectors(height, width)
    top, left = box.top // BLOCK, box.left // BLOCK
    bottom, right = padded(box.bottom, BLOCK) // BLOCK, padded(box.right, BLOCK) // BLOCK
    return _seen(top, bottom, left, right, rows, columns)


def _seen(top: int, bottom: int, left: int, right: int, rows: int, columns: int) -> Tile:
    """What the synthesis of these code vectors sees of `rows` by `columns` of them."""
    above, left_of = max(0, top - SYNTHESIS_HALO), max(0, left - SYNTHESIS_HALO)
    below, right_of = min(rows, bottom + SYNTHESIS_HALO), min(columns, right + SYNTHESIS_HALO)
    return Tile(above, below, left_of, right_of, top, bottom, left, right)


def _needed(tile: Tile, window: Tile) -> bool:
    """Whether a window needs code vectors of a tile."""
    down = tile.keep_top < window.bottom and window.top < tile.keep_bottom
    return down and tile.keep_left < window.right and window.left < tile.keep_right


def _place(whole: Tensor, part: Tensor, top: int, left: int) -> None:
    """Copies `part` `[N,C,h,w]` into `whole` `[N,C,H,W]` at a place that may lie partly outside."""
    rows, columns = (
        (max(0, start), min(end, start + side))
        for start, side, end in ((top, part.shape[2], whole.shape[2]), (left, part.shape[3], whole.shape[3]))
    )
    whole[:, :, slice(*rows), slice(*columns)] = part[
        :, :, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left
    ]


class HyperpriorCodec:
    """A `Hyperprior` network with its integer scales and its tables, ready to code."""

    task = "compress"

    def __init__(self, network: Hyperprior, tensors: Mapping[str, Tensor], label: str, digest: bytes) -> None:
        """`tensors` are those of the weights file. Raises `KeyError` or `ValueError` where its tables are none."""
        self.network = network
        network.fold()
        self.label = label
        self.digest = digest
        integers = {k.removeprefix("integer/"): v for k, v in tensors.items() if k.startswith("integer/")}
        _check_integers(integers, network)
        self.scales = IntegerScales(integers, network.config.scales, LEVELS)
        self.tables = Tables(integer_tables(tensors["tables"]))

    def to(self, device: torch.device) -> HyperpriorCodec:
        """Moves the networks; the integer part stays on the CPU."""
        self.network.to(device)
        return self

    def _q(self, count: int, quality: int, device: torch.device) -> Tensor:
        return quality_to_q(torch.full((count,), quality, device=device))

    # -- device: pixels <-> symbols ------------------------------------------------------------------------

    @torch.inference_mode()
    def prepare(self, x: Tensor, device: torch.device, dtype: torch.dtype) -> Prepared:
        """Pixels -> what `encode` takes in their place, to be spared most of the analysis at a second quality."""
        return Prepared(x, [self._prepare(x, area, device, dtype) for area in areas_of(*x.shape[2:])])

    def _prepare(self, x: Tensor, area: Tile, device: torch.device, dtype: torch.dtype) -> _PreparedArea:
        area = area.scaled(BLOCK)
        part = as_float(area.cut(x).to(device)).clamp(0, 1).expand(-1, 3, -1, -1)
        part = pad(part, area.bottom - area.top, area.right - area.left)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return part, self.network.prepare(part)

    @torch.inference_mode()
    def encode(
        self, x: Tensor | Prepared, quality: int, device: torch.device, dtype: torch.dtype, effort: int = 1
    ) -> list[list[Symbols]]:
        """Pixels `[N,C,H,W]` -> for each picture the symbols of its tiles, in raster order, on the CPU.

        Only one area is ever on the device, or as floats in memory, unless all were prepared.
        """
        network = self.network
        pixels = x.pixels if isinstance(x, Prepared) else x
        q = self._q(len(pixels), quality, device)
        height, width = pixels.shape[2:]
        found: dict[tuple[int, int], list[Symbols]] = {}
        for number, area in enumerate(counted(areas_of(height, width))):
            part, prepared = x.areas[number] if isinstance(x, Prepared) else self._prepare(pixels, area, device, dtype)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                y = network.finish(prepared, q)
            if effort > 1:
                y = self._refine(part, y, area, (height, width), q, ROUNDS * (effort - 1), dtype)
            y = area.inner(y)
            for tile in grid(y.shape[2], y.shape[3], TILE, 0):
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    side, codes = network.quantise(tile.kept(y), q)
                place = (area.keep_top + tile.keep_top, area.keep_left + tile.keep_left)
                found[place] = [Symbols(z, s) for z, s in zip(side.cpu(), codes.cpu(), strict=True)]
        return [[found[place][number] for place in sorted(found)] for number in range(len(pixels))]

    @torch.inference_mode()
    def features(self, x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Pixels `[N,C,H,W]` -> `[N,2*codes]`: mean and standard deviation of each code over the picture's places."""
        q = self._q(len(x), QUALITIES, device)
        total = squares = torch.zeros((), dtype=torch.float64)
        count = 0
        for area in counted(areas_of(x.shape[2], x.shape[3])):
            _, prepared = self._prepare(x, area, device, dtype)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                y = area.inner(self.network.finish(prepared, q)).double().cpu()
            total, squares, count = total + y.sum((2, 3)), squares + y.square().sum((2, 3)), count + y[0, 0].numel()
        mean = total / count
        return torch.cat([mean, (squares / count - mean.square()).clamp(min=0).sqrt()], 1).float()

    @torch.inference_mode(False)
    def _refine(
        self, part: Tensor, y: Tensor, area: Tile, size: tuple[int, int], q: Tensor, rounds: int, dtype: torch.dtype
    ) -> Tensor:
        """Codes `y` of an area whose quantised selves cost less; those around the area stay.

        The cost is bits, squared error and SSIMULACRA2. Each round takes a Newton step for each code, from its
        quantised value: by the gradient of the cost, with the bits that a code saves others, and by the curvature of
        squared errors. What comes of it is kept where the cost has fallen; where it has not, the next round goes half
        as far. So no picture comes out worse by that cost. `size` is that of the picture in pixels: what lies beyond
        it does not count.
        """
        around, q = y.clone(), q.clone()
        pixels = area.scaled(BLOCK)
        rows = slice(0, min(pixels.keep_bottom, size[0]) - pixels.keep_top)
        columns = slice(0, min(pixels.keep_right, size[1]) - pixels.keep_left)
        target = pixels.inner(part.clone())[:, :, rows, columns]

        def evaluate(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """The cost of each picture; the quantised codes, and the gradient of the cost by them."""
            with torch.autocast(part.device.type, dtype, enabled=dtype != torch.float32), torch.enable_grad():
                quantised, spent = self._spent(codes, q)
                whole = around.clone()
                area.inner(whole).copy_(quantised)
                decoded = pixels.inner(self.network.synthesise(whole, q))[:, :, rows, columns]
                cost = spent + target[0, 0].numel() * distortion(target, decoded, q, PERCEPTUAL)[0]
                (gradient,) = torch.autograd.grad(cost.sum(), quantised)
            return cost.detach(), quantised.detach(), gradient

        curvature = (2 / 3 * CURVATURE * lagrange_multiplier(q)[:, None] * self.network.steps(q) ** 2)[:, :, None, None]
        best = area.inner(around).clone()
        cost, quantised, gradient = evaluate(best)
        weight = torch.full_like(cost, LERP)
        for _ in range(rounds):
            expected = quantised - (gradient / curvature).clamp(-FARTHEST, FARTHEST)
            tried = torch.lerp(best, expected, weight.view(-1, 1, 1, 1))
            new_cost, new_quantised, new_gradient = evaluate(tried)
            better = new_cost < cost
            chosen = better.view(-1, 1, 1, 1)
            best, quantised = torch.where(chosen, tried, best), torch.where(chosen, new_quantised, quantised)
            gradient = torch.where(chosen, new_gradient, gradient)
            cost, weight = torch.where(better, new_cost, cost), torch.where(better, weight, 0.5 * weight)
        area.inner(around).copy_(best)
        return around

    def _spent(self, codes: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """The quantised codes of an area, a leaf of gradients, and the bits `[N]` that its tiles take."""
        network = self.network
        quantised = torch.empty_like(codes)
        coded = []
        tiles = list(grid(codes.shape[2], codes.shape[3], TILE, 0))
        for tile in tiles:
            side, symbols = network.quantise(tile.kept(codes), q)
            tile.kept(quantised).copy_(network.dequantise(side, symbols, q))
            coded.append((side, symbols))
        quantised.requires_grad_()
        spent = [
            network.spent_bits(*symbols, tile.kept(quantised), q) for tile, symbols in zip(tiles, coded, strict=True)
        ]
        return quantised, torch.stack(spent).sum(0)

    @torch.inference_mode()
    def decode(
        self,
        latents: list[list[Symbols]],
        shape: tuple[int, int, int],
        quality: int,
        device: torch.device,
        dtype: torch.dtype,
        depth: int = 8,
    ) -> Tensor:
        """The symbols of pictures of one shape -> pixels `[N,C,H,W]` on the CPU, uint8 or uint16.

        A grey picture is the mean of the three channels that the network makes.
        """
        whole = Window(shape[1], shape[2])
        return self.decode_within(latents, shape[0], whole, quality, device, dtype, depth)

    @torch.inference_mode()
    def decode_within(
        self,
        latents: Sequence[Sequence[Symbols | None]],
        channels: int,
        window: Window,
        quality: int,
        device: torch.device,
        dtype: torch.dtype,
        depth: int = 8,
    ) -> Tensor:
        """What `window` shows of pictures: `[N,C,h,w]`, the pixels that `decode` gives there, or means of them.

        `latents` may be those of `from_bytes_within`. Only the codes around the window, and one area as pixels in
        floating point, are in memory beside the result.
        """
        box, by = window.box, window.divisor
        within = window_of(box, window.height, window.width)
        q = self._q(len(latents), quality, device)
        codes = self._dequantise(latents, within, (window.height, window.width), q, dtype)
        result = torch.empty(len(latents), channels, *window.shape, dtype=torch.uint8 if depth == 8 else torch.uint16)
        origin = BLOCK * within.keep_top // by, BLOCK * within.keep_left // by
        skip = box.top // by - origin[0], box.left // by - origin[1]
        rows, columns = within.keep_bottom - within.keep_top, within.keep_right - within.keep_left
        down, across = within.keep_top - within.top, within.keep_left - within.left
        for area in counted(grid(rows, columns, AREA, 0)):
            seen = _seen(down + area.top, down + area.bottom, across + area.left, across + area.right, *codes.shape[2:])
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                x = self.network.synthesise(seen.cut(codes).to(device), q)
            x = seen.scaled(BLOCK).inner(x)
            x = x.mean(1, keepdim=True) if channels == 1 else x
            x = F.avg_pool2d(x.clamp(0, 1), by) if by > 1 else x
            _place(
                result, as_pixels(x, result.dtype), BLOCK * area.top // by - skip[0], BLOCK * area.left // by - skip[1]
            )
        return result

    def _dequantise(
        self, latents: Sequence[Sequence[Symbols | None]], within: Tile, size: tuple[int, int], q: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        """The codes `[N,codes,*,*]`, float32 on the CPU, of what a window sees of pictures of `size`."""
        shape = (within.bottom - within.top, within.right - within.left)
        whole = (len(latents), self.network.config.codes, *shape)
        result = torch.empty(whole, dtype=torch.float32, memory_format=torch.channels_last)
        for number, tile in enumerate(tiles_of(*size)):
            if not _needed(tile, within):
                continue
            symbols = [one for picture in latents if (one := picture[number]) is not None]
            side = torch.stack([one.side for one in symbols]).to(q.device)
            codes = torch.stack([one.codes for one in symbols]).to(q.device)
            with torch.autocast(q.device.type, dtype, enabled=dtype != torch.float32):
                found = self.network.dequantise(side, codes, q)
            _place(result, found, tile.keep_top - within.top, tile.keep_left - within.left)
        return result

    # -- CPU: symbols <-> bytes ----------------------------------------------------------------------------

    @torch.inference_mode()
    def to_bytes(self, latent: list[Symbols], quality: int) -> bytes:
        """Symbols -> for each tile its stream's length, u32, and the CRC of its symbols, u32; then the streams."""
        parts = []
        for tile in latent:
            coder = Encoder(self.tables)
            for symbols, scales in self.groups(tile, quality):
                coder.encode(symbols, scales)
            parts.append((coder.finish(), tile.crc))
        return join_parts(parts)

    def groups(self, tile: Symbols, quality: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The symbols of a tile and their scale indexes, group by group in the order in which they are coded."""
        yield tile.side.flatten().numpy(), self._side_index(tile.side.shape, quality).flatten().numpy()
        features = self.scales.expand(tile.side, quality)[:, : tile.codes.shape[1], : tile.codes.shape[2]]
        earlier: list[Tensor] = []
        for step in range(STEPS):
            index = self.scales.indexes(step, features, earlier, quality)
            symbols = take(tile.codes[None], step)[0]
            yield symbols.numpy(), index.numpy()
            earlier.append(self.scales.magnitudes(symbols))

    def from_bytes(self, data: bytes, width: int, height: int, quality: int) -> list[Symbols]:
        """The mirror of `to_bytes`. Raises `InvalidLatent` where `data` can't be what `to_bytes` wrote.

        Whether the lengths add up is seen before anything is decoded, and each tile is checked before the next.
        """
        found = self.from_bytes_within(data, Window(height, width), quality)
        return [tile for tile in found if tile is not None]

    @torch.inference_mode()
    def from_bytes_within(self, data: bytes, window: Window, quality: int) -> list[Symbols | None]:
        """Like `from_bytes`, but decodes only the tiles that `window` needs; None stands for each of the others."""
        places = tiles_of(window.height, window.width)
        within = window_of(window.box, window.height, window.width)
        tiles: list[Symbols | None] = []
        for place, (stream, crc) in zip(places, split_parts(data, len(places)), strict=True):
            if not _needed(place, within):
                tiles.append(None)
                continue
            shape = (self.network.config.codes, place.keep_bottom - place.keep_top, place.keep_right - place.keep_left)
            tile = self._decode_tile(stream, shape, quality)
            if tile.crc != crc:
                raise ChecksumMismatch("the decoded symbols are not those that were encoded")
            tiles.append(tile)
        return tiles

    def _decode_tile(self, stream: bytes, shape: tuple[int, int, int], quality: int) -> Symbols:
        side_shape = (self.network.config.hyper, *(padded(n, SIDE) // SIDE for n in shape[1:]))
        decoder = Decoder(self.tables, stream)

        def decode(index: Tensor) -> Tensor:
            symbols = decoder.decode(index.flatten().numpy())
            if symbols.size and np.abs(symbols.astype(np.int64)).max() > LARGEST:
                raise ChecksumMismatch("an impossible symbol in the entropy-coded data")
            return torch.from_numpy(symbols).short()

        side = decode(self._side_index(side_shape, quality)).view(side_shape)
        features = self.scales.expand(side, quality)[:, : shape[1], : shape[2]]
        codes = torch.empty(shape, dtype=torch.int16)
        earlier: list[Tensor] = []
        for step in range(STEPS):
            symbols = decode(self.scales.indexes(step, features, earlier, quality))
            put(codes[None], step, symbols[None])
            earlier.append(self.scales.magnitudes(symbols))
        return Symbols(side, codes)

    def _side_index(self, shape: tuple[int, ...], quality: int) -> Tensor:
        return self.scales.side_index(quality)[:, None, None].expand(shape)
