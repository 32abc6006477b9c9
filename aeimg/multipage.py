"""Which pages an image file has: the pictures of a TIFF and of a HEIF file, the frames of an animation.

    places    an image file  ->  where its pages lie, by headers alone
    Page      what a picture that is one of several pages knows of its place among them

Thumbnails and masks in a TIFF (its reduced-resolution subfiles) are no pages, nor are the further views of an MPO file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from mmap import mmap
from typing import NamedTuple

from PIL import Image

from .errors import UnsupportedImage
from .metadata import byte_order

MANY = 1 << 20
"""No file has as many pages as this: the directories of one that seems to have run in a circle."""
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
"""The formats whose pages are the frames of an animation, by Pillow's names."""


@dataclass(frozen=True)
class Page:
    """The place of a picture among the pages of its file."""

    number: int
    """1 for the first page."""
    count: int
    """How many pages the file has."""
    duration: int | None = None
    """Of an animation: for how many microseconds the frame is shown; None for pages that are no frames."""
    loops: int = 0
    """Of an animation: how many times it is played, 0 for without end."""
    source: bytes = b""
    """8 bytes of a hash of the file, which all its pages share and others do not."""

    @property
    def animated(self) -> bool:
        """Whether the page is a frame of an animation."""
        return self.duration is not None


class Place(NamedTuple):
    """Where a page lies in its file."""

    frame: int
    """The number of the frame or of the directory in the file, from 0."""
    at: int | None = None
    """Of a TIFF: where its directory lies."""
    samples: int = 0
    """Of a TIFF: how many bytes its samples take in memory."""


class _Directory(NamedTuple):
    """What `places` has to know of a directory of a TIFF."""

    at: int
    kind: int
    """The bits of NewSubfileType; 1 is a reduced picture, 4 a mask."""
    parts: bool
    """Whether there are directories below it, in which cameras keep the full picture."""
    samples: int


def places(image: Image.Image | None, data: bytes | mmap | None, name: str) -> list[Place]:
    """The pages of the file `data` that Pillow has opened as `image`, by its headers; of a TIFF that Pillow can't open,
    `image` is None. There is at least one. Raises `UnsupportedImage`, and `ValueError` for damaged directories."""
    if image is None or (image.format == "TIFF" and data is not None):
        assert data is not None
        return _tiff_places(data, name)
    first = 1 if getattr(image, "default_image", False) else 0  # of APNG: a still picture that is no frame
    count: int = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    return [Place(frame) for frame in range(first, count)] or [Place(0)]


def _tiff_places(data: bytes | mmap, name: str) -> list[Place]:
    found = _directories(data)
    full = [Place(number, one.at, one.samples) for number, one in enumerate(found) if not one.kind & 5]
    if not full and any(one.parts for one in found):
        raise UnsupportedImage(f"{name}: a camera's raw picture, of which only thumbnails could be read; develop it")
    return full or [Place(0, found[0].at, found[0].samples)]


def _directories(data: bytes | mmap) -> list[_Directory]:
    """The chain of directories of a TIFF. Raises `ValueError` where it leads out of the file or in a circle."""
    order = byte_order(data[:4])
    if order is None:
        raise ValueError("no byte order at its beginning")
    big = data[2:4] in (b"+\0", b"\0+")
    wide = "Q" if big else "I"
    found: list[_Directory] = []
    seen: set[int] = set()
    try:
        (at,) = struct.unpack_from(order + wide, data, 8 if big else 4)
        while at:
            if at in seen or len(found) == MANY:
                raise ValueError("its directories run in a circle")
            seen.add(at)
            one, following = _directory(data, at, order, big=big)
            found.append(one)
            (at,) = struct.unpack_from(order + wide, data, following)
    except struct.error as error:
        raise ValueError("a directory behind the data") from error
    if not found:
        raise ValueError("no directory")
    return found


def _directory(data: bytes | mmap, at: int, order: str, *, big: bool) -> tuple[_Directory, int]:
    """A directory, and the place of the number that leads to the next one."""
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    first, length, inline = at + (8 if big else 2), (20 if big else 12), (12 if big else 8)
    if count * length > len(data):
        raise ValueError("a directory that ends behind the data")
    values: dict[int, int] = {}
    for place in range(first, first + count * length, length):
        tag, kind = struct.unpack_from(order + "HH", data, place)
        if tag in (254, 255, 256, 257, 258, 277, 330):
            (many,) = struct.unpack_from(order + ("Q" if big else "I"), data, place + 4)
            where = place + inline
            if tag == 258 and kind == 3 and 2 * many > length - inline:  # bits of each sample: the first stands for all
                (where,) = struct.unpack_from(order + ("Q" if big else "I"), data, where)
            code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
            values[tag] = struct.unpack_from(order + code, data, where)[0] if code else 0
    kind = values.get(254, 1 if values.get(255) == 2 else 0)
    samples = values.get(256, 0) * values.get(257, 0) * values.get(277, 1) * -(-values.get(258, 1) // 8)
    return _Directory(at, kind, 330 in values, samples), first + count * length


def page_of(image: Image.Image, page: Page) -> Page:
    """`page`, with what Pillow says of the frame of `image` that it has loaded, if that is an animation."""
    if image.format not in ANIMATED:
        return page
    info = image.info
    try:
        duration = min(max(round(1000 * float(info.get("duration") or 0)), 0), (1 << 32) - 1)
    except (TypeError, ValueError, OverflowError):
        duration = 0
    once = 1 if image.format == "GIF" else 0  # a GIF that says nothing is played once
    loops = info.get("loop", once)
    return replace(page, duration=duration, loops=loops if isinstance(loops, int) and 0 <= loops < 1 << 16 else 0)


def common(pages: Sequence[Page]) -> Page:
    """The first of the pages of one file, which must be all of them, in order. Raises `UnsupportedImage`."""
    first = pages[0]
    missing = sorted({*range(1, first.count + 1)} - {page.number for page in pages})
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise UnsupportedImage(f"of its {first.count} pages these are missing: {shown}")
    if len(pages) > first.count:
        raise UnsupportedImage(f"its {first.count} pages are there more than once: {len(pages)} latent files hold them")
    return first
