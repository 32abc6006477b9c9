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

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .entropy import LEVELS, Decoder, Encoder, Tables
from .errors import ChecksumMismatch, InvalidLatent, TruncatedLatent
from .models.hyperprior import BLOCK, SIDE, Hyperprior
from .models.integer import STEPS, IntegerScales, put, quality_to_q, take
from .tiles import grid, pad, padded

TILE = 128
"""Side of the independently coded tiles, in code vectors (of 16x16 pixels). Part of the format."""
HALO = 6
"""How many code vectors past its own the transforms of a tile see; more than their reach of 5."""


class Codec(Protocol):
    """What a model of the task "compress" must do. Pixels are `[N,3,H,W]` float in [0,1], quality is 1..100.

    `label` names model and version in the latent files, `digest` (8 bytes) tells one set of weights from another.
    """

    label: str
    digest: bytes

    def encode(self, x: Tensor, quality: int, device: torch.device, dtype: torch.dtype) -> list[Any]:
        """Pixels -> each picture's latent."""
        ...

    def to_bytes(self, latent: Any, quality: int) -> tuple[bytes, int]:
        """A latent -> its bytes and a CRC-32 of its symbols."""
        ...

    def from_bytes(self, data: bytes, crc: int, width: int, height: int, quality: int) -> Any:
        """The mirror of `to_bytes`; raises `InvalidLatent` for damaged data."""
        ...

    def decode(self, latents: list[Any], width: int, height: int, quality: int, device: torch.device,
               dtype: torch.dtype) -> Tensor:  # fmt: skip
        """Latents of pictures of one size -> pixels, not clipped, on the CPU."""
        ...


@dataclass(frozen=True)
class Symbols:
    """The integers that stand for one tile."""

    side: Tensor
    """int32 `[hyper,ceil(h/4),ceil(w/4)]`."""
    codes: Tensor
    """int32 `[codes,h,w]`."""


def _crc(tiles: list[Symbols]) -> int:
    crc = 0
    for tile in tiles:
        for part in (tile.side, tile.codes):
            crc = zlib.crc32(part.contiguous().numpy().astype("<i4", copy=False).tobytes(), crc)
    return crc


