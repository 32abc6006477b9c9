"""What may stand for a picture, and how a result is given back.

open_source   a path, bytes, a PIL image, an array or a tensor -> `Opened`: pixels, and what the caller wants back
deliver       a picture -> the kind that the caller wants
"""

from __future__ import annotations

import io
import mmap
import os
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Generic, Literal, TypeGuard, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError, UnreadableImage, UsageError
from ..images import (
    WRITABLE,
    ImageFile,
    Picture,
    encode_picture,
    from_pil,
    open_image,
    read_file,
    read_picture,
    sample_size,
    to_pil,
)
from ..manifest import digest
from ..metadata import byte_order
from ..multipage import Place as PagePlace
from ..multipage import places
from ..paths import Place, located, open_regular, size_of
from ..pixels import continued, from_array, from_tensor, padded, to_array, to_tensor
from ..urls import Url, is_url
from .options import FormatOptions, Kind

Array = np.ndarray

Delivered = Image.Image | Array | Tensor | bytes | Picture
"""What a picture is given back as."""


@dataclass(frozen=True)
class FileSource:
    """An image file or latent file whose result is to become a file."""

    path: Place
    """The file to read."""
    suffix: str | None
    """The suffix of the file to be written; None where the result is to be a `Picture`, which becomes a part of one."""


class PagedFile:
    """An image file of several pages, which threads read one by one.

    It is in memory from the first page that is read to the last. Pages are decoded in about their order, because a
    frame of an animation needs those before it.
    """

    def __init__(self, path: Place, places: list[PagePlace], size: int, samples: int) -> None:
        """`size` is that of the file, `samples` those of a page whose place does not say how many bytes they take."""
        self.path, self.places, self.size, self._samples = path, places, size, samples
        self.wanted = 0
        """How many of its pages are still to be read."""
        self._turn = threading.Condition()
        self._waiting: list[int] = []
        self._busy = False
        self._open: tuple[ImageFile, str] | None = None

    def read(self, number: int) -> tuple[Picture, bytes, str]:
        """Returns a page, the bytes of the file and their digest. Raises as `ImageFile.picture` does."""
        with self._turn:
            self._waiting.append(number)
            self._turn.wait_for(lambda: not self._busy and min(self._waiting) == number)
            self._busy = True
        try:
            if self._open is None:
                data = read_file(self.path)
                self._open = ImageFile(data, str(self.path)), digest(data)
            file, found = self._open
            return replace(file.picture(number), name=self.path.name), file.data, found
        except BaseException:
            self._open = None  # a decoder that has failed may be left anywhere in the file
            raise
        finally:
            with self._turn:
                self.wanted -= 1
                if self.wanted <= 0:
                    self._open = None
                self._waiting.remove(number)
                self._busy = False
                self._turn.notify_all()

    def estimate(self, number: int) -> int:
        """Returns how many bytes a page will hold, by its header."""
        return bytes_on_the_way(self.places[number - 1].samples or self._samples, self.size)


def open_pages(path: Place) -> PagedFile | None:
    """Returns an image file if it has several pages, by its headers; None for others, and for what can't be read. A
    TIFF at a URL is fetched for it, since its headers may lie anywhere."""
    samples = 0
    try:
        with open_regular(path) as file:
            head, size = file.read(4096), size_of(file)
            file.seek(0)
            if byte_order(head[:4]) is None:
                with open_image(file, str(path)) as image:
                    found, samples = places(image, None, str(path)), _samples(image, head)
            elif isinstance(path, Url):
                found = places(None, read_file(path), str(path))
            else:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    found = places(None, data, str(path))
    except Exception:  # each decoder has errors of its own; reading the file will report what is wrong
        return None
    return PagedFile(path, found, size, samples) if len(found) > 1 else None


@dataclass(frozen=True)
class PageSource:
    """A page of an image file."""

    file: PagedFile
    """The file."""
    number: int
    """Which page, from 1."""
    suffix: str | None
    """As that of `FileSource`."""


@dataclass(frozen=True)
class Opened:
    """A picture that was opened, and how its result is to be given back."""

    picture: Picture
    """The pixels and what belongs to them."""
    kind: Kind | Literal["file", "picture"]
    """What the caller wants back; "file" stands for the bytes of a file with the suffix `suffix`, "picture" for a
    `Picture`."""
    origin: object = None
    """What the caller gave."""
    data: bytes | None = None
    """The bytes of the source file, if it was one."""
    suffix: str | None = None
    """The suffix of the file to be written; None where that is for the options to say."""
    digest: str = ""
    """That of `data`, where it is known already."""


