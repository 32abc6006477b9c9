"""What a loaded codec does to a batch. Encoding and decoding are mirrored neighbours:

    encode       pixels -> symbols       on the device, batched: networks in floating point
    to_bytes     symbols -> bytes        on the CPU: the integer scale network and the range coder
    from_bytes   bytes -> symbols        the same, backwards
    decode       symbols -> pixels       on the device, batched

What is coded is integers all through, so `to_bytes` and `from_bytes` agree on every machine, and a decoder on
other hardware gets the same symbols to the last one (their checksum is in the file) before any network runs in
floating point.

Pictures are coded in tiles of `TILE` code vectors a side, each on its own; the transforms see past the tile's edge.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .entropy import LEVELS, Decoder, Encoder, Tables, integer_tables, join_parts, split_parts
from .errors import ChecksumMismatch
from .models.hyperprior import BLOCK, LARGEST, SIDE, Hyperprior, bits_per_point, lagrange_multiplier
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
from .ssimulacra2 import ssimulacra2
from .tiles import Tile, counted, grid

TILE = 128
"""Side of the independently coded tiles, in code vectors (of 16x16 pixels). Part of the format."""
HALO = 8
"""How many code vectors past its own the transforms of a tile see; more than their reach of 7."""

PERCEPTUAL = 0.5
"""The share of the distortion that SSIMULACRA2 measures in refining; squared error measures the rest."""
REACH = 0.05
"""How far the first round of refining changes the codes, as a root mean square, in quantiser steps."""
FARTHEST = 0.6
"""No round changes a code further, in quantiser steps."""


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


_PreparedTile = tuple[Tensor, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Prepared:
    """Pictures, and the part of their analysis that does not depend on the rate."""

    pixels: Tensor
    tiles: list[_PreparedTile]


def tiles_of(height: int, width: int) -> Iterator[Tile]:
    """The tiles of a picture of so many pixels, on the grid of its code vectors."""
    return grid(padded(height, BLOCK) // BLOCK, padded(width, BLOCK) // BLOCK, TILE, HALO)


def _distortion(target: Tensor, decoded: Tensor, q: Tensor) -> Tensor:
    """What decoded pixels lack of the target, in bits, for each picture; both float `[N,3,H,W]` in [0,1]."""
    squared = (decoded - target).square().mean((1, 2, 3)) * 255**2
    score = ssimulacra2(target, decoded)
    per_pixel = (1 - PERCEPTUAL) * lagrange_multiplier(q) * squared + PERCEPTUAL * bits_per_point(q) * (100 - score)
    return target[0, 0].numel() * per_pixel


class HyperpriorCodec:
    """A `Hyperprior` network with its integer scales and its tables, ready to code."""

    task = "compress"

    def __init__(self, network: Hyperprior, tensors: Mapping[str, Tensor], label: str, digest: bytes) -> None:
        """`tensors` are those of the weights file. Raises `KeyError` or `ValueError` where its tables are none."""
        self.network = network
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
        return Prepared(x, [self._prepare(x, tile, device, dtype) for tile in tiles_of(*x.shape[2:])])

    def _prepare(self, x: Tensor, tile: Tile, device: torch.device, dtype: torch.dtype) -> _PreparedTile:
        area = tile.scaled(BLOCK)
        part = as_float(area.cut(x).to(device)).clamp(0, 1).expand(-1, 3, -1, -1)
        part = pad(part, area.bottom - area.top, area.right - area.left)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return part, self.network.prepare(part)

    @torch.inference_mode()
    def encode(
        self, x: Tensor | Prepared, quality: int, device: torch.device, dtype: torch.dtype, effort: int = 1
    ) -> list[list[Symbols]]:
        """Pixels `[N,C,H,W]` -> for each picture the symbols of its tiles, in raster order, on the CPU.

        Only one tile is ever on the device, or as floats in memory, unless all were prepared.
        """
        network = self.network
        pixels = x.pixels if isinstance(x, Prepared) else x
        q = self._q(len(pixels), quality, device)
        height, width = pixels.shape[2:]
        pictures: list[list[Symbols]] = [[] for _ in range(len(pixels))]
        for number, tile in enumerate(counted(tiles_of(height, width))):
            part, prepared = x.tiles[number] if isinstance(x, Prepared) else self._prepare(pixels, tile, device, dtype)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                y = network.finish(prepared, q)
            if effort > 1:
                y = self._refine(part, y, tile, (height, width), q, effort - 1, dtype)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                side, codes = network.quantise(tile.inner(y), q)
            for picture, z, s in zip(pictures, side.cpu(), codes.cpu(), strict=True):
                picture.append(Symbols(z, s))
        return pictures

    @torch.inference_mode()
    def features(self, x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Pixels `[N,C,H,W]` -> `[N,2*codes]`: mean and standard deviation of each code over the picture's places."""
        q = self._q(len(x), QUALITIES, device)
        total = squares = torch.zeros((), dtype=torch.float64)
        count = 0
        for tile in counted(tiles_of(x.shape[2], x.shape[3])):
            _, prepared = self._prepare(x, tile, device, dtype)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                y = tile.inner(self.network.finish(prepared, q)).double().cpu()
            total, squares, count = total + y.sum((2, 3)), squares + y.square().sum((2, 3)), count + y[0, 0].numel()
        mean = total / count
        return torch.cat([mean, (squares / count - mean.square()).clamp(min=0).sqrt()], 1).float()

    @torch.inference_mode(False)
    def _refine(
        self, part: Tensor, y: Tensor, tile: Tile, size: tuple[int, int], q: Tensor, rounds: int, dtype: torch.dtype
    ) -> Tensor:
        """Codes `y` of a tile whose quantised selves cost less; those around the tile stay.

        The cost is what training minimises: bits, squared error and SSIMULACRA2. Each round changes the codes against
        its gradient, quantises and decodes them, and keeps them where the cost has fallen; where it has not, the next
        round goes half as far. So no picture comes out worse by that cost. `size` is that of the picture in pixels:
        what lies beyond it does not count.
        """
        area = tile.scaled(BLOCK)
        rows, columns = (slice(0, end - start) for start, end in ((area.keep_top, size[0]), (area.keep_left, size[1])))
        around, q = y.clone(), q.clone()

        def pixels(x: Tensor) -> Tensor:
            return area.inner(x)[:, :, rows, columns]

        target = pixels(part.clone())

        def evaluate(codes: Tensor) -> tuple[Tensor, Tensor]:
            """The cost of each picture, and its gradient."""
            with torch.autocast(part.device.type, dtype, enabled=dtype != torch.float32):
                z, symbols = self.network.quantise(codes, q)
                quantised = self.network.dequantise(z, symbols, q).requires_grad_()
                with torch.enable_grad():
                    whole = around.clone()
                    tile.inner(whole).copy_(quantised)
                    decoded = pixels(self.network.synthesise(whole, q))
                    spent = self.network.spent_bits(z, symbols, quantised, q)
                    cost = spent + _distortion(target, decoded, q)
                    (gradient,) = torch.autograd.grad(cost.sum(), quantised)
            return cost.detach(), gradient

        best = tile.inner(around).clone()
        cost, gradient = evaluate(best)
        reach = torch.full_like(cost, REACH)
        for _ in range(rounds):
            # The square of the quantiser's step is what a code's error in steps costs in pixels.
            direction = gradient / self.network.steps(q)[:, :, None, None] ** 2
            direction = direction / direction.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-20)
            tried = best - (reach.view(-1, 1, 1, 1) * direction).clamp(-FARTHEST, FARTHEST)
            new_cost, new_gradient = evaluate(tried)
            better = new_cost < cost
            chosen = better.view(-1, 1, 1, 1)
            best, gradient = torch.where(chosen, tried, best), torch.where(chosen, new_gradient, gradient)
            cost, reach = torch.where(better, new_cost, cost), torch.where(better, 1.3 * reach, 0.5 * reach)
        tile.inner(around).copy_(best)
        return around

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
        network = self.network
        count = len(latents)
        channels, height, width = shape
        q = self._q(count, quality, device)
        rows, columns = padded(height, BLOCK) // BLOCK, padded(width, BLOCK) // BLOCK
        codes = torch.empty(count, network.config.codes, rows, columns, dtype=torch.float32)
        for number, tile in enumerate(tiles_of(height, width)):
            side = torch.stack([picture[number].side for picture in latents]).to(device)
            symbols = torch.stack([picture[number].codes for picture in latents]).to(device)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                tile.kept(codes).copy_(network.dequantise(side, symbols, q))
        result = torch.empty(count, *shape, dtype=torch.uint8 if depth == 8 else torch.uint16)
        for tile in counted(tiles_of(height, width)):
            part = tile.cut(codes).to(device)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                x = network.synthesise(part, q)
            area = tile.scaled(BLOCK)
            x = area.inner(x)
            x = x.mean(1, keepdim=True) if channels == 1 else x
            place = area.kept(result)
            place.copy_(as_pixels(x, result.dtype)[:, :, : place.shape[2], : place.shape[3]])
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

    @torch.inference_mode()
    def from_bytes(self, data: bytes, width: int, height: int, quality: int) -> list[Symbols]:
        """The mirror of `to_bytes`. Raises `InvalidLatent` where `data` can't be what `to_bytes` wrote.

        Whether the lengths add up is seen before anything is decoded, and each tile is checked before the next.
        """
        places = list(tiles_of(height, width))
        tiles = []
        for place, (stream, crc) in zip(places, split_parts(data, len(places)), strict=True):
            shape = (self.network.config.codes, place.keep_bottom - place.keep_top, place.keep_right - place.keep_left)
            tiles.append(self._decode_tile(stream, shape, quality))
            if tiles[-1].crc != crc:
                raise ChecksumMismatch("the decoded symbols are not those that were encoded")
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