class HyperpriorCodec:
    """A `Hyperprior` network with its integer scales and its tables, ready to code."""

    task = "compress"

    def __init__(self, network: Hyperprior, tensors: Mapping[str, Tensor], label: str, digest: bytes) -> None:
        self.network = network
        self.label = label
        self.digest = digest
        integers = {k.removeprefix("integer/"): v for k, v in tensors.items() if k.startswith("integer/")}
        self.scales = IntegerScales(integers, network.config.scales, LEVELS)
        self.tables = Tables(tensors["tables"].numpy())

    def to(self, device: torch.device) -> HyperpriorCodec:
        """Moves the networks; the integer part stays on the CPU."""
        self.network.to(device)
        return self

    def _q(self, count: int, quality: int, device: torch.device) -> Tensor:
        return quality_to_q(torch.full((count,), quality, device=device))

    # -- device: pixels <-> symbols ------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(self, x: Tensor, quality: int, device: torch.device, dtype: torch.dtype) -> list[list[Symbols]]:
        """Pixels `[N,3,H,W]` -> for each picture the symbols of its tiles, in raster order, on the CPU."""
        network = self.network
        q = self._q(len(x), quality, device)
        rows, columns = (padded(side, BLOCK) // BLOCK for side in x.shape[2:])
        x = pad(x, rows * BLOCK, columns * BLOCK)
        pictures: list[list[Symbols]] = [[] for _ in range(len(x))]
        for tile in grid(rows, columns, TILE, HALO):
            part = tile.scaled(BLOCK).cut(x).to(device, torch.float32)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                y = network.analyse(part, q)
            side, codes = network.quantise(tile.inner(y), q)
            for picture, z, s in zip(pictures, side.cpu(), codes.cpu(), strict=True):
                picture.append(Symbols(z, s))
        return pictures

    @torch.inference_mode()
    def decode(
        self,
        latents: list[list[Symbols]],
        width: int,
        height: int,
        quality: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Tensor:
        """The symbols of pictures of one size -> pixels `[N,3,height,width]`, not clipped, on the CPU."""
        network = self.network
        count = len(latents)
        q = self._q(count, quality, device)
        rows, columns = padded(height, BLOCK) // BLOCK, padded(width, BLOCK) // BLOCK
        codes = torch.empty(count, network.config.codes, rows, columns)
        for number, tile in enumerate(grid(rows, columns, TILE, HALO)):
            side = torch.stack([picture[number].side for picture in latents]).to(device)
            symbols = torch.stack([picture[number].codes for picture in latents]).to(device)
            tile.kept(codes).copy_(network.dequantise(side, symbols, q))
        result = torch.empty(count, 3, rows * BLOCK, columns * BLOCK)
        for tile in grid(rows, columns, TILE, HALO):
            part = tile.cut(codes).to(device)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                x = network.synthesise(part, q)
            pixels = tile.scaled(BLOCK)
            pixels.kept(result).copy_(pixels.inner(x))
        return result[:, :, :height, :width]

    # -- CPU: symbols <-> bytes ----------------------------------------------------------------------------

    @torch.inference_mode()
    def to_bytes(self, latent: list[Symbols], quality: int) -> tuple[bytes, int]:
        """Symbols -> for each tile a u32 length and a stream; and the CRC-32 of the symbols."""
        parts = []
        for tile in latent:
            coder = Encoder(self.tables)
            for symbols, index in self.groups(tile, quality):
                coder.encode(symbols, index)
            stream = coder.finish()
            parts += [len(stream).to_bytes(4, "little"), stream]
        return b"".join(parts), _crc(latent)

    def groups(self, tile: Symbols, quality: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The symbols of a tile and their scale indexes, group by group in the order in which they are coded."""
        yield tile.side.flatten().numpy(), self._side_index(tile.side.shape, quality).flatten().numpy()
        features, magnitudes = self._context(tile.side, tile.codes.shape)
        for step in range(STEPS):
            index = self.scales.indexes(step, features, magnitudes, quality)
            symbols = take(tile.codes[None], step)
            yield symbols[0].numpy(), index.numpy()
            put(magnitudes[None], step, self.scales.magnitudes(symbols))

    @torch.inference_mode()
    def from_bytes(self, data: bytes, crc: int, width: int, height: int, quality: int) -> list[Symbols]:
        """The mirror of `to_bytes`. Raises `InvalidLatent` where `data` can't be what `to_bytes` wrote."""
        rows, columns = padded(height, BLOCK) // BLOCK, padded(width, BLOCK) // BLOCK
        tiles = []
        at = 0
        for part in grid(rows, columns, TILE, 0):
            length = int.from_bytes(data[at : at + 4], "little")
            stream = data[at + 4 : at + 4 + length]
            if len(stream) < length or at + 4 > len(data) or length % 4:
                raise TruncatedLatent("the coded data ends before its picture does")
            at += 4 + length
            shape = (self.network.config.codes, part.bottom - part.top, part.right - part.left)
            side_shape = (self.network.config.hyper, *(padded(n, SIDE) // SIDE for n in shape[1:]))
            decoder = Decoder(self.tables, stream)
            index = self._side_index(side_shape, quality)
            side = torch.from_numpy(decoder.decode(index.flatten().numpy())).view(side_shape)
            features, magnitudes = self._context(side, shape)
            known = torch.zeros(shape, dtype=torch.int32)
            for step in range(STEPS):
                index = self.scales.indexes(step, features, magnitudes, quality)
                symbols = torch.from_numpy(decoder.decode(index.numpy()))[None]
                put(known[None], step, symbols)
                put(magnitudes[None], step, self.scales.magnitudes(symbols))
            tiles.append(Symbols(side, known))
        if at != len(data):
            raise InvalidLatent("the coded data goes on behind its picture")
        if _crc(tiles) != crc:
            raise ChecksumMismatch("the decoded symbols are not those that were encoded")
        return tiles

    def _side_index(self, shape: tuple[int, ...], quality: int) -> Tensor:
        return self.scales.side_index(quality)[:, None, None].expand(shape)

    def _context(self, side: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The scale network's features, and room for the symbols' magnitudes, for codes of `shape`."""
        _, height, width = shape
        return self.scales.expand(side)[:, :height, :width], torch.zeros(*shape, dtype=torch.float64)
