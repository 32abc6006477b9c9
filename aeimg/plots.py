"""Plots, drawn by matplotlib: figures of a bench run as curves or points, the loss curve of a training run, and points
of a plane, coloured by group.

matplotlib comes with the extra `plots`. It is imported only when something is drawn, and only its object-oriented
interface is used, which keeps no state between plots and needs no display.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*")
"""The markers of curves, one for each."""
CREATOR = "aeimg plot"
"""What the metadata of plots of figures name as their maker."""
LABEL_ROOM = 0.062
"""The height of a curve's name, as a share of that of the axes."""
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


# -- curves beside each other ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """A curve or a group of points."""

    name: str
    """What stands beside it."""
    points: Sequence[Point]
    """From left to right."""
    emphasised: bool = False
    """Whether it is what the plot is about."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes; the horizontal one is logarithmic."""

    title: str
    """What the vertical axis shows; higher is better."""
    x_label: str
    """What the horizontal axis shows."""
    x_range: Point
    """The limits of the horizontal axis; what lies outside is not shown."""
    series: Sequence[Series]
    """The curves, each with the same colour and marker in every panel of a figure where it has the same place."""
    levels: Sequence[tuple[str, float]] = ()
    """Horizontal lines to compare with, and what they are called."""
    limits: Sequence[tuple[str, float]] = ()
    """Vertical lines to compare with, and what they are called."""


def panels(panels: Sequence[Panel], title: str) -> Figure:
    """A figure of several panels side by side, with the names of the curves beside their right ends.

    Raises `OutputError` where matplotlib is not installed.
    """
    figure = _figure((560 * len(panels) if len(panels) > 1 else 900, 520))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        low, high = panel.x_range
        shown = [(one, _inside(one.points, low, high)) for one in panel.series]
        values = [y for _, points in shown for _, y in points] + [y for _, y in panel.levels]
        _style(axes, panel.title, values)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        _plain_ticks(axes, low, high)
        axes.set_xlabel(panel.x_label, fontsize=9, parse_math=False)
        for name, level in panel.levels:
            axes.axhline(level, color=INK, linewidth=1, linestyle=":")
            axes.annotate(name, (high, level), (-3, 3), textcoords="offset points", fontsize=8, ha="right", color=INK)
        for name, limit in panel.limits:
            axes.axvline(limit, color=INK, linewidth=1, linestyle="--")
            axes.annotate(
                name, (limit, axes.get_ylim()[1]), (4, -3), textcoords="offset points", fontsize=8, va="top", color=INK
            )
        for number, (one, points) in enumerate(shown):
            first = one.emphasised
            axes.plot(
                *_columns(points), color=COLOURS[number % len(COLOURS)], marker=SHAPES[number % len(SHAPES)],
                linewidth=3 if first else 1.3, markersize=7 if first else 5, zorder=4 if first else 3, clip_on=False,
            )  # fmt: skip
        _name_the_ends(axes, [(one, points[-1]) for one, points in shown if points])
    figure.suptitle(title, parse_math=False, fontsize=12)
    return figure


def _inside(points: Sequence[Point], low: float, high: float) -> list[Point]:
    """The points of a curve between two limits of x; where it goes on behind `high`, it ends there."""
    inside = [point for point in points if low <= point[0] <= high and math.isfinite(point[1])]
    behind = next((point for point in points if point[0] > high), None)
    if inside and behind is not None and inside[-1][0] < high:
        (x0, y0), (x1, y1) = inside[-1], behind
        inside.append((high, y0 + (y1 - y0) * (math.log(high / x0) / math.log(x1 / x0))))
    return inside


def _plain_ticks(axes: Axes, low: float, high: float) -> None:
    """Ticks of a logarithmic axis as plain numbers: 0.1, 0.2, 0.5, 1, ..."""
    ticks = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _name_the_ends(axes: Axes, ends: Sequence[tuple[Series, Point]]) -> None:
    """Writes the names of curves to the right of the axes, each as near to the height of its end as there is room."""
    bottom, top = axes.get_ylim()
    room = LABEL_ROOM * (top - bottom)
    order = sorted(range(len(ends)), key=lambda n: ends[n][1][1])
    heights = [ends[n][1][1] for n in order]
    for _ in range(200):  # neighbours push each other apart until each has its room
        for n in range(len(heights) - 1):
            lacking = room - (heights[n + 1] - heights[n])
            if lacking > 1e-9:
                heights[n], heights[n + 1] = heights[n] - lacking / 2, heights[n + 1] + lacking / 2
    for n in reversed(range(len(heights))):  # and none stands above the axes
        heights[n] = min(heights[n], top - (len(heights) - 1 - n) * room)
    right = axes.get_xlim()[1]
    for n, height in zip(order, heights, strict=True):
        one, (x, y) = ends[n]
        at = (1.1, (height - bottom) / (top - bottom))
        line = {"arrowstyle": "-", "color": COLOURS[n % len(COLOURS)], "linewidth": 1, "shrinkA": 2, "shrinkB": 3}
        line["relpos"] = (0, 0.5)  # it begins at the left of the name
        axes.annotate(
            one.name, (min(x, right), y), at, textcoords="axes fraction", fontsize=9, va="center", color=INK,
            fontweight="bold" if one.emphasised else "normal", arrowprops=line, annotation_clip=False,
            parse_math=False,
        )  # fmt: skip


