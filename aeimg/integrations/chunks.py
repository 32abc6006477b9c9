"""An array that ends in an image <-> bytes, for libraries that store arrays in chunks.

A chunk of one image is its latent file. A chunk of several is their number (u32), the length of each latent file (u32),
then those files; all numbers are little-endian. A latent file begins with its magic, which no number of images is.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..container import MAGIC, MAX_FILE
from ..errors import InvalidLatent, UsageError
from ..loaded import LoadedCodec, load

Array = np.ndarray


@functools.lru_cache(maxsize=8)
def held(model: str | None, device: str) -> LoadedCodec:
    """Returns the codec of that name on that device, which stays loaded."""
    return load(model or "compress", task="compress", device=device)


def image_axes(shape: tuple[int, ...]) -> int:
    """Returns how many of the last axes of a chunk are an image: 3 for `[...,H,W,3]` and `[...,H,W,4]`, otherwise 2,
    for `[...,H,W]`. Raises `UsageError` for shapes that end in no image."""
    axes = 3 if len(shape) > 2 and shape[-1] in (3, 4) else 2
    if len(shape) < 2 or not math.prod(shape):
        raise UsageError(f"chunks must end in an image, [...,H,W] or [...,H,W,3] or [...,H,W,4]; this is {list(shape)}")
    return axes


def check_chunk(shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raises `UsageError` unless chunks of that shape and dtype can be stored."""
    image_axes(shape)
    if dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise UsageError(f"the codec stores uint8 and uint16, not {dtype}")


def encode_chunk(array: Array, codec: LoadedCodec, quality: int, effort: int) -> bytes:
    """Returns the bytes of a chunk. Raises `UsageError`, `InputError`."""
    check_chunk(array.shape, array.dtype)
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    images = native.reshape(-1, *native.shape[-image_axes(native.shape) :])
    files = [codec.encode(image, quality, effort=effort) for image in images]
    if len(files) == 1:
        return files[0]
    return struct.pack(f"<{1 + len(files)}I", len(files), *map(len, files)) + b"".join(files)


def decode_chunk(data: bytes, codec: LoadedCodec) -> Array:
    """Returns the images of a chunk, `[N,H,W]` or `[N,H,W,C]`. Raises `InvalidLatent`, `WrongWeights`."""
    return np.stack([codec.decode(file, "numpy") for file in _files(data)])


def _files(data: bytes) -> list[bytes]:
    if data[: len(MAGIC)] == MAGIC:
        return [data]
    count = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0
    start = 4 * (1 + count)
    if not count or start > len(data) or len(data) > MAX_FILE:
        raise InvalidLatent("the chunk holds no images")
    ends = np.cumsum(np.frombuffer(data, "<u4", count, 4), dtype=np.uint64) + start
    if ends[-1] != len(data):
        raise InvalidLatent("the chunk is cut short, or longer than its images")
    return [data[at:end] for at, end in zip([start, *map(int, ends[:-1])], map(int, ends), strict=True)]


def restored(data: bytes, codec: LoadedCodec, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """Returns a chunk of that shape and dtype. Raises `InvalidLatent` where `data` is one of another."""
    images = decode_chunk(data, codec)
    axes = image_axes(shape)
    count = math.prod(shape[:-axes])
    if images.shape != (count, *shape[-axes:]) or images.dtype != dtype.newbyteorder("="):
        raise InvalidLatent(
            f"the chunk holds {list(images.shape)} {images.dtype} instead of {[count, *shape[-axes:]]} {dtype}"
        )
    return images.reshape(shape).astype(dtype, copy=False)


def configuration(quality: int, effort: int, model: str | None) -> Mapping[str, Any]:
    """Returns what a store keeps of a codec's options. Raises `UsageError` for values out of range."""
    from ..tasks.options import CompressOptions

    CompressOptions(quality, effort=effort)
    return {"quality": quality, "effort": effort, **({} if model is None else {"model": model})}
