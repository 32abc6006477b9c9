"""Figures against the usual codecs, and for denoisers against the noise: whole files, through the public API.

bench_compress   rate-distortion points of aeimg and its peers on the same images; BD-rates by each metric; speeds
bench_denoise    PSNR over noise levels, known and estimated, after JPEG, of real pairs; speed on one core
bench_checks     how often the notes of denoise are false alarms, and how often they miss a fault
bench_images     an image-to-image task, such as upscale or colorize, as it states its evaluation
bench_engine     how near a run over files comes to what its parts need
bench_scale      a Ray cluster of this machine beside the plain engine
simulate         what each of very many files costs around its picture
bench_anomaly    how well small autoencoders distinguish other digits from their own
bench_textbooks  the textbooks' figures for what is not shipped

A set of figures is a dictionary that JSON can hold; `table` makes text of it, `write_plot` a plot, and `write_page` a
page.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..weights import load_tensors, save_weights
from . import checks, compress, denoise, engine, images, scale, textbooks
from .checks import bench_checks
from .compress import bench_compress
from .denoise import bench_denoise
from .engine import bench_engine
from .images import bench_images
from .page import write_page
from .plot import check_plot, has_plot, read_figures, write_plot
from .scale import bench_scale, simulate
from .setting import Figures
from .textbooks import bench_anomaly, bench_textbooks

__all__ = [
    "bench_anomaly",
    "bench_checks",
    "bench_compress",
    "bench_denoise",
    "bench_engine",
    "bench_images",
    "bench_scale",
    "bench_textbooks",
    "check_plot",
    "has_plot",
    "read_figures",
    "simulate",
    "table",
    "write_card",
    "write_page",
    "write_plot",
]

_TABLES = {
    "compress": compress.table,
    "denoise": denoise.table,
    "checks": checks.table,
    "engine": engine.table,
    "scale": scale.table,
    "anomaly": textbooks.anomaly_table,
    "textbooks": textbooks.table,
}


def table(figures: Figures) -> str:
    """A set of figures as text."""
    return _TABLES.get(figures["task"], images.table)(figures)


def write_card(weights: Path, data: Path, figures: Figures) -> None:
    """Adds what was measured on `data` to the card of a weights file; its digest stays what it is."""
    header, tensors, _ = load_tensors(weights)
    if figures["task"] == "compress":
        ours = figures["codecs"]["aeimg"]
        row = {metric: {k: round(v, 1) for k, v in rates.items()} for metric, rates in ours["bd_rate"].items()}
    elif "rows" in figures:
        row = {part: {k: round(v, 3) for k, v in values.items()} for part, values in figures["rows"].items()}
    else:
        parts = {**figures.get("sigmas", {}), **figures.get("cameras", {})}
        parts |= {name: figures[name] for name in ("jpeg75", "clean") if name in figures}
        row = {part: {k: round(v, 2) for k, v in values.items()} for part, values in parts.items()}
    measured = {**header.card.get("figures", {}), Path(data).name: row}
    save_weights(weights, tensors, replace(header, card={**header.card, "figures": measured}))
