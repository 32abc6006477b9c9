"""Figures, drawn with Pillow: the loss curve of a run, and a plane of points in groups."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

Array = np.ndarray
Point = tuple[float, float]

SIZE = (960, 600)
PLANE = (960, 720)
GROUPS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31", "#7b4173", "#637939")
"""Okabe and Ito's colours, told apart by colour-blind people too; then some more."""
FINE = 2
"""A plane is drawn so many times as large, then reduced, for smooth edges."""
MARK = "aeimg train"
"""What a loss curve says of its origin: it may be drawn anew, no other file may; and nobody learns from it."""
INK, PALE, GRID = (40, 40, 40), (178, 200, 224), (228, 228, 228)
LOSS, HELD_OUT = (31, 92, 160), (196, 84, 20)
SMOOTHED = 9
"""Points that a smoothed one is the mean of."""


def is_curve(image: Image.Image) -> bool:
    """Whether an image that Pillow has opened is a loss curve drawn by `curve`."""
    return image.info.get("Software") == MARK


def curve_lies_at(path: Path) -> bool:
    """Whether a file is one."""
    try:
        with Image.open(path) as image:
            return is_curve(image)
    except (OSError, ValueError, SyntaxError):
        return False


def curve(
    losses: Sequence[Point], judged: Sequence[Point], *, title: str, main: str, larger: bool, late: int | None = None
) -> bytes:
    """A PNG of two panels: training loss, as it is and smoothed, above; the held-out figure `main` below.

    Points are steps and values. `larger` says whether more of the figure is better; the last phase, which began at step
    `late`, is marked.
    """
    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)
    pen.text((SIZE[0] / 2, 20), title, INK, _font(17), "mm")
    last = max([1.0, *(step for step, _ in (*losses, *judged))])
    smooth = _smoothed(losses)
    # The first losses, of random weights, would press all others into a line at the bottom.
    ranked = sorted(value for _, value in losses)
    middle = ranked[len(ranked) // 50 : len(ranked) - len(ranked) // 20]
    upper = _Panel(
        pen, (90, 60, 930, 290), [0.0, last], [*middle, *(value for _, value in smooth[len(smooth) // 20 :])]
    )
    upper.axes("training loss", None)
    upper.line(losses, PALE, 1)
    upper.line(smooth, LOSS, 3)
    if late is not None:
        upper.mark(late, "last phase")
    best = (max if larger else min)(judged, key=lambda point: point[1], default=None)
    note = "" if best is None else f"; best {_number(best[1])} at step {best[0]:,.0f}"
    lower = _Panel(pen, (90, 340, 930, 550), [0.0, last], _without_start([value for _, value in judged]))
    lower.axes(f"held out: {main} ({'more' if larger else 'less'} is better{note})", "steps")
    lower.line(judged, HELD_OUT, 2)
    lower.dots(judged, HELD_OUT)
    if late is not None:
        lower.mark(late, "")
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", MARK)
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=about, optimize=True)
    return data.getvalue()


def scatter(points: Array, groups: Sequence[str], *, title: str, labels: tuple[str, str]) -> Image.Image:
    """`points` `[N,2]`, each in the colour of its group (there are ten colours); the axes hold all of them."""
    width, height = (FINE * side for side in PLANE)
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    pen.text((width / 2, 18 * FINE), title, INK, _font(17 * FINE), "mm")
    box = (84 * FINE, 64 * FINE, width - 140 * FINE, height - 64 * FINE)
    panel = _Panel(pen, box, points[:, 0].tolist(), points[:, 1].tolist(), room=0.04, scale=FINE)
    panel.axes(labels[1], labels[0])
    names = sorted(set(groups))
    numbers = {name: number for number, name in enumerate(names)}
    radius = FINE * (4 if len(points) < 300 else 2.5)
    for point, group in zip(points.tolist(), groups, strict=True):
        panel.dots([point], GROUPS[numbers[group] % len(GROUPS)], radius)
    if len(names) > 1:
        panel.legend(names)
    return image.resize(PLANE, Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """Each value as the mean of those around it, of fewer at the ends, so that it has no lag."""
    result = []
    for n, (step, _) in enumerate(points):
        reach = min(n, len(points) - 1 - n, SMOOTHED // 2)
        around = [value for _, value in points[n - reach : n + reach + 1]]
        result.append((step, sum(around) / len(around)))
    return result


def _without_start(values: list[float]) -> list[float]:
    """Without the first one, where it would press all the others together."""
    rest = values[1:]
    if len(rest) > 1 and max(values) - min(values) > 4 * (max(rest) - min(rest)):
        return rest
    return values


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, in `low..high`."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"


class _Panel:
    """Axes in a part of the picture (left, top, right, bottom) that hold the values, and what is drawn in them."""

    def __init__(
        self, pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], xs: Sequence[float], ys: Sequence[float],
        *, room: float = 0.0, scale: int = 1,
    ) -> None:  # fmt: skip
        """`room`: how much of the width stays free beside the points; `scale`: of fonts and lines."""
        self.pen, self.scale = pen, scale
        self.left, self.top, self.right, self.bottom = box
        self.first, self.last = self._range(xs, room)
        self.low, self.high = self._range(ys, 0.06)

    @staticmethod
    def _range(values: Sequence[float], room: float) -> tuple[float, float]:
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        margin = room * (high - low) or (max(abs(high), 1e-6) * 0.1 if high == low else 0.0)
        return low - margin, high + margin

    def _x(self, value: float) -> float:
        return self.left + (self.right - self.left) * (value - self.first) / (self.last - self.first)

    def _y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * (value - self.low) / (self.high - self.low)

    def axes(self, title: str, below: str | None) -> None:
        n = self.scale
        font, pen = _font(13 * n), self.pen
        for value in _ticks(self.low, self.high, 8):
            pen.line([(self.left - 5 * n, self._y(value)), (self.right, self._y(value))], GRID, n)
            pen.text((self.left - 9 * n, self._y(value)), f"{value:.6g}", INK, font, "rm")
        for value in _ticks(self.first, self.last, 10):
            pen.line([(self._x(value), self.top), (self._x(value), self.bottom)], GRID, n)
            pen.line([(self._x(value), self.bottom), (self._x(value), self.bottom + 5 * n)], INK, n)
            pen.text((self._x(value), self.bottom + 15 * n), _number(value), INK, font, "mm")
        pen.line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)], INK, n)
        pen.text((self.left, self.top - 11 * n), title, INK, _font(14 * n), "lm")
        if below:
            pen.text(((self.left + self.right) / 2, self.bottom + 35 * n), below, INK, font, "mm")

    def legend(self, names: Sequence[str]) -> None:
        """One name to each of `GROUPS`, in a column to the right."""
        n = self.scale
        for number, name in enumerate(names[: len(GROUPS)]):
            row = self.top + n * (10 + 20 * number)
            self.pen.circle((self.right + 15 * n, row), 5 * n, GROUPS[number])
            self.pen.text((self.right + 26 * n, row), name[:14], INK, _font(14 * n), "lm")

    def line(self, points: Sequence[Point], colour: tuple[int, int, int], width: int) -> None:
        """Through the points within the panel."""
        path: list[Point] = []
        for step, value in (*points, (0.0, math.nan)):
            if self.low <= value <= self.high:
                path.append((self._x(step), self._y(value)))
                continue
            if len(path) > 1:
                self.pen.line(path, colour, width, "curve")
            path = []

    def dots(self, points: Sequence[Point], colour: tuple[int, int, int] | str, radius: float = 3) -> None:
        for step, value in points:
            if self.low <= value <= self.high:
                self.pen.circle((self._x(step), self._y(value)), radius, colour)

    def mark(self, step: int, label: str) -> None:
        """A broken line upright at `step`."""
        for y in range(self.top, self.bottom, 8):
            self.pen.line([(self._x(step), y), (self._x(step), y + 3)], INK)
        self.pen.text((self._x(step) + 5, self.top + 9), label, INK, _font(12), "lm")
