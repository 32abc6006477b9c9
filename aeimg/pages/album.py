"""Small pictures for a page, within a size that is set beforehand, whatever the number of pictures.

    pixels before and after ──> thumbnail                       of every picture, as long as they fit
                            ──> crops before and after,         of the worst pictures
                                residual, map of the error

A run over files adds each picture while its pixels are in memory anyway, in the threads that write results. What is
kept is bounded by the size of the page: where a worse picture comes, the crops of the best ones go.
"""

from __future__ import annotations

import functools
import heapq
import io
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..pixels import to_eight_bits

Array = np.ndarray
Rank = tuple[float, ...]
"""How bad a picture is: a higher one is worse."""

RECORD_BYTES = 400
"""About how many bytes of a page a row of its table takes."""
BASE64 = 4 / 3
"""How many bytes of a page a byte of a picture takes."""
THUMBNAILS = 0.5
"""The share of the pictures' bytes that thumbnails take at most."""
THUMBNAIL_SIDES = {1000: 112, 4000: 72, 1 << 62: 40}
"""Up to so many pictures, thumbnails have this side at most, in pixels."""
CROP_SIDES = (1536, 1280, 1024, 896, 768, 640, 512, 448, 384, 320, 256, 192, 128)
"""The sides of crops, in pixels: the longest with which every picture gets its share."""
SMALLEST_CROP = 320
"""Of many pictures, the worst have crops of this side, and the others none."""
JPEG_BYTES, LOSSLESS_BYTES = 0.5, 1.9
"""About how many bytes a pixel of a crop takes: as JPEG of quality `CROP_QUALITY`, and without loss."""
CROP_QUALITY = 92
GAIN = 4
"""How many times residuals are amplified."""
MAP_SIDE = 384
"""The longest side of the map of an error, in pixels."""
MAP_TOP = 16.0
"""The mean absolute error, in 8-bit units, that has the last colour of a map."""
CIVIDIS = (
    (0, 34, 78), (8, 51, 112), (53, 69, 108), (79, 87, 108), (102, 105, 112), (125, 124, 120), (148, 142, 119),
    (174, 163, 113), (200, 184, 102), (229, 207, 82), (254, 232, 56),
)  # fmt: skip
"""Colours from none to much, even to the eye and to the colour-blind (Nunez, Anderton and Renslow 2018)."""


@dataclass(frozen=True)
class Window:
    """Which part of a picture its crops show, in pixels of the picture."""

    x: int
    y: int
    width: int
    height: int


@dataclass
class Gallery:
    """The small pictures of one picture."""

    width: int
    """The width of the picture in pixels; of a result that is larger than its source, that of the result."""
    height: int
    """The height of the picture in pixels."""
    thumbnail: bytes = b""
    """A WebP file, or nothing where the thumbnails of worse pictures took the place."""
    window: Window | None = None
    """What the crops show; None where there are none."""
    crops: dict[str, bytes] = field(default_factory=dict)
    """What is shown -> a JPEG or WebP file."""
    residuals: dict[str, bytes] = field(default_factory=dict)
    """The same for the difference to the source, `GAIN` times, about middle grey."""
    maps: dict[str, bytes] = field(default_factory=dict)
    """The same for the map of the error over the whole picture."""
    drawing: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held while the small pictures are drawn, so that the results of one picture share a window."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "drawing"}

    def __setstate__(self, state: dict[str, Any]) -> None:  # for albums of other processes: locks can't be sent
        self.__dict__.update(state, drawing=threading.Lock())

    @property
    def size(self) -> int:
        """The bytes of the crops, residuals and maps."""
        return sum(len(data) for some in (self.crops, self.residuals, self.maps) for data in some.values())

    def without_crops(self) -> None:
        """Forgets everything but the thumbnail."""
        self.window, self.crops, self.residuals, self.maps = None, {}, {}, {}


