"""Image -> padded, overlapping tiles -> image.

A tile's network sees `halo` pixels more on each side than the tile keeps, so that where the halo covers the
network's reach a tiled result equals that of the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import astuple, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """A part of a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column behind it."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """The first row below it."""
        return self.top + self.height


@dataclass(frozen=True)
class Window:
    """What is to be seen of a picture of `height` x `width` pixels: a part of it, or a smaller copy, or both."""

    height: int
    """Of the whole picture."""
    width: int
    """Of the whole picture."""
    crop: Box | None = None
    """The part, inside the picture; None for all of it."""
    divisor: int = 1
    """The side of the squares of pixels, counted from the picture's corner, whose means are the pixels that are seen:
    1, 2, 4 or 8. A square that the part holds only partly is seen."""

    @property
    def box(self) -> Box:
        """The part."""
        return self.crop or Box(0, 0, self.width, self.height)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what is seen."""
        box, by = self.box, self.divisor
        return -(-box.bottom // by) - box.top // by, -(-box.right // by) - box.left // by


@dataclass(frozen=True)
class Tile:
    """One tile: what is read (`top:bottom, left:right`) and, of that, what is kept."""

    top: int
    bottom: int
    left: int
    right: int
    keep_top: int
    keep_bottom: int
    keep_left: int
    keep_right: int

    def scaled(self, factor: int) -> Tile:
        """The same tile on a grid `factor` times as fine."""
        return Tile(*(factor * edge for edge in astuple(self)))

    def cut(self, x: Tensor) -> Tensor:
        """The part of `x` `[...,H,W]` that the tile reads."""
        return x[..., self.top : self.bottom, self.left : self.right]

    def kept(self, x: Tensor) -> Tensor:
        """The part of `x` `[...,H,W]`, the whole image, that the tile fills."""
        return x[..., self.keep_top : self.keep_bottom, self.keep_left : self.keep_right]

    def inner(self, y: Tensor) -> Tensor:
        """Of `y`, what a network made of `cut`, the part that is kept."""
        return y[
            ...,
            self.keep_top - self.top : self.keep_bottom - self.top,
            self.keep_left - self.left : self.keep_right - self.left,
        ]


def grid(height: int, width: int, tile: int, halo: int) -> Iterator[Tile]:
    """Tiles of side `tile` in raster order; those at the right and bottom edge may be smaller."""
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            yield Tile(
                max(0, top - halo), min(height, bottom + halo), max(0, left - halo), min(width, right + halo),
                top, bottom, left, right,
            )  # fmt: skip


watcher: ContextVar[Callable[[float], None] | None] = ContextVar("watcher", default=None)
"""Is called with the share of an image, 0..1, whose tiles are done, by whoever runs a network over them."""


def counted(parts: Iterable[Tile]) -> Iterator[Tile]:
    """Yields tiles in their order, and tells the `watcher` how much of the image is done after each."""
    parts = list(parts)
    for number, part in enumerate(parts, 1):
        yield part
        tell = watcher.get()
        if tell is not None:
            tell(number / len(parts))


def run_tiled(
    network: Callable[..., Tensor], x: Tensor, tile: int, halo: int, *beside: Tensor, scale: int = 1
) -> Tensor:
    """`network` over the tiles of `x` `[N,C,H,W]`, as `[N,C',scale*H,scale*W]` of the dtype of `x`.

    The network gets a tile `[N,C,h,w]`, and the same part of each tensor `[N,...,H,W]` in `beside`, and returns
    `[N,C',scale*h,scale*w]`. `tile` and `halo` must be multiples of what it asks for; at the right and bottom edge a
    tile may be less.
    """
    result: Tensor | None = None
    for part in counted(grid(x.shape[2], x.shape[3], tile, halo)):
        made, place = network(part.cut(x), *map(part.cut, beside)), part.scaled(scale)
        if result is None:
            result = x.new_empty(x.shape[0], made.shape[1], scale * x.shape[2], scale * x.shape[3])
        place.kept(result).copy_(place.inner(made))
    return torch.empty_like(x) if result is None else result
