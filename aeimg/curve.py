"""The loss curve as a picture: what a run has cost and what it has reached, against its steps."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

Point = tuple[float, float]
"""Step and value."""

SIZE = (960, 600)
MARK = "aeimg train"
"""What the picture says of its origin: it may be drawn anew, no other file may; and nobody learns from it."""
INK, PALE, GRID = (40, 40, 40), (178, 200, 224), (228, 228, 228)
LOSS, HELD_OUT = (31, 92, 160), (196, 84, 20)
SMOOTHED = 9
"""Points that a smoothed one is the mean of."""


def is_one(image: Image.Image) -> bool:
    """Whether an image that Pillow has opened is a loss curve drawn by `draw`."""
    return image.info.get("Software") == MARK


def lies_at(path: Path) -> bool:
    """Whether a file is one."""
    try:
        with Image.open(path) as image:
            return is_one(image)
    except (OSError, ValueError, SyntaxError):
        return False


def draw(
    losses: Sequence[Point], judged: Sequence[Point], *, title: str, main: str, larger: bool, late: int | None = None
) -> bytes:
    """A PNG of two panels: training loss, as it is and smoothed, above; the held-out figure `main` below.

    `larger` says whether more of it is better; the last phase, which began at step `late`, is marked.
    """
    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)
    pen.text((SIZE[0] / 2, 20), title, INK, _font(17), "mm")
    last = max([1.0, *(step for step, _ in (*losses, *judged))])
    smooth = _smoothed(losses)
    # The first losses, of random weights, would press all others into a line at the bottom.
    ranked = sorted(value for _, value in losses)
    middle = ranked[len(ranked) // 50 : len(ranked) - len(ranked) // 20]
    upper = _Panel(pen, 60, 290, last, [*middle, *(value for _, value in smooth[len(smooth) // 20 :])])
    upper.axes("training loss", None)
    upper.line(losses, PALE, 1)
    upper.line(smooth, LOSS, 3)
    if late is not None:
        upper.mark(late, "last phase")
    best = (max if larger else min)(judged, key=lambda point: point[1], default=None)
    note = "" if best is None else f"; best {_number(best[1])} at step {best[0]:,.0f}"
    lower = _Panel(pen, 340, 550, last, _without_start([value for _, value in judged]))
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
    """Axes between two heights of the picture, and lines in them."""

    left, right = 90, 930

    def __init__(self, pen: ImageDraw.ImageDraw, top: int, bottom: int, last: float, values: Sequence[float]) -> None:
        self.pen, self.top, self.bottom, self.last = pen, top, bottom, last
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        margin = 0.06 * (high - low) or max(abs(high), 1e-6) * 0.1
        self.low, self.high = low - margin, high + margin

    def _x(self, step: float) -> float:
        return self.left + (self.right - self.left) * step / self.last

    def _y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * (value - self.low) / (self.high - self.low)

    def axes(self, title: str, below: str | None) -> None:
        font, pen = _font(13), self.pen
        for value in _ticks(self.low, self.high, 8):
            pen.line([(self.left - 5, self._y(value)), (self.right, self._y(value))], GRID)
            pen.text((self.left - 9, self._y(value)), f"{value:.6g}", INK, font, "rm")
        for value in _ticks(0, self.last, 10):
            pen.line([(self._x(value), self.top), (self._x(value), self.bottom)], GRID)
            pen.line([(self._x(value), self.bottom), (self._x(value), self.bottom + 5)], INK)
            pen.text((self._x(value), self.bottom + 15), _number(value), INK, font, "mm")
        pen.line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)], INK)
        pen.text((self.left, self.top - 11), title, INK, _font(14), "lm")
        if below:
            pen.text(((self.left + self.right) / 2, self.bottom + 35), below, INK, font, "mm")

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

    def dots(self, points: Sequence[Point], colour: tuple[int, int, int]) -> None:
        for step, value in points:
            if self.low <= value <= self.high:
                self.pen.circle((self._x(step), self._y(value)), 3, colour)

    def mark(self, step: int, label: str) -> None:
        """A broken line upright at `step`."""
        for y in range(self.top, self.bottom, 8):
            self.pen.line([(self._x(step), y), (self._x(step), y + 3)], INK)
        self.pen.text((self._x(step) + 5, self.top + 9), label, INK, _font(12), "lm")
