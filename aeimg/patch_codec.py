"""Small autoencoders of grey images as codecs: pictures of any size and colour, block by block.

    encode       pixels -> blocks -> codes, rounded to multiples of a step of their own
    to_bytes     these integers through the range coder
    from_bytes, decode       the mirror

Which of the coder's tables a code value's symbols follow at each quality was found in training and lies in the weights
file, as integers: so the coder never computes in floating point.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .entropy import Decoder, Encoder, Tables, join_parts, split_parts
from .errors import ChecksumMismatch, InvalidLatent
from .tiles import as_float, as_pixels, pad, padded

BLOCK_SIDE = 512
"""Of the blocks that a network of convolutions codes one by one, in pixels."""
PART = 1024
"""Blocks that are coded as one stream. Part of the format."""
BATCH_VALUES = 1 << 22
"""How many pixels of blocks are on the device at once."""


def block_step(quality: int) -> float:
    """The quantiser's step, in standard deviations of a code value: from 2 at quality 1 to 1/16 at 100."""
    return 2.0 ** (1 - 5 * quality / 100)


@dataclass(frozen=True)
class Blocks:
    """The integers that stand for a picture: `[blocks,D,...]`, int32, the blocks of its first channel first."""

    channels: int
    codes: Tensor


class BlockCodec:
    """A small autoencoder of grey images, ready to code: pictures of any size and colour go through it block by block.

    Networks of fixed size see blocks of that size, others blocks of at most `BLOCK_SIDE`; each channel of a colour
    picture is a picture of its own.
    """

    task = "compress"

    errors: np.ndarray
    """Percentiles 0..100 of the mean squared errors at which its training images came back, pixels in [0,1]."""

    def __init__(self, network: Any, tensors: Mapping[str, Tensor], label: str, digest: bytes) -> None:
        self.network, self.label, self.digest = network, label, digest
        self.centre, self.spread = tensors["code/centre"].float(), tensors["code/spread"].float()
        self.index = tensors["code/index"].numpy()
        self.errors = tensors["code/errors"].float().numpy()
        # Of the symbols 0, 1, 2, ..., and the escape: negative ones are as likely.
        half = tensors["code/tables"].numpy()
        self.tables = Tables(np.concatenate([half[:, -2:0:-1], half], 1))

    def to(self, device: torch.device) -> BlockCodec:
        """Moves the network."""
        self.network.to(device)
        return self

    def _layout(self, height: int, width: int) -> tuple[int, int, int]:
        """Side of the blocks, and how many there are downwards and across."""
        multiple = getattr(self.network, "multiple", None)
        side = self.network.side if multiple is None else min(BLOCK_SIDE, padded(max(height, width), multiple))
        return side, padded(height, side) // side, padded(width, side) // side

    def _code_shape(self, side: int) -> tuple[int, ...]:
        return tuple(self.network.code_shape(side))

    def _scaled(self, values: Tensor, like: Tensor) -> Tensor:
        return values.to(like.device).view(1, -1, *[1] * (like.dim() - 2))

    @torch.inference_mode()
    def analyse(self, x: Tensor, device: torch.device) -> Tensor:
        """Pixels `[N,C,H,W]` -> codes of all blocks, `[N,C*blocks,D,...]`, float, on the CPU."""
        side, down, across = self._layout(x.shape[2], x.shape[3])
        pictures = []
        for picture in x:
            grey = pad(as_float(picture).clamp(0, 1)[:, None], side * down, side * across)
            blocks = grey.unfold(2, side, side).unfold(3, side, side).reshape(-1, 1, side, side)
            parts = torch.split(blocks, max(1, BATCH_VALUES // side**2))
            pictures.append(torch.cat([self.network.encode(part.to(device)).float().cpu() for part in parts]))
        return torch.stack(pictures)

    @torch.inference_mode()
    def synthesise(
        self, codes: Tensor, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Codes as of `analyse` -> pixels `[N,C,H,W]` of `dtype`, on the CPU; `shape` is their `(C,H,W)`."""
        channels, height, width = shape
        side, down, across = self._layout(height, width)
        result = torch.empty(len(codes), *shape, dtype=dtype)
        for place, picture in zip(result, codes, strict=True):
            parts = torch.split(picture, max(1, BATCH_VALUES // side**2))
            blocks = torch.cat([as_pixels(self.network.decode(part.to(device)), dtype) for part in parts])
            whole = blocks.view(channels, down, across, side, side).permute(0, 1, 3, 2, 4)
            place.copy_(whole.reshape(channels, down * side, across * side)[:, :height, :width])
        return result

    def encode(
        self, x: Tensor, quality: int, device: torch.device, dtype: torch.dtype, effort: int = 1
    ) -> list[Blocks]:
        """Pixels `[N,C,H,W]` -> for each picture its blocks' symbols, on the CPU. There is nothing to try harder."""
        pictures = []
        for codes in self.analyse(x, device):
            step = self._scaled(self.spread * block_step(quality), codes)
            pictures.append(Blocks(x.shape[1], ((codes - self._scaled(self.centre, codes)) / step).round().int()))
        return pictures

    def decode(
        self, latents: list[Blocks], shape: tuple[int, int, int], quality: int, device: torch.device,
        dtype: torch.dtype, depth: int = 8,
    ) -> Tensor:  # fmt: skip
        """The mirror of `encode`: pixels `[N,C,H,W]` on the CPU, uint8 or uint16."""
        codes = torch.stack([latent.codes for latent in latents]).float()
        like = codes[0]
        codes = codes * self._scaled(self.spread * block_step(quality), like) + self._scaled(self.centre, like)
        return self.synthesise(codes, shape, device, torch.uint8 if depth == 8 else torch.uint16)

    def reconstruct(self, x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Pixels `[N,C,H,W]` -> what comes back of them, nothing rounded: float, on the CPU."""
        return self.synthesise(self.analyse(x, device), (x.shape[1], x.shape[2], x.shape[3]), device)

    def features(self, x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Pixels `[N,C,H,W]` -> `[N,D]`: the mean of the codes over channels, blocks and places."""
        codes = self.analyse(x, device)
        return codes.flatten(3).mean((1, 3)) if codes.dim() > 3 else codes.mean(1)

    def draw(self, count: int, side: int, generator: torch.Generator) -> Tensor:
        """Random codes of `count` pictures of `side` pixels a side, as of `analyse`; see `from_normal`."""
        block, down, across = self._layout(side, side)
        return self.from_normal(torch.randn((count, down * across, *self._code_shape(block)), generator=generator))

    def from_normal(self, noise: Tensor) -> Tensor:
        """Codes, as of `analyse`, for standard normal values: the same, of a network that was taught to have such
        codes; else as codes of its training images spread, each value by itself."""
        if getattr(self.network, "prior", False):
            return noise
        return noise * self._scaled(self.spread, noise[0]) + self._scaled(self.centre, noise[0])

    def _indexes(self, shape: tuple[int, ...], quality: int) -> np.ndarray:
        index = self.index[quality - 1].reshape(1, -1, *[1] * (len(shape) - 2))
        return np.broadcast_to(index, shape).reshape(-1).astype(np.int64)

    def to_bytes(self, latent: Blocks, quality: int) -> bytes:
        """Number of channels, u8; then `entropy.join_parts` of a stream for each `PART` blocks."""
        parts = []
        for part in torch.split(latent.codes, PART):
            symbols = part.numpy().reshape(-1)
            coder = Encoder(self.tables)
            coder.encode(symbols, self._indexes(tuple(part.shape), quality))
            parts.append((coder.finish(), _crc(symbols)))
        return bytes([latent.channels]) + join_parts(parts)

    def from_bytes(self, data: bytes, width: int, height: int, quality: int) -> Blocks:
        """The mirror of `to_bytes`. Raises `InvalidLatent` where `data` can't be what `to_bytes` wrote.

        Whether the lengths add up is seen before anything is decoded, and each part is checked before the next.
        """
        channels = data[0] if data else 0
        if channels not in (1, 3):
            raise InvalidLatent(f"the coded data states {channels} channels")
        side, down, across = self._layout(height, width)
        blocks = channels * down * across
        found = []
        for number, (stream, crc) in enumerate(split_parts(data[1:], -(-blocks // PART))):
            shape = (min(PART, blocks - number * PART), *self._code_shape(side))
            symbols = Decoder(self.tables, stream).decode(self._indexes(shape, quality))
            if _crc(symbols) != crc:
                raise ChecksumMismatch("the decoded symbols are not those that were encoded")
            found.append(torch.from_numpy(symbols.astype(np.int32)).view(shape))
        return Blocks(channels, torch.cat(found))


def _crc(symbols: np.ndarray) -> int:
    """CRC-32 of symbols as 32-bit little-endian integers."""
    return zlib.crc32(symbols.astype("<i4").tobytes())
