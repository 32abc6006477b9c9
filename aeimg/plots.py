"""Plots, drawn by matplotlib: the loss curve of a training run, and points of a plane, coloured by group.

matplotlib comes with the extra `plots`. It is imported only when something is drawn, and only its object-oriented
interface is used, which keeps no state between plots and needs no display.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
from collections.abc import Sequence
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .errors import OutputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray
Point = tuple[float, float]

DPI = 125
CURVE_SIZE = (1200, 800)
"""Width and height of a loss curve, in pixels."""
SCATTER_SIZE = (1200, 900)
"""Width and height of a scatter plot, in pixels."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31", "#7b4173", "#637939")
"""The colours of groups: Okabe and Ito's, which colour-blind people can tell apart, then some more."""
MARKERS = ("o", "s", "^", "D")
"""The shapes of points: where there are more groups than colours, the colours come again in the next shape."""
LEGEND_ROWS = 30
"""How many groups a legend names at most."""
SOFTWARE = "aeimg train"
"""The `Software` that a loss curve's metadata name. Only such a picture is overwritten by a new curve, and datasets
leave it out."""
INK, GRID, RAW_LOSS, LOSS, HELD_OUT = "#282828", "#e4e4e4", "#b2c8e0", "#1f5ca0", "#c45414"
SMOOTHING = 9
"""A point of the smoothed loss is the mean of this many points."""


def is_available() -> bool:
    """Whether matplotlib is installed."""
    try:
        return importlib.util.find_spec("matplotlib") is not None
    except ValueError:  # it was imported in an unusual way, or was blocked
        return False


def check_available() -> None:
    """Raises `OutputError`, which names the extra to install, where matplotlib is not installed."""
    if not is_available():
        raise OutputError("plots are drawn by matplotlib, which is not installed: pip install 'aeimg[plots]'")


def is_curve(image: Image.Image) -> bool:
    """Whether an image that Pillow has opened is a loss curve that `curve` drew."""
    return image.info.get("Software") == SOFTWARE


def curve_lies_at(path: Path) -> bool:
    """Whether the file at `path` is a loss curve that `curve` drew."""
    try:
        with Image.open(path) as image:
            return is_curve(image)
    except (OSError, ValueError, SyntaxError):
        return False


def curve(
    losses: Sequence[Point],
    evaluations: Sequence[Point],
    *,
    title: str,
    metric: str,
    higher_is_better: bool,
    last_phase: int | None = None,
) -> bytes:
    """A loss curve as PNG: the training loss, raw and smoothed, above the held-out figure called `metric`.

    Points are `(step, value)`; values that are not finite are left out. `last_phase` is the step at which the last
    phase of training began; it is marked. Raises `OutputError` where matplotlib is not installed.
    """
    losses, evaluations = ([point for point in points if math.isfinite(point[1])] for points in (losses, evaluations))
    figure = _figure(CURVE_SIZE)
    upper, lower = figure.subplots(2, 1, sharex=True)
    smooth = _smoothed(losses)
    # The first losses are those of random weights and would press all others flat.
    ranked = sorted(value for _, value in losses)
    shown = ranked[len(ranked) // 50 : len(ranked) - len(ranked) // 20] + [y for _, y in smooth[len(smooth) // 20 :]]
    _style(upper, "training loss", shown)
    marker = "." if len(losses) == 1 else ""  # one point makes no line
    upper.plot(*_columns(losses), color=RAW_LOSS, linewidth=1, marker=marker, label="as it is")
    upper.plot(*_columns(smooth), color=LOSS, linewidth=2, marker=marker, label="smoothed")
    best = (max if higher_is_better else min)(evaluations, key=lambda point: point[1], default=None)
    direction = "higher" if higher_is_better else "lower"
    name = f"held-out {metric} ({direction} is better)"
    _style(lower, name, _without_start([value for _, value in evaluations]))
    lower.plot(*_columns(evaluations), color=HELD_OUT, linewidth=1.5, marker="o", markersize=4)
    if best is not None:
        label = f"best: {_number(best[1])} at step {best[0]:,.0f}"
        lower.plot(*best, "o", markersize=10, markerfacecolor="none", markeredgecolor=INK, label=label, clip_on=False)
    for axes in (upper, lower):
        if last_phase is not None:
            name = "the last phase begins" if axes is upper else "_"  # which the legend leaves out
            axes.axvline(last_phase, color=INK, linewidth=1, linestyle=":", label=name)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
    lower.set_xlabel("step")
    lower.set_xlim(0, max([1.0, *(step for step, _ in (*losses, *evaluations))]))
    lower.xaxis.get_major_locator().set_params(integer=True)
    lower.xaxis.set_major_formatter(_thousands)
    figure.suptitle(title, parse_math=False, fontsize=13)
    return _png(figure, SOFTWARE)


def scatter(points: Array, groups: Sequence[str], *, title: str, labels: tuple[str, str]) -> Image.Image:
    """A scatter plot of `points` `[N,2]` as an RGB picture. Each point has the colour and shape of its group.

    `groups` names the group of each point, `labels` the two axes. Raises `OutputError` where matplotlib is not
    installed.
    """
    figure = _figure(SCATTER_SIZE)
    axes = figure.subplots()
    _style(axes, title, [])
    names = sorted(set(groups), key=_natural)
    looks = {name: (marker, colour) for name, (marker, colour) in zip(names, cycle(product(MARKERS, COLOURS)))}
    size = 42 if len(points) < 300 else 20
    for marker in MARKERS:  # one call for all points of a shape, so that no group covers all the others
        own = [n for n, group in enumerate(groups) if looks[group][0] == marker]
        if own:
            colours = [looks[groups[n]][1] for n in own]
            x, y = points[own].T
            axes.scatter(x, y, s=size, c=colours, marker=marker, edgecolors="white", linewidths=0.4)
    axes.set_xlabel(labels[0], parse_math=False)
    axes.set_ylabel(labels[1], parse_math=False)
    if len(names) > 1:
        _legend(axes, looks)
    return Image.open(io.BytesIO(_png(figure, "aeimg"))).convert("RGB")


def _figure(size: tuple[int, int]) -> Figure:
    """An empty figure of `size` pixels."""
    check_available()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    return Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, layout=layout, facecolor="white")


