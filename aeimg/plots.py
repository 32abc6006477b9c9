"""Figures, drawn with Pillow: a plane of points in groups, and curves.

Both share one frame: axes with round ticks, labels, a legend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray

SIZE = (960, 720)
LEFT, RIGHT, TOP, BOTTOM = 84, 140, 48, 64
FINE = 2
"""Everything is drawn so many times as large, then reduced, for smooth edges."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31", "#7b4173", "#637939")
"""Okabe and Ito's, told apart by colour-blind people too; then some more."""


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers within `low..high`, about so many."""
    span = (high - low) or 1.0
    raw = span / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    return [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


class Frame:
    """A picture with axes; `draw` is in pixels, `at` says where a point of the plane is among them."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], *, title: str, x_label: str, y_label: str
    ) -> None:
        self.x, self.y = ((a, b) if b > a else (a - 0.5, a + 0.5) for a, b in (x, y))
        width, height = (FINE * side for side in SIZE)
        self.image = Image.new("RGB", (width, height), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(FINE * 14)
        left, top, right, bottom = FINE * LEFT, FINE * TOP, width - FINE * RIGHT, height - FINE * BOTTOM
        self.box = (left, top, right, bottom)
        for value in ticks(*self.x):
            column = self.at(value, self.y[0])[0]
            self.draw.line((column, top, column, bottom), "#e4e4e4", FINE)
            self.draw.text((column, bottom + 6 * FINE), f"{value:g}", "#404040", self.font, "mt")
        for value in ticks(*self.y):
            row = self.at(self.x[0], value)[1]
            self.draw.line((left, row, right, row), "#e4e4e4", FINE)
            self.draw.text((left - 6 * FINE, row), f"{value:g}", "#404040", self.font, "rm")
        self.draw.rectangle(self.box, outline="#404040", width=FINE)
        self.draw.text(((left + right) / 2, FINE * 16), title, "black", ImageFont.load_default(FINE * 18), "mt")
        self.draw.text(((left + right) / 2, height - FINE * 14), x_label, "black", self.font, "mb")
        self.draw.text((left, top - 6 * FINE), y_label, "black", self.font, "lb")

    def at(self, x: float, y: float) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (
            left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (right - left),
            bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (bottom - top),
        )

    def legend(self, names: Sequence[str]) -> None:
        """One name to each of `COLOURS`, in a column beside the plane."""
        _, top, right, _ = self.box
        for number, name in enumerate(names[: len(COLOURS)]):
            row = top + FINE * (10 + 20 * number)
            colour = COLOURS[number % len(COLOURS)]
            self.draw.ellipse((right + 10 * FINE, row - 5 * FINE, right + 20 * FINE, row + 5 * FINE), colour)
            self.draw.text((right + 26 * FINE, row), name[:14], "black", self.font, "lm")

    def finish(self) -> Image.Image:
        return self.image.resize(SIZE, Image.Resampling.LANCZOS)


def scatter(points: Array, groups: Sequence[str], *, title: str, labels: tuple[str, str]) -> Image.Image:
    """`points` `[N,2]`, each in the colour of its group; the axes hold all of them."""
    low, high = points.min(0), points.max(0)
    room = 0.04 * np.maximum(high - low, 1e-6)
    frame = Frame(
        (float(low[0] - room[0]), float(high[0] + room[0])), (float(low[1] - room[1]), float(high[1] + room[1])),
        title=title, x_label=labels[0], y_label=labels[1],
    )  # fmt: skip
    names = sorted(set(groups))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    size = FINE * (4 if len(points) < 300 else 2.5)
    for (x, y), group in zip(points, groups, strict=True):
        column, row = frame.at(float(x), float(y))
        frame.draw.ellipse((column - size, row - size, column + size, row + size), colours[group])
    if len(names) > 1:
        frame.legend(names)
    return frame.finish()


def curves(series: Mapping[str, Sequence[tuple[float, float]]], *, title: str, labels: tuple[str, str]) -> Image.Image:
    """Lines through `(x, y)` of each series, all on the same axes."""
    every = np.array([point for points in series.values() for point in points])
    low, high = every.min(0), every.max(0)
    room = 0.04 * (high[1] - low[1])
    frame = Frame(
        (float(low[0]), float(high[0])), (float(low[1] - room), float(high[1] + room)),
        title=title, x_label=labels[0], y_label=labels[1],
    )  # fmt: skip
    for number, points in enumerate(series.values()):
        line = [frame.at(*point) for point in points]
        frame.draw.line(line, COLOURS[number % len(COLOURS)], 2 * FINE, "curve")
    frame.legend(list(series))
    return frame.finish()