def svg(figure: Figure, about: str, source: str) -> bytes:
    """`figure` as SVG, the same bytes from the same figures: its metadata hold `about`, what it shows, and `source`,
    the digest of what it was made of, and no date."""
    import matplotlib

    data = io.BytesIO()
    about_it = {"Title": about, "Source": source, "Creator": CREATOR, "Date": None}
    with matplotlib.rc_context({"svg.hashsalt": CREATOR}):
        figure.savefig(data, format="svg", backend="svg", metadata=about_it)
    return re.sub(rb"[ \t]+$", b"", data.getvalue(), flags=re.M)


def png(figure: Figure, about: str, source: str) -> bytes:
    """`figure` as PNG, with the same metadata."""
    data = io.BytesIO()
    about_it = {"Title": about, "Source": source, "Software": CREATOR}
    figure.savefig(data, format="png", backend="agg", dpi=DPI, metadata=about_it)
    return data.getvalue()


def is_plot(data: bytes) -> bool:
    """Whether a file was drawn by `svg` or `png`. Only such a file is written over by a new plot."""
    return CREATOR.encode() in data


# -- loss curves -----------------------------------------------------------------------------------------------------


def curve(
    losses: Sequence[Point],
    evaluations: Sequence[Point],
    *,
    title: str,
    metric: str,
    higher_is_better: bool,
    last_phase: int | None = None,
) -> bytes:
    """The loss curve of `curve_figure` as PNG."""
    return _png(
        curve_figure(losses, evaluations, title=title, metric=metric, higher_is_better=higher_is_better,
                     last_phase=last_phase),
        SOFTWARE,
    )  # fmt: skip


def curve_figure(
    losses: Sequence[Point],
    evaluations: Sequence[Point],
    *,
    title: str,
    metric: str,
    higher_is_better: bool,
    last_phase: int | None = None,
    smoothing: int = SMOOTHING,
) -> Figure:
    """A loss curve: the training loss, raw and smoothed, above the held-out figure called `metric`.

    Points are `(step, value)`; values that are not finite are left out. `last_phase` is the step at which the last
    phase of training began; it is marked. A point of the smoothed loss is the mean of `smoothing` points. Raises
    `OutputError` where matplotlib is not installed.
    """
    losses, evaluations = ([point for point in points if math.isfinite(point[1])] for points in (losses, evaluations))
    figure = _figure(CURVE_SIZE)
    upper, lower = figure.subplots(2, 1, sharex=True)
    smooth = _smoothed(losses, smoothing)
    # The first losses are those of random weights and would press all others flat.
    ranked = sorted(value for _, value in losses)
    shown = ranked[len(ranked) // 50 : len(ranked) - len(ranked) // 20] + [y for _, y in smooth[len(smooth) // 20 :]]
    _style(upper, "training loss", shown)
    marker = "." if len(losses) == 1 else ""  # one point makes no line
    if smoothing > 1:
        upper.plot(*_columns(losses), color=RAW_LOSS, linewidth=1, marker=marker, label="as it is")
    label = "smoothed" if smoothing > 1 else "_"  # which the legend leaves out
    upper.plot(*_columns(smooth), color=LOSS, linewidth=2, marker=marker, label=label)
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
    return figure


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


def _smoothed(points: Sequence[Point], smoothing: int) -> list[Point]:
    """Each value as the mean of the `smoothing` values around it, of fewer at the ends, so that it has no lag."""
    result = []
    for n, (step, _) in enumerate(points):
        reach = min(n, len(points) - 1 - n, smoothing // 2)
        around = [value for _, value in points[n - reach : n + reach + 1]]
        result.append((step, sum(around) / len(around)))
    return result


def _without_start(values: list[float]) -> list[float]:
    """`values` without the first one, where that would press all the others flat."""
    rest = values[1:]
    if len(rest) > 1 and max(values) - min(values) > 4 * (max(rest) - min(rest)):
        return rest
    return values
