"""The task decompress: a latent file -> picture.

prepare   reads the file, and decodes its entropy code
run       a batch through the codec's synthesis
finish    gives the picture back
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import torch

from .. import container, registry
from ..contract import Codec
from ..errors import InputError, ModelError, UsageError, WrongWeights
from ..images import WRITABLE, Picture, pixel_limit, read_picture, read_plane
from ..manifest import digest
from ..metadata import sound
from ..paths import open_regular
from .options import DecompressOptions
from .pictures import (
    CODE_BYTES,
    Delivered,
    FileSource,
    Opened,
    PictureItem,
    Result,
    bytes_on_the_way,
    deliver,
    estimate_file,
    is_path,
    padded_size,
    read_bytes,
)

Array = np.ndarray


@dataclass(frozen=True)
class Latent:
    """A picture's latent, decoded from its file."""

    codec: Codec
    """The codec that made it, and turns it back."""
    symbols: Any
    """The codec's own."""
    quality: int
    """The quality at which it was encoded."""


@dataclass(frozen=True)
class DecompressItem(PictureItem):
    """A picture whose pixels are still to be made, unless the file stores it as an image file."""

    latent: Latent | None
    """None where the file stores an image file."""
    stored: bytes | None = None
    """That image file."""

    @property
    def nbytes(self) -> int:
        """The bytes in memory, with those of the codes and of the metadata."""
        codes = 0 if self.latent is None else CODE_BYTES * self.work
        metadata = sum(self.picture.metadata.sizes().values())
        return super().nbytes + codes + metadata + len(self.stored or b"")


@dataclass(frozen=True, kw_only=True)
class DecompressResult(Result[Delivered]):
    """The picture that a latent file holds."""

    model: str | None
    """The label of the codec; None where the file stores an image file."""
    quality: int | None
    """The quality at which it was encoded."""

    def figures(self) -> dict[str, Any]:
        return {} if self.model is None else {"model": self.model, "quality": self.quality}

    def sentence(self) -> str:
        made = "stored without loss" if self.model is None else f"quality {self.quality}, {self.model}"
        return f"{self.width}x{self.height}, {made}"


