"""Small autoencoders of grey images as codecs for pictures of any size and colour, which they code block by block.

    encode       pixels -> blocks -> codes, rounded to multiples of a step for each code value
    to_bytes     these integers -> bytes, by the range coder
    from_bytes   the mirror of `to_bytes`
    decode       the mirror of `encode`

Training has found which of the coder's tables the symbols of a code value follow at each quality. The weights file
holds that choice as integers, so that the coder never computes in floating point.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .entropy import LEVELS, Decoder, Encoder, Tables, integer_tables, join_parts, split_parts
from .errors import ChecksumMismatch, InvalidLatent
from .models.integer import QUALITIES
from .pixels import as_float, as_pixels, pad, padded

BLOCK_SIDE = 512
"""The largest side of the blocks that a network of convolutions codes one by one, in pixels."""
PART = 1024
"""How many blocks are coded as one stream. This is part of the format."""
BATCH_VALUES = 1 << 22
"""How many pixels of blocks are on the device at once."""


def block_step(quality: int) -> float:
    """Returns the quantiser's step, in standard deviations of a code value: from 2 at quality 1 to 1/16 at 100."""
    return 2.0 ** (1 - 5 * quality / 100)


@dataclass(frozen=True)
class Blocks:
    """The integers that stand for a picture."""

    channels: int
    """1 or 3."""
    codes: Tensor
    """int32 `[blocks,D,...]`, the blocks of the first channel first."""


class BlockNetwork(Protocol):
    """What `PatchCodec` needs of a network. It may also state `side`, `multiple` and `prior`."""

    def code_shape(self, side: int) -> tuple[int, ...]:
        """Returns the shape of the code of a block of `side` pixels a side."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Turns blocks `[N,1,side,side]`, float in [0,1], into codes `[N,D,...]`."""
        ...

    def decode(self, code: Tensor) -> Tensor:
        """Mirrors `encode`."""
        ...

    def to(self, device: torch.device, /) -> object:
        """Moves the network to `device`."""
        ...