@dataclass(frozen=True)
class PictureItem:
    """What the items of all tasks have in common."""

    opened: Opened
    """The picture on its way."""

    has_source: ClassVar[bool] = True
    """Whether the pixels of `picture` are what the result is made of, rather than the result."""

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
        """The number of pixels of the result."""
        return self.picture.width * self.picture.height

    @property
    def nbytes(self) -> int:
        """The bytes in memory, at most, with those of the result; see `bytes_on_the_way`."""
        picture, data = self.picture, self.opened.data
        samples = picture.pixels.nbytes + (0 if picture.alpha is None else picture.alpha.nbytes)
        return bytes_on_the_way(samples, len(data or b""))


def before_and_after(item: PictureItem, raw: object) -> tuple[Array | None, Array | None]:
    """Returns what a report shows of a picture: its pixels and those of the result, `[C,H,W]`, as far as there are any.

    `raw` is what the task's `run` has made: an array of pixels, or something that holds them as `decoded`.
    """
    picture = item.picture
    made = raw if isinstance(raw, np.ndarray) else getattr(raw, "decoded", None)
    if item.has_source:
        return picture.pixels, made
    return None, picture.pixels if made is None else made[:, : picture.height, : picture.width]


COPIES = 6
"""How many times the samples of a picture are in memory, at most: as decoded, as planes, as a padded batch, as the
result, as what is encoded of it, and as the file. Floats are made tile by tile."""


CODE_BYTES = 12
"""How many bytes a picture's codes take for each of its pixels, at most: as floats and as symbols."""


EXPANSION = 16
"""How many times the size of an image file its samples take, about, where only the size is known."""


def bytes_on_the_way(samples: int, data: int) -> int:
    """Returns how many bytes a picture holds on its way whose samples, alpha included, take `samples` bytes and whose
    file has `data` bytes."""
    return COPIES * samples + data


def estimate(source: object) -> int:
    """Returns what `PictureItem.nbytes` will be, or a little more, by the header of anything that `open_source` takes.

    Raises an `InputError` where there is no header.
    """
    if isinstance(source, np.ndarray | Tensor):
        return bytes_on_the_way(source.nbytes, 0)
    if isinstance(source, Image.Image):
        return bytes_on_the_way(_samples(source, b""), 0)
    if isinstance(source, bytes | bytearray):
        return estimate_file(io.BytesIO(source), len(source))
    if isinstance(source, PageSource):
        return source.file.estimate(source.number)
    path = source.path if isinstance(source, FileSource) else source
    if not isinstance(path, str | os.PathLike):
        return 0
    if isinstance(path, Url) and path.status is not None:  # its header is too far away for the caller's thread
        return bytes_on_the_way(EXPANSION * path.status.size, path.status.size)
    with open_regular(path) as file:
        return estimate_file(file, size_of(file))


def estimate_file(file: BinaryIO, size: int) -> int:
    """Returns what `estimate` does, of an image file of `size` bytes that is open."""
    head = file.read(4096)
    file.seek(0)
    try:
        with open_image(file) as image:
            return bytes_on_the_way(_samples(image, head), size)
    except UnreadableImage:  # which some formats are to Pillow, but not to other decoders
        return bytes_on_the_way(size, size)


def _samples(image: Image.Image, head: bytes) -> int:
    """Returns how many bytes the samples of an image have that Pillow has opened from a file that begins with `head`.

    In doubt, they are many: of a palette it is not known whether it is transparent, or grey.
    """
    bands = 4 if image.mode in ("P", "PA") or "transparency" in image.info else max(len(image.getbands()), 1)
    return image.width * image.height * bands * sample_size(image, head)


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

    def sentence(self) -> str:
        """Returns the same for people, in a few words."""
        return f"{self.width}x{self.height}"


# -- opening -------------------------------------------------------------------------------------------------


