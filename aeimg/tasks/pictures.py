"""What may stand for a picture, and how a result is given back.

open_source   a path, bytes, a PIL image, an array or a tensor -> `Opened`: pixels, and what the caller wants back
deliver       a picture -> the kind that the caller wants
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError, UnreadableImage, UsageError
from ..images import WRITABLE, Picture, encode_picture, from_pil, read_picture, to_pil
from ..tiles import padded
from .options import EncodingOptions, Kind

Array = np.ndarray

Delivered = Image.Image | Array | Tensor | bytes
"""What a picture is given back as."""


@dataclass(frozen=True)
class FileSource:
    """An image file or latent file whose result is to become a file."""

    path: Path
    """The file to read."""
    suffix: str
    """The suffix of the file to be written."""


@dataclass(frozen=True)
class Opened:
    """A picture that was opened, and how its result is to be given back."""

    picture: Picture
    """The pixels and what belongs to them."""
    kind: Kind | Literal["file"]
    """What the caller wants back; "file" stands for the bytes of a file with the suffix `suffix`."""
    origin: object = None
    """What the caller gave."""
    data: bytes | None = None
    """The bytes of the source file, if it was one."""
    suffix: str | None = None
    """The suffix of the file to be written; None where that is for the options to say."""


@dataclass(frozen=True)
class PictureItem:
    """What the items of all tasks have in common."""

    opened: Opened
    """The picture on its way."""

    @property
    def picture(self) -> Picture:
        """The picture on its way."""
        return self.opened.picture

    @property
    def label(self) -> str:
        """The name of the picture, for messages."""
        return self.picture.name or "the image"

    @property
    def work(self) -> int:
        """The number of pixels."""
        return self.picture.width * self.picture.height

    @property
    def nbytes(self) -> int:
        """The bytes in memory. The result is as large, and so is a copy that is padded; floats are made tile by
        tile."""
        return 3 * self.picture.pixels.nbytes + len(self.opened.data or b"")


V_out = TypeVar("V_out", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Result(Generic[V_out]):
    """What the results of all tasks have in common."""

    value: V_out
    """What the caller gets."""
    width: int
    """The width of the picture, in pixels."""
    height: int
    """The height of the picture, in pixels."""
    warnings: tuple[str, ...] = ()
    """What the user should know: what reading has changed, and what looks wrong in the result."""

    def record(self) -> dict[str, Any]:
        """Returns what the summary of a run over files says of the picture: numbers and text, ready for JSON."""
        return {
            "width": self.width,
            "height": self.height,
            **self.figures(),
            **({"warnings": list(self.warnings)} if self.warnings else {}),
        }

    def figures(self) -> dict[str, Any]:
        """Returns what is particular to the task."""
        return {}


# -- opening -------------------------------------------------------------------------------------------------


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a source file. Raises `UnreadableImage`."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path}: can't be read ({error.strerror})") from error


def open_source(source: object) -> Opened:
    """Opens anything that `process` takes as one picture. Raises `UsageError` for anything else."""
    if isinstance(source, FileSource):
        return replace(_open_path(source.path), kind="file", suffix=source.suffix)
    if isinstance(source, str | os.PathLike):
        return _open_path(source)
    if isinstance(source, bytes | bytearray):
        return Opened(read_picture(bytes(source)), "bytes", source, bytes(source))
    if isinstance(source, Image.Image):
        return Opened(from_pil(source), "pil", source)
    if isinstance(source, np.ndarray):
        return Opened(_from_array(source), "numpy", source)
    if isinstance(source, Tensor):
        if source.dim() != 3 or source.shape[0] not in (1, 3, 4) or not source.is_floating_point():
            raise UsageError(f"a tensor must be [C,H,W] or [N,C,H,W] float, C 1, 3 or 4; this is {_shape(source)}")
        values = source.detach().float().cpu().numpy()
        alpha = values[3] if values.shape[0] == 4 else None
        return Opened(Picture(np.ascontiguousarray(values[:3]), alpha), "tensor", source)
    raise UsageError(f"a {type(source).__name__} is not something that aeimg takes as a picture")


def open_checked(source: object) -> Opened:
    """Opens a source and refuses pictures without pixels and with values that are not finite. Raises `InputError`."""
    opened = open_source(source)
    pixels, name = opened.picture.pixels, opened.picture.name or "the image"
    if not pixels[0].size:
        raise InputError(f"{name}: has no pixels")
    if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
        raise InputError(f"{name}: holds values that are not finite")
    return opened


def _open_path(path: str | os.PathLike[str]) -> Opened:
    data = read_file(path)
    return Opened(replace(read_picture(data, str(path)), name=Path(path).name), "pil", path, data)


def _shape(x: Array | Tensor) -> str:
    return f"{list(x.shape)} {x.dtype}"


def _from_array(array: Array) -> Picture:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or not array.size:
        raise UsageError(f"an array must be [H,W], [H,W,3] or [H,W,4]; this is {_shape(array)}")
    if np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)
    elif array.dtype not in (np.uint8, np.uint16):
        raise UsageError(f"an array must be uint8, uint16 or float; this is {_shape(array)}")
    if array.ndim == 2:
        return Picture(np.ascontiguousarray(array[None]))
    planes = np.ascontiguousarray(array.transpose(2, 0, 1))
    return Picture(planes[:3], planes[3] if array.shape[2] == 4 else None)


# -- batches -------------------------------------------------------------------------------------------------


def padded_size(picture: Picture, multiple: int) -> tuple[int, int]:
    """Returns height and width, rounded up to multiples of `multiple`."""
    return padded(picture.height, multiple), padded(picture.width, multiple)


def batch_key(picture: Picture, multiple: int) -> tuple[object, ...]:
    """Returns what pictures must have in common that `stacked` can put into one batch."""
    return (picture.pixels.shape[0], picture.pixels.dtype, *padded_size(picture, multiple))


def stacked(items: Sequence[PictureItem], multiple: int, *, mirrored: bool = False) -> Tensor:
    """Returns the pixels of items of equal padded size as one batch; see `tiles.pad` and `tiles.mirror`."""
    height, width = padded_size(items[0].picture, multiple)
    pixels = [_continued(item.picture.pixels, height, width, "reflect" if mirrored else "edge") for item in items]
    # One large picture is not copied; a read-only one must be, because torch has no read-only tensors.
    alone = len(pixels) == 1 and pixels[0].flags.writeable
    return torch.from_numpy(pixels[0][None] if alone else np.stack(pixels))


def _continued(pixels: Array, height: int, width: int, how: Literal["edge", "reflect"]) -> Array:
    """Returns `pixels` `[C,h,w]` continued downwards and to the right."""
    missing = (height - pixels.shape[1], width - pixels.shape[2])
    return np.pad(pixels, ((0, 0), (0, missing[0]), (0, missing[1])), mode=how) if any(missing) else pixels


# -- giving back ---------------------------------------------------------------------------------------------


def deliver(picture: Picture, opened: Opened, options: EncodingOptions) -> Delivered:
    """Returns a picture as the kind that the caller wants."""
    if opened.kind == "pil":
        return to_pil(picture)
    if opened.kind in ("bytes", "file"):
        suffix = opened.suffix or options.suffix or suffix_of(picture.format)
        return encode_picture(picture, suffix, image_quality=options.quality_of(suffix))
    planes, origin = picture.planes, opened.origin
    if opened.kind == "tensor":
        if planes.dtype != np.float32:
            planes = planes.astype(np.float32) / np.float32(np.iinfo(planes.dtype).max)
        result = torch.from_numpy(np.ascontiguousarray(planes))
        return result.to(origin.device, origin.dtype) if isinstance(origin, Tensor) else result
    array: Array = np.ascontiguousarray(planes[0] if planes.shape[0] == 1 else planes.transpose(1, 2, 0))
    if isinstance(origin, np.ndarray) and np.issubdtype(origin.dtype, np.floating):
        return array.astype(origin.dtype)
    return array


def suffix_of(kind: str) -> str:
    """Returns the suffix of a Pillow format; PNG where aeimg does not write that format."""
    return next((suffix for suffix, name in WRITABLE.items() if name == kind), ".png")