class PatchCodec:
    """A small autoencoder of grey images that is ready to code pictures of any size and colour, block by block.

    A network of fixed size sees blocks of that size, another one sees blocks of at most `BLOCK_SIDE`. Each channel of a
    colour picture is coded as a picture of its own.
    """

    task = "compress"

    errors: np.ndarray
    """See `contract.Codec`."""

    def __init__(self, network: BlockNetwork, tensors: Mapping[str, Tensor], label: str, digest: bytes) -> None:
        """`tensors` are those of the weights file. Raises `KeyError` or `ValueError` where its tables are none."""
        self.network, self.label, self.digest = network, label, digest
        self.own_side: int | None = getattr(network, "side", None)
        self._multiple: int = getattr(network, "multiple", 1)
        self._has_prior: bool = getattr(network, "prior", False)
        if (self.own_side is not None and self.own_side < 1) or not 1 <= self._multiple <= BLOCK_SIDE:
            raise ValueError(f"a network of blocks of {self.own_side or self._multiple} pixels a side")
        values = (int(network.code_shape(self.own_side or self._multiple)[0]),)
        self.centre = _of_shape(tensors, "centre", values).float()
        self.spread = _of_shape(tensors, "spread", values).float()
        if not bool((self.spread > 0).all()):
            raise ValueError("code/spread: standard deviations are positive")
        index = _of_shape(tensors, "index", (QUALITIES, *values))
        if index.dtype != torch.uint8 or int(index.max()) >= LEVELS:
            raise ValueError(f"code/index: must be uint8 below {LEVELS}")
        self.index = index.numpy()
        self.errors = _of_shape(tensors, "errors", (101,)).float().numpy()
        # The file holds the tables of the symbols 0, 1, 2, ... and of the escape: negative symbols are as likely.
        half = integer_tables(tensors["code/tables"])
        self.tables = Tables(np.concatenate([half[:, -2:0:-1], half], 1))

    def to(self, device: torch.device) -> PatchCodec:
        """Moves the network to `device`."""
        self.network.to(device)
        return self

    def _layout(self, height: int, width: int) -> tuple[int, int, int]:
        """Returns the side of the blocks, and how many there are downwards and across."""
        side = self.own_side or min(BLOCK_SIDE, padded(max(height, width), self._multiple))
        return side, padded(height, side) // side, padded(width, side) // side

    def code_shape(self, side: int) -> tuple[int, ...]:
        """Returns the shape of the code of one block of `side` pixels a side."""
        return tuple(self.network.code_shape(side))

    def _scaled(self, values: Tensor, like: Tensor) -> Tensor:
        return values.to(like.device).view(1, -1, *[1] * (like.dim() - 2))

    @torch.inference_mode()
    def analyse(self, x: Tensor, device: torch.device) -> Tensor:
        """Turns pixels `[N,C,H,W]` into the codes of all blocks, `[N,C*blocks,D,...]`, float, on the CPU."""
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
        """Mirrors `analyse`: returns pixels `[N,C,H,W]` of `dtype`, on the CPU; `shape` is their `(C,H,W)`."""
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
        """Turns pixels `[N,C,H,W]` into the symbols of each picture's blocks, on the CPU. `effort` changes nothing."""
        pictures = []
        for codes in self.analyse(x, device):
            step = self._scaled(self.spread * block_step(quality), codes)
            pictures.append(Blocks(x.shape[1], ((codes - self._scaled(self.centre, codes)) / step).round().int()))
        return pictures

    def decode(
        self, latents: list[Blocks], shape: tuple[int, int, int], quality: int, device: torch.device,
        dtype: torch.dtype, depth: int = 8,
    ) -> Tensor:  # fmt: skip
        """Mirrors `encode`: returns pixels `[N,C,H,W]` on the CPU, uint8 or uint16.

        Raises `InvalidLatent` where a latent has not the channels of `shape`.
        """
        for latent in latents:
            if latent.channels != shape[0]:
                raise InvalidLatent(f"the coded data has {latent.channels} channels, and the picture has {shape[0]}")
        codes = torch.stack([latent.codes for latent in latents]).float()
        like = codes[0]
        codes = codes * self._scaled(self.spread * block_step(quality), like) + self._scaled(self.centre, like)
        return self.synthesise(codes, shape, device, torch.uint8 if depth == 8 else torch.uint16)

    def reconstruct(self, x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Turns pixels `[N,C,H,W]` into what comes back of them when no code is rounded: float, on the CPU."""
        return self.synthesise(self.analyse(x, device), (x.shape[1], x.shape[2], x.shape[3]), device)

    def features(self, x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Turns pixels `[N,C,H,W]` into `[N,D]`: the mean of the codes over channels, blocks and places."""
        codes = self.analyse(x, device)
        return codes.flatten(3).mean((1, 3)) if codes.dim() > 3 else codes.mean(1)

    def draw(self, count: int, side: int, generator: torch.Generator) -> Tensor:
        """Draws the codes of `count` pictures of `side` pixels a side, as `analyse` makes them; see `from_normal`."""
        block, down, across = self._layout(side, side)
        shape = (count, down * across, *self.code_shape(block))
        return self.from_normal(torch.randn(shape, generator=generator, dtype=torch.float32))

    def from_normal(self, noise: Tensor) -> Tensor:
        """Turns standard normal values into codes as `analyse` makes them.

        The codes of a network that was trained towards a normal prior are those values; those of another one are
        spread, value by value, as the codes of its training images are.
        """
        if self._has_prior:
            return noise
        return noise * self._scaled(self.spread, noise[0]) + self._scaled(self.centre, noise[0])

    def _indexes(self, shape: tuple[int, ...], quality: int) -> np.ndarray:
        index = self.index[quality - 1].reshape(1, -1, *[1] * (len(shape) - 2))
        return np.broadcast_to(index, shape).reshape(-1).astype(np.int64)

    def to_bytes(self, latent: Blocks, quality: int) -> bytes:
        """Writes the number of channels, u8, then `entropy.join_parts` of a stream for each `PART` blocks."""
        parts = []
        for part in torch.split(latent.codes, PART):
            symbols = part.numpy().reshape(-1)
            coder = Encoder(self.tables)
            coder.encode(symbols, self._indexes(tuple(part.shape), quality))
            parts.append((coder.finish(), _crc(symbols)))
        return bytes([latent.channels]) + join_parts(parts)

    def from_bytes(self, data: bytes, width: int, height: int, quality: int) -> Blocks:
        """Mirrors `to_bytes`. Raises `InvalidLatent` where `data` can't be what `to_bytes` wrote.

        The lengths are checked before anything is decoded, and each part is checked before the next one.
        """
        channels = data[0] if data else 0
        if channels not in (1, 3):
            raise InvalidLatent(f"the coded data states {channels} channels")
        side, down, across = self._layout(height, width)
        blocks = channels * down * across
        found = []
        for number, (stream, crc) in enumerate(split_parts(data[1:], -(-blocks // PART))):
            shape = (min(PART, blocks - number * PART), *self.code_shape(side))
            symbols = Decoder(self.tables, stream).decode(self._indexes(shape, quality))
            if _crc(symbols) != crc:
                raise ChecksumMismatch("the decoded symbols are not those that were encoded")
            found.append(torch.from_numpy(symbols.astype(np.int32)).view(shape))
        return Blocks(channels, torch.cat(found))


def _of_shape(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """Returns the tensor `code/NAME`. Raises `KeyError` or `ValueError` where it is not a real one of that shape."""
    found = tensors[f"code/{name}"]
    if found.shape != shape or found.is_complex():
        raise ValueError(f"code/{name} is {found.dtype} {list(found.shape)}, not {list(shape)}")
    return found


def _crc(symbols: np.ndarray) -> int:
    """Returns the CRC-32 of symbols as 32-bit little-endian integers."""
    return zlib.crc32(symbols.astype("<i4").tobytes())
