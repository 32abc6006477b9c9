"""The task decompress: a latent file -> picture.

prepare   reads the file, and decodes its entropy code
run       a batch through the codec's synthesis
finish    gives the picture back
"""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch

from .. import container, registry
from ..contract import Codec, WindowCodec
from ..errors import InputError, ModelError, UsageError, WrongWeights
from ..images import WRITABLE, Picture, pixel_limit, read_picture, read_plane
from ..manifest import digest
from ..metadata import sound
from ..paths import located, open_regular, size_of
from ..pixels import means, padded
from ..tiles import Window
from ..urls import Url, is_url
from .options import SCALES, DecompressOptions
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

    codec: Codec[Any]
    """The codec that made it, and turns it back."""
    symbols: Any
    """The codec's own."""
    quality: int
    """The quality at which it was encoded."""
    window: Window
    """What is decoded of the picture."""

    @property
    def held(self) -> int:
        """How many pixels the codes stand for, at most, that are in memory."""
        whole, box = self.window.height * self.window.width, self.window.box
        if isinstance(self.codec, WindowCodec):
            return min(whole, _held(box.width, box.height))
        return whole


@dataclass(frozen=True)
class DecompressItem(PictureItem):
    """A picture whose pixels are still to be made, unless the file stores it as an image file."""

    has_source: ClassVar[bool] = False

    latent: Latent | None
    """None where the file stores an image file."""
    stored: bytes | None = None
    """That image file."""

    @property
    def nbytes(self) -> int:
        """The bytes in memory, with those of the codes and of the metadata."""
        codes = 0 if self.latent is None else CODE_BYTES * self.latent.held
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
        self.model: Codec[Any] | None = None if model is None else registry.get(model, "compress", device)

    def with_options(self, options: DecompressOptions) -> Decompress:
        """Returns the same task with other options. It shares the codec, where one is named."""
        other = copy.copy(self)
        other.options = options
        return other

    def recipe(self) -> str:
        """Returns what is equal for runs that make the same of the same input: by model and options."""
        models = [] if self.model is None else [(self.model.label, self.model.digest.hex())]
        o = self.options
        chosen: dict[str, object] = {"format": o.format, "image_quality": o.image_quality}
        if o.crop is not None or SCALES[o.scale] > 1:
            chosen |= {"crop": o.crop, "scale": SCALES[o.scale]}
        about = ["Decompress", models, chosen, str(self.dtype)]
        return digest(json.dumps(about, sort_keys=True, default=str).encode())

    # -- the three steps ---------------------------------------------------------------------------------------

    def estimate(self, source: object) -> int:
        """Returns how many bytes a picture will hold, by the sections of its latent file."""
        if isinstance(source, bytes | bytearray):
            return _estimate(io.BytesIO(source), len(source), self.options)
        path = source.path if isinstance(source, FileSource) else source
        if not isinstance(path, str | os.PathLike):
            return 0
        if isinstance(path, Url) and path.status is not None:  # its sections are too far away for the caller's thread
            return bytes_on_the_way(EXPANSION * path.status.size, path.status.size)
        with open_regular(path) as file:
            return _estimate(file, size_of(file), self.options)

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
            window = self.options.window(picture.width, picture.height, name)
            part = _is_part(window)
            return DecompressItem(
                opened(_seen(picture, window) if part else picture), None, None if part else latent.data
            )
        if latent.width * latent.height > pixel_limit():
            raise InputError(f"{name}: declares {latent.width}x{latent.height} pixels, more than is taken for honest")
        window = self.options.window(latent.width, latent.height, name)
        codec = self._codec(latent, name)
        try:
            symbols = symbols_of(latent, codec, window)
        except InputError as error:
            raise type(error)(f"{name}: {error}") from error
        return DecompressItem(opened(_empty(latent, window, name)), Latent(codec, symbols, latent.quality, window))

    def key(self, item: DecompressItem) -> Hashable:
        """Returns codec, quality, channels, depth and padded size."""
        latent = item.latent
        if latent is None:
            return None
        pixels = item.picture.pixels
        about = (id(latent.codec), latent.quality, pixels.shape[0], pixels.dtype)
        if _is_part(latent.window):
            return (*about, latent.window)
        return (*about, *padded_size(item.picture, latent.codec.multiple))

    def run(self, items: list[DecompressItem]) -> list[Array | None]:
        """Returns the pixels `[C,H,W]` of each picture; None where the file stores an image file."""
        latents = [item.latent for item in items if item.latent is not None]
        if not latents:
            return [None] * len(items)
        pixels, first = items[0].picture.pixels, latents[0]
        symbols = [latent.symbols for latent in latents]
        return list(pixels_of(symbols, first, pixels.shape[0], 8 * pixels.itemsize, self.device, self.dtype))

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

    def _codec(self, latent: container.Coded, name: str) -> Codec[Any]:
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


# -- what is seen of a picture -----------------------------------------------------------------------------------