def _png(figure: Figure, software: str) -> bytes:
    """`figure` as PNG, drawn by the Agg backend, which needs no display."""
    data = io.BytesIO()
    figure.savefig(data, format="png", backend="agg", dpi=DPI, metadata={"Software": software})
    return data.getvalue()


def _style(axes: Axes, title: str, values: Sequence[float]) -> None:
    """Gives `axes` their title and look, and limits that hold `values`, where there are any."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, parse_math=False)
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.8)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.margins(0.04)
    axes.ticklabel_format(axis="both", style="plain", useOffset=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if values:
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 0.1 * max(abs(high), 1e-6)
        axes.set_ylim(low - margin, high + margin)


def _legend(axes: Axes, looks: dict[str, tuple[str, str]]) -> None:
    """A legend to the right of `axes`. The names are set as they are: they may hold any character."""
    from matplotlib.lines import Line2D

    names = list(looks)[:LEGEND_ROWS]
    handles = [
        Line2D([], [], linestyle="", marker=looks[name][0], color=looks[name][1], markersize=6) for name in names
    ]
    if len(looks) > len(names):
        handles.append(Line2D([], [], linestyle=""))
        names.append(f"and {len(looks) - LEGEND_ROWS} more")
    legend = axes.legend(
        handles, ["-"] * len(handles), loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name if len(name) <= 24 else f"{name[:23]}…")


def _natural(name: str) -> list[int | str]:
    """A key for sorting that puts "2" before "10"."""
    return [int(part) if n % 2 else part for n, part in enumerate(re.split(r"(\d+)", name))]


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _thousands(value: float, _: int) -> str:
    return f"{value:,.10g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """Each value as the mean of the `SMOOTHING` values around it, of fewer at the ends, so that it has no lag."""
    result = []
    for n, (step, _) in enumerate(points):
        reach = min(n, len(points) - 1 - n, SMOOTHING // 2)
        around = [value for _, value in points[n - reach : n + reach + 1]]
        result.append((step, sum(around) / len(around)))
    return result


def _without_start(values: list[float]) -> list[float]:
    """`values` without the first one, where that would press all the others flat."""
    rest = values[1:]
    if len(rest) > 1 and max(values) - min(values) > 4 * (max(rest) - min(rest)):
        return rest
    return values