class Decompress:
    """See the module."""

    small = False

    def __init__(
        self,
        model: str | os.PathLike[str] | None,
        device: torch.device,
        dtype: torch.dtype,
        options: DecompressOptions,
    ) -> None:
        self.asked, self.device, self.dtype, self.options = model, device, dtype, options
        # Without a model, each latent file names its own.
        self.model: Codec | None = None if model is None else registry.get(model, "compress", device)

    def recipe(self) -> str:
        """Returns what is equal for runs that make the same of the same input: by model and options."""
        models = [] if self.model is None else [(self.model.label, self.model.digest.hex())]
        chosen = {"format": self.options.format, "image_quality": self.options.image_quality}
        about = ["Decompress", models, chosen, str(self.dtype)]
        return digest(json.dumps(about, sort_keys=True, default=str).encode())

    # -- the three steps ---------------------------------------------------------------------------------------

    def estimate(self, source: object) -> int:
        """Returns how many bytes a picture will hold, by the sections of its latent file."""
        if isinstance(source, bytes | bytearray):
            return _estimate(io.BytesIO(source), len(source))
        path = source.path if isinstance(source, FileSource) else source
        if not isinstance(path, str | os.PathLike):
            return 0
        with open_regular(path) as file:
            return _estimate(file, os.fstat(file.fileno()).st_size)

    def prepare(self, source: object) -> DecompressItem:
        """Reads a latent file and decodes its entropy code. Raises `InvalidLatent`, `WrongWeights`."""
        name, data = _read(source)
        suffix = source.suffix if isinstance(source, FileSource) else None
        latent = container.read(data, name)

        def opened(picture: Picture) -> Opened:
            kind = self.options.kind if not isinstance(source, FileSource) else "file" if suffix else "picture"
            return Opened(picture, kind, source, data, suffix)

        if isinstance(latent, container.Stored):
            picture = replace(read_picture(latent.data, name), name=latent.name, page=latent.page)
            return DecompressItem(opened(picture), None, latent.data)
        if latent.width * latent.height > pixel_limit():
            raise InputError(f"{name}: declares {latent.width}x{latent.height} pixels, more than is taken for honest")
        codec = self._codec(latent, name)
        try:
            symbols = codec.from_bytes(latent.data, latent.width, latent.height, latent.quality)
        except InputError as error:
            raise type(error)(f"{name}: {error}") from error
        return DecompressItem(opened(_empty(latent, name)), Latent(codec, symbols, latent.quality))

    def key(self, item: DecompressItem) -> Hashable:
        """Returns codec, quality, channels, depth and padded size."""
        latent = item.latent
        if latent is None:
            return None
        pixels = item.picture.pixels
        size = padded_size(item.picture, latent.codec.multiple)
        return (id(latent.codec), latent.quality, pixels.shape[0], pixels.dtype, *size)

    def run(self, items: list[DecompressItem]) -> list[Array | None]:
        """Returns the pixels `[C,H,W]` of each picture; None where the file stores an image file."""
        latents = [item.latent for item in items if item.latent is not None]
        if not latents:
            return [None] * len(items)
        pixels, first = items[0].picture.pixels, latents[0]
        shape = (pixels.shape[0], *padded_size(items[0].picture, first.codec.multiple))
        symbols = [latent.symbols for latent in latents]
        depth = 8 * pixels.itemsize
        return list(first.codec.decode(symbols, shape, first.quality, self.device, self.dtype, depth).numpy())

    def finish(self, item: DecompressItem, raw: Array | None) -> DecompressResult:
        """Gives the picture back."""
        picture, opened = item.picture, item.opened
        value: Delivered
        if raw is not None:
            value = deliver(replace(picture, pixels=raw[:, : picture.height, : picture.width]), opened, self.options)
        elif item.stored and opened.kind == "file" and WRITABLE.get(opened.suffix or "") == picture.format:
            value = item.stored  # it is wanted in the very format in which it is stored
        else:
            value = deliver(picture, opened, self.options)
        latent = item.latent
        return DecompressResult(
            value=value,
            width=picture.width,
            height=picture.height,
            warnings=picture.notes,
            model=None if latent is None else latent.codec.label,
            quality=None if latent is None else latent.quality,
        )

    def _codec(self, latent: container.Coded, name: str) -> Codec:
        try:
            codec = self.model or registry.labelled(latent.label, self.device)
        except ModelError as error:
            raise WrongWeights(f"{name}: was made with {latent.label!r:.99}: {error}") from error
        if (codec.label, codec.digest) != (latent.label, latent.digest):
            raise WrongWeights(
                f"{name}: was made with {latent.label!r:.99} ({latent.digest.hex()}), and these weights are "
                f"{codec.label} ({codec.digest.hex()}); name the right ones with --model FILE"
            )
        return codec


def _read(source: object) -> tuple[str, bytes]:
    """Returns the name, for messages, and the bytes of a latent file."""
    if isinstance(source, FileSource):
        source = source.path
    if is_path(source):
        path = os.fsdecode(source)
        return path, container.read_file(path)
    file = read_bytes(source)
    if file is None:
        raise UsageError(f"decompress takes latent files or their bytes, not {type(source).__name__}")
    return file[0] or "the latent file", file[1]


HEADER_BYTES = 1 << 20
"""An image file says its size within so many bytes."""


def _estimate(file: BinaryIO, size: int) -> int:
    found = container.outline(file)
    if found.stored is not None:
        file.seek(found.stored)
        return size + estimate_file(io.BytesIO(file.read(HEADER_BYTES)), size)
    pixels = found.width * found.height
    samples = pixels * (found.channels + found.alpha) * found.depth // 8
    return bytes_on_the_way(samples, size) + CODE_BYTES * pixels + found.metadata


def _empty(latent: container.Coded, name: str) -> Picture:
    """Returns the picture of a latent without its pixels, whose place takes no memory: its strides are zero."""
    zero = np.uint8(0) if latent.depth == 8 else np.uint16(0)
    empty = np.broadcast_to(zero, (latent.channels, latent.height, latent.width))
    alpha = None if latent.alpha is None else read_plane(latent.alpha, empty.shape[1:], empty.dtype, name)
    about, notes = sound(latent.metadata)
    return Picture(empty, alpha, about, latent.format, latent.name, tuple(notes), latent.page)