def read_bytes(source: object) -> tuple[str, bytes] | None:
    """Returns the name and the bytes of a file-like source; None for sources of other kinds.

    That is bytes, bytearray or memoryview; a file that is open for reading bytes; and what has `read_bytes` as
    `pathlib.Path` has, such as a `zipfile.Path`. Raises `UsageError` for a file that is open as text.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return "", bytes(source)
    if is_path(source):
        return None
    read = getattr(source, "read_bytes", None) or getattr(source, "read", None)
    if not callable(read) or isinstance(source, type):
        return None
    name = getattr(source, "name", "")
    name = name if isinstance(name, str) else ""
    try:
        data = read()
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        raise InputError(f"{name or 'the file'}: can't be read ({error})") from error
    except TypeError:  # an archive, which reads one of several files
        return None
    if not isinstance(data, bytes):
        raise UsageError(f"{name or 'the file'}: is open as text; open it with mode 'rb'")
    return name, data


def is_path(source: object) -> TypeGuard[str | os.PathLike[Any]]:
    """Returns whether a source names a file."""
    return isinstance(source, str | os.PathLike)


def is_one(source: object) -> bool:
    """Returns whether a source is one picture or file, rather than an iterable of them."""
    several = not isinstance(source, bytes | bytearray | memoryview | Image.Image | np.ndarray | Tensor)
    like_a_file = callable(getattr(source, "read_bytes", None)) or callable(getattr(source, "read", None))
    return not several or is_path(source) or like_a_file


def open_source(source: object, page: int | None = None) -> Opened:
    """Opens anything that `process` takes as one picture; of files of several pages that `page`. Raises `UsageError`
    for anything else."""
    if isinstance(source, PageSource):
        picture, data, found = source.file.read(source.number)
        return Opened(picture, "file" if source.suffix else "picture", source, data, source.suffix, found)
    if isinstance(source, FileSource):
        return replace(_open_path(source.path, page), kind="file", suffix=source.suffix)
    if is_path(source):
        return _open_path(source, page)
    if isinstance(source, Image.Image):
        return Opened(from_pil(source), "pil", source)
    if isinstance(source, np.ndarray):
        return Opened(Picture(*from_array(source)), "numpy", source)
    if isinstance(source, Tensor):
        return Opened(Picture(*from_tensor(source)), "tensor", source)
    file = read_bytes(source)
    if file is None:
        raise UsageError(f"a {type(source).__name__} is not something that aeimg takes as a picture")
    name, data = file
    picture = _one_page(data, name or "the image", page)
    in_memory = isinstance(source, bytes | bytearray | memoryview)
    return Opened(replace(picture, name=Path(name).name), "bytes" if in_memory else "pil", source, data)


def open_checked(source: object, page: int | None = None) -> Opened:
    """Opens a source and refuses pictures without pixels and with values that are not finite. Raises `InputError`."""
    opened = open_source(source, page)
    pixels, name = opened.picture.pixels, opened.picture.name or "the image"
    if not pixels[0].size:
        raise InputError(f"{name}: has no pixels")
    if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
        raise InputError(f"{name}: holds values that are not finite")
    return opened


def _open_path(source: str | os.PathLike[Any], page: int | None) -> Opened:
    path = located(source) if is_url(source) else os.fsdecode(source)
    data = read_file(path)
    return Opened(replace(_one_page(data, str(path), page), name=located(path).name), "pil", source, data)


def _one_page(data: bytes, name: str, page: int | None) -> Picture:
    picture = read_picture(data, name, page)
    if picture.page is None:
        return picture
    note = f"only the {'frame' if picture.page.animated else 'page'} {page} of {picture.page.count} was read"
    return replace(picture, notes=(*picture.notes, note))


# -- batches -------------------------------------------------------------------------------------------------


def padded_size(picture: Picture, multiple: int) -> tuple[int, int]:
    """Returns height and width, rounded up to multiples of `multiple`."""
    return padded(picture.height, multiple), padded(picture.width, multiple)


def batch_key(picture: Picture, multiple: int) -> tuple[object, ...]:
    """Returns what pictures must have in common that `stacked` can put into one batch."""
    return (picture.pixels.shape[0], picture.pixels.dtype, *padded_size(picture, multiple))


def stacked(items: Sequence[PictureItem], multiple: int, *, mirrored: bool = False) -> Tensor:
    """Returns the pixels of items of equal padded size as one batch; see `pixels.pad` and `pixels.mirror`."""
    height, width = padded_size(items[0].picture, multiple)
    pixels = [continued(item.picture.pixels, height, width, "reflect" if mirrored else "edge") for item in items]
    # One large picture is not copied; a read-only one must be, because torch has no read-only tensors.
    alone = len(pixels) == 1 and pixels[0].flags.writeable
    return torch.from_numpy(pixels[0][None] if alone else np.stack(pixels))


class AnyShape:
    """The first steps of tasks whose model takes pictures of any shape, without padding."""

    def estimate(self, source: object) -> int:
        """Returns how many bytes a picture will hold, by its header."""
        return estimate(source)

    def prepare(self, source: object) -> PictureItem:
        """Reads a picture."""
        return PictureItem(open_checked(source))

    def key(self, item: PictureItem) -> Hashable:
        """Returns channels, depth and size."""
        return batch_key(item.picture, 1)


# -- giving back ---------------------------------------------------------------------------------------------


def deliver(picture: Picture, opened: Opened, options: FormatOptions) -> Delivered:
    """Returns a picture as the kind that the caller wants."""
    if opened.kind == "picture":
        return picture
    if opened.kind == "pil":
        return to_pil(picture)
    if opened.kind in ("bytes", "file"):
        suffix = opened.suffix or options.suffix or suffix_of(picture.format)
        return encode_picture(picture, suffix, image_quality=options.quality_of(suffix))
    return (to_tensor if opened.kind == "tensor" else to_array)(picture.planes, opened.origin)


def suffix_of(kind: str) -> str:
    """Returns the suffix of a Pillow format; PNG where aeimg does not write that format."""
    return next((suffix for suffix, name in WRITABLE.items() if name == kind), ".png")
