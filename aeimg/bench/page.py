"""The page of a bench run: one HTML file with a plot, tables and the same text as in the terminal."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from .. import __version__, plots
from ..pages import check_page, render
from ..paths import write_atomic
from .compress import METRICS
from .plot import CODECS, describe, has_plot, plot
from .setting import Figures

Table = dict[str, Any]
"""`caption`, `head` and `rows` of text."""


def write_page(figures: Figures, target: Path, text: str) -> None:
    """Writes the page of figures, of which `text` is the table. Its plot is left out where there is none of such
    figures or where matplotlib is missing. Raises what `check_page` does."""
    check_page(target)
    drawn = has_plot(figures) and plots.is_available()
    page = render(
        "bench.html.j2",
        None,
        {},
        about={"task": figures["task"], "version": __version__},
        summary=_summary(figures),
        plot=base64.b64encode(plot(figures)).decode() if drawn else "",
        alt=describe(figures) if drawn else "",
        tables=_of_codecs(figures) if figures["task"] == "compress" else [],
        text="" if figures["task"] == "compress" else text,
    )
    write_atomic(target, page)


def _summary(figures: Figures) -> list[tuple[str, str]]:
    shown = [(f"{figures['images']:,}", "images")] if "images" in figures else []
    if "megapixels" in figures:
        shown.append((f"{figures['megapixels']:.1f}", "megapixels"))
    if "models" in figures:
        shown.append((", ".join(figures["models"]), "measured"))
    if "cores" in figures:
        shown.append((f"{figures['cores']} cores, torch {figures['torch']}", "machine"))
    return shown


def _of_codecs(figures: Figures) -> list[Table]:
    """Returns the tables of `bench compress`: BD-rates by each metric, speeds, points."""
    codecs, chosen = figures["codecs"], figures["metrics"]

    def name(key: str) -> str:
        return CODECS.get(key, key)

    def rated(metric: str) -> Table:
        anchors = list(codecs["aeimg"]["bd_rate"][metric])
        rows = [
            [name(key), *(f"{row['bd_rate'][metric][one]:+.1f}%" for one in anchors)] for key, row in codecs.items()
        ]
        title = METRICS[metric].title
        caption = (
            f"Bits that are needed for the same quality by {title}, more (+) or fewer (-) than those of ... (BD-rate)"
        )
        return {"caption": caption, "head": ["codec", *map(name, anchors)], "rows": rows}

    speeds = [
        [name(key), row["settings"], f"{row['encode']:.2f}", f"{row['decode']:.2f}"] for key, row in codecs.items()
    ]
    points = [
        [f"{name(key)}, quality {point['quality']}", f"{point['bpp']:.3f}", *(f"{point[one]:.2f}" for one in chosen)]
        for key, row in codecs.items()
        for point in row["points"]
    ]
    titles = [METRICS[one].title for one in chosen]
    return [
        *map(rated, chosen),
        {"caption": "Megapixels a second", "head": ["codec", "settings", "encoded", "decoded"], "rows": speeds},
        {"caption": "Points", "head": ["codec", "bits per pixel", *titles], "rows": points},
    ]