class Album:
    """The small pictures of a page; see the module. Threads may add pictures at the same time."""

    BEFORE = "before"
    """What the crop of the source is called."""

    def __init__(self, size: int, count: int, *, variants: int = 1, maps: bool = False) -> None:
        """`size` is that of the page in bytes, `count` the number of its pictures, each with so many `variants` of a
        result; `maps` says whether the difference to the source is an error, of which a map is drawn."""
        room = max(size - count * variants * RECORD_BYTES - (64 << 10), 0) / BASE64
        thumbnails = min(THUMBNAILS * room, count * 4096)
        self.count, self.maps = count, maps
        self.galleries: dict[str, Gallery] = {}
        self._lock = threading.Lock()
        self._thumbnails = _Worst(thumbnails, lambda gallery: setattr(gallery, "thumbnail", b""))
        self._crops = _Worst(room - thumbnails, Gallery.without_crops)
        self.thumbnail_side = next(side for most, side in THUMBNAIL_SIDES.items() if count <= most)
        share = (room - thumbnails) / max(count, 1) / (1 + 1.6 * variants)
        # Results that are compared are shown together or not at all: their crops are small rather than missing.
        smallest, reserve = (SMALLEST_CROP, 1) if variants == 1 else (CROP_SIDES[-1], 2)
        fits = (side for side in CROP_SIDES if side <= smallest or side * side * JPEG_BYTES * reserve <= share)
        self.crop_side = next(fits)
        self._most_lossless = share / LOSSLESS_BYTES

    def add(self, name: str, before: Array | None, after: Array | None, *, rank: Rank, label: str = "after") -> None:
        """Adds a result, `label`, of the picture `name`: pixels `[C,H,W]` of any of the three kinds.

        `before` is None where a picture has no source but a latent file, `after` where there is no result to show.
        Where their sizes differ, the source is shown enlarged, and there is no residual.
        """
        shown = after if after is not None else before
        if shown is None:
            return
        with self._lock:
            gallery = self.galleries.setdefault(name, Gallery(shown.shape[2], shown.shape[1]))
        with gallery.drawing:
            self._draw(gallery, before, after, rank, label)

    def _draw(self, gallery: Gallery, before: Array | None, after: Array | None, rank: Rank, label: str) -> None:
        """Adds a result to the gallery of its picture."""
        shown = after if after is not None else before
        assert shown is not None
        with self._lock:
            window, takes = gallery.window, self._crops.takes(rank)
        if not gallery.thumbnail:
            data = _thumbnail(shown, self.thumbnail_side)
            with self._lock:
                gallery.thumbnail = data
                self._thumbnails.add(rank, gallery, len(data))
        if takes:
            part = Gallery(shown.shape[2], shown.shape[1], window=window or self._window(before, after, shown))
            self._fill(part, before, after, label, known=self.BEFORE in gallery.crops)
            with self._lock:
                earlier = gallery.size
                gallery.window = part.window
                for some in ("crops", "residuals", "maps"):
                    getattr(gallery, some).update(getattr(part, some))
                self._crops.add(rank, gallery, gallery.size - earlier)

    def adopt(self, name: str, gallery: Gallery, rank: Rank) -> None:
        """Adds the small pictures of a picture that another album, of the same size and count, has made."""
        with self._lock:
            self.galleries[name] = gallery
            self._thumbnails.add(rank, gallery, len(gallery.thumbnail))
            if gallery.window is not None:
                self._crops.add(rank, gallery, gallery.size)

    def _window(self, before: Array | None, after: Array | None, shown: Array) -> Window:
        """Returns where a picture differs most from its source; the middle, where that is unknown."""
        height, width = shown.shape[1:]
        w, h = min(self.crop_side, width), min(self.crop_side, height)
        if before is None or after is None or before.shape != after.shape:
            return Window((width - w) // 2, (height - h) // 2, w, h)
        block = max(1, math.ceil(max(height, width) / 64))
        sums = np.pad(error_map(before, after, block), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        rows, columns = min(max(h // block, 1), len(sums) - 1), min(max(w // block, 1), len(sums[0]) - 1)
        inside = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
        y, x = np.unravel_index(int(inside.argmax()), inside.shape)
        return Window(min(int(x) * block, width - w), min(int(y) * block, height - h), w, h)

    def _fill(self, part: Gallery, before: Array | None, after: Array | None, label: str, *, known: bool) -> None:
        """Draws what the crops of `part` show; `known` says whether that of the source is there already."""
        window = part.window
        assert window is not None
        lossless = window.width * window.height <= self._most_lossless
        source = None if before is None else _cut(before, window, part)
        if source is not None and not known:
            part.crops[self.BEFORE] = _crop(source, lossless=lossless)
        if after is None:
            return
        result = _cut(after, window, part)
        part.crops[label] = _crop(result, lossless=lossless)
        if before is not None and source is not None and before.shape == after.shape:
            part.residuals[label] = _residual(source, result)
            if self.maps:
                block = max(1, math.ceil(max(part.height, part.width) / MAP_SIDE))
                part.maps[label] = _drawn_map(error_map(before, after, block))


class _Worst:
    """What belongs to the worst pictures, as much of it as fits into so many bytes."""

    def __init__(self, room: float, drop: Callable[[Gallery], Any]) -> None:
        self.left, self._drop, self._number, self._full = room, drop, 0, False
        self._heap: list[tuple[Rank, int, Gallery, int]] = []

    def takes(self, rank: Rank) -> bool:
        """Whether there is room, or something less bad that would go."""
        return self.left > 0 and (not self._full or not self._heap or rank > self._heap[0][0])

    def add(self, rank: Rank, gallery: Gallery, size: int) -> None:
        """Takes `size` bytes of a gallery in, and drops what is least bad where there is not room for all."""
        self._number += 1
        heapq.heappush(self._heap, (rank, -self._number, gallery, size))
        self.left -= size
        while self.left < 0 and self._heap:
            self._full = True
            dropped = heapq.heappop(self._heap)
            self.left += dropped[3]
            self._drop(dropped[2])


# -- drawing -------------------------------------------------------------------------------------------------


def _image(planes: Array) -> Image.Image:
    """Returns pixels `[C,H,W]` of any kind as an 8-bit image."""
    eight = to_eight_bits(planes)
    return Image.fromarray(eight[0] if len(eight) == 1 else np.ascontiguousarray(eight[:3].transpose(1, 2, 0)))


def _thumbnail(planes: Array, side: int) -> bytes:
    step = max(1, max(planes.shape[1:]) // (4 * side))  # a large picture is thinned out before it is scaled
    image = _image(planes[:, ::step, ::step])
    image.thumbnail((side, side), Image.Resampling.BOX)
    data = io.BytesIO()
    image.save(data, "WEBP", quality=60, method=2)
    return data.getvalue()


def _cut(planes: Array, window: Window, gallery: Gallery) -> Array:
    """Returns the pixels of a window as uint8; those of a picture of another size than the gallery's enlarged."""
    if planes.shape[1:] == (gallery.height, gallery.width):
        return to_eight_bits(planes[:, window.y : window.y + window.height, window.x : window.x + window.width])
    x, y = planes.shape[2] / gallery.width, planes.shape[1] / gallery.height
    box = (window.x * x, window.y * y, (window.x + window.width) * x, (window.y + window.height) * y)
    left, top = math.floor(box[0]), math.floor(box[1])
    part = _image(planes[:, top : math.ceil(box[3]), left : math.ceil(box[2])])
    inner = (box[0] - left, box[1] - top, min(box[2] - left, part.width), min(box[3] - top, part.height))
    scaled = part.resize((window.width, window.height), Image.Resampling.BICUBIC, inner)
    array = np.asarray(scaled)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _crop(planes: Array, *, lossless: bool) -> bytes:
    data = io.BytesIO()
    if lossless:
        _image(planes).save(data, "WEBP", lossless=True, quality=20, method=2)
    else:
        _image(planes).save(data, "JPEG", quality=CROP_QUALITY, subsampling="4:4:4")  # `optimize` fails on noise
    return data.getvalue()


def _residual(before: Array, after: Array) -> bytes:
    difference = after.astype(np.int16) - before
    data = io.BytesIO()
    _image(np.clip(128 + GAIN * difference, 0, 255).astype(np.uint8)).save(data, "WEBP", quality=75, method=2)
    return data.getvalue()


def error_map(before: Array, after: Array, block: int) -> Array:
    """Returns the mean absolute difference of pixels `[C,H,W]`, in 8-bit units, in blocks of `block` pixels a side:
    float32 `[ceil(H/block),ceil(W/block)]`. A band of blocks is in memory at a time."""
    height, width = before.shape[1:]
    starts = np.arange(0, width, block)
    counts = np.minimum(starts + block, width) - starts
    rows = []
    for top in range(0, height, block):
        pair = (to_eight_bits(x[:, top : top + block]).astype(np.int16) for x in (before, after))
        columns = np.abs(np.subtract(*pair)).mean((0, 1), dtype=np.float32)
        rows.append(np.add.reduceat(columns, starts) / counts)
    return np.asarray(rows, np.float32)


@functools.cache
def _palette() -> Array:
    """Returns the colours of a map, uint8 `[256,3]`."""
    places = np.linspace(0, 255, len(CIVIDIS))
    channels = [np.interp(np.arange(256), places, channel) for channel in zip(*CIVIDIS, strict=True)]
    return np.rint(np.stack(channels, 1)).astype(np.uint8)


def _drawn_map(errors: Array) -> bytes:
    """Returns a map as a WebP file: the colours grow with the root of the error, so that small ones are seen."""
    levels = np.rint(255 * np.sqrt(np.clip(errors / MAP_TOP, 0, 1))).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(_palette()[levels]).save(data, "WEBP", quality=80, method=2)
    return data.getvalue()