def symbols_of(latent: container.Coded, codec: Codec[Any], window: Window) -> Any:
    """Returns the symbols that `window` needs of a latent file. Raises `InvalidLatent`."""
    if _is_part(window) and isinstance(codec, WindowCodec):
        return codec.from_bytes_within(latent.data, window, latent.quality)
    return codec.from_bytes(latent.data, latent.width, latent.height, latent.quality)


def pixels_of(
    symbols: list[Any], like: Latent, channels: int, depth: int, device: torch.device, dtype: torch.dtype
) -> Array:
    """Returns the pixels `[N,C,h,w]`, uint8 or uint16, of pictures whose `symbols_of` share codec, quality and window
    with `like`. Where these are whole pictures, there may be padding below and to the right."""
    codec, window, quality = like.codec, like.window, like.quality
    if _is_part(window) and isinstance(codec, WindowCodec):
        return np.asarray(codec.decode_within(symbols, channels, window, quality, device, dtype, depth).numpy())
    size = (padded(window.height, codec.multiple), padded(window.width, codec.multiple))
    whole: Array = codec.decode(symbols, (channels, *size), quality, device, dtype, depth).numpy()
    return _cut(whole[..., : window.height, : window.width], window) if _is_part(window) else whole


def decode_latent(
    latent: container.Coded, codec: Codec[Any], device: torch.device, dtype: torch.dtype, window: Window | None = None
) -> Array:
    """Returns the pixels `[C,h,w]`, uint8 or uint16, of a picture in a latent file, or of what `window` shows of it.

    Alpha and metadata are in `latent`. Raises `InvalidLatent` for damaged data.
    """
    window = window or Window(latent.height, latent.width)
    like = Latent(codec, symbols_of(latent, codec, window), latent.quality, window)
    (pixels,) = pixels_of([like.symbols], like, latent.channels, latent.depth, device, dtype)
    return np.asarray(pixels[:, : window.shape[0], : window.shape[1]])


def _is_part(window: Window) -> bool:
    return window.crop is not None or window.divisor > 1


def _cut(planes: Array, window: Window) -> Array:
    """Returns what `window` shows of whole planes `[...,H,W]`."""
    box, by = window.box, window.divisor
    if by == 1:
        return planes[..., box.top : box.bottom, box.left : box.right]
    top, left, bottom, right = box.top // by * by, box.left // by * by, padded(box.bottom, by), padded(box.right, by)
    return means(planes[..., top:bottom, left:right], by)


def _seen(picture: Picture, window: Window) -> Picture:
    """Returns what `window` shows of a whole picture."""
    alpha = None if picture.alpha is None else _cut(picture.alpha, window)
    return replace(picture, pixels=_cut(picture.pixels, window), alpha=alpha)


def _held(width: int, height: int) -> int:
    """How many pixels the tiles have, at most, that a part of that size needs, with those around them: 2x1,280 more a
    side."""
    return (width + 2560) * (height + 2560)


def _read(source: object) -> tuple[str, bytes]:
    """Returns the name, for messages, and the bytes of a latent file."""
    if isinstance(source, FileSource):
        source = source.path
    if is_path(source):
        path = located(source) if is_url(source) else os.fsdecode(source)
        return str(path), container.read_file(path)
    file = read_bytes(source)
    if file is None:
        raise UsageError(f"decompress takes latent files or their bytes, not {type(source).__name__}")
    return file[0] or "the latent file", file[1]


EXPANSION = 48
"""How many times the size of a latent file the samples of its picture take, about, where only the size is known."""
HEADER_BYTES = 1 << 20
"""An image file says its size within so many bytes."""


def _estimate(file: BinaryIO, size: int, options: DecompressOptions) -> int:
    found = container.outline(file)
    if found.stored is not None:
        file.seek(found.stored)
        return size + estimate_file(io.BytesIO(file.read(HEADER_BYTES)), size)
    held = pixels = found.width * found.height
    if options.crop is not None:  # a codec that can't decode a part by itself will take more
        width, height = options.crop[2:]
        held, pixels = min(pixels, _held(width, height)), min(pixels, width * height)
    samples = pixels * (found.channels + found.alpha) * found.depth // 8
    return bytes_on_the_way(samples, size) + CODE_BYTES * held + found.metadata


def _empty(latent: container.Coded, window: Window, name: str) -> Picture:
    """Returns what `window` shows of the picture of a latent without its pixels, whose place takes no memory: its
    strides are zero."""
    zero = np.uint8(0) if latent.depth == 8 else np.uint16(0)
    empty = np.broadcast_to(zero, (latent.channels, *window.shape))
    size = (latent.height, latent.width)
    alpha = None if latent.alpha is None else _cut(read_plane(latent.alpha, size, zero.dtype, name), window)
    about, notes = sound(latent.metadata)
    return Picture(empty, alpha, about, latent.format, latent.name, tuple(notes), latent.page)
