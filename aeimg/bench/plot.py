"""Plots of figures: of what `bench` has measured, and of the loss curve in the card of a weights file.

What is drawn comes from the figures alone, as `aeimg bench --json` writes them: the same figures give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import plots
from ..errors import DataError, UsageError
from ..paths import check_target, write_atomic
from ..weights import load_tensors
from .compress import METRICS, curve
from .setting import Figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE_METRICS = ("psnr", "ms_ssim", "ssimulacra2")
"""The metrics that rate is plotted against, a panel each, as far as they were measured."""
LOWEST_RATE = 0.1
"""Rates below this, in bits per pixel, are not shown: few people want such pictures."""
CODECS = {
    "shipped": "aeimg, as shipped", "jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "avif444": "AVIF 4:4:4",
    "jxl": "JPEG XL",
}  # fmt: skip
"""What people call the codecs."""
RISING = ("psnr", "psnr25", "camera", "jpeg")
"""The held-out metrics of training of which more is better."""
KINDS = (".svg", ".png")


def digest_of(figures: Mapping[str, Any]) -> str:
    """Returns what a plot's metadata name as its source: the digest of the figures, however their JSON is laid out."""
    return "sha256:" + hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()


def check_plot(target: Path) -> None:
    """Raises `UsageError` where the name is not that of a plot, its folder is not there or another file would be
    overwritten, and `OutputError` where matplotlib is missing or nothing can be written there."""
    if target.suffix.lower() not in KINDS:
        raise UsageError(f"{target}: plots are SVG or PNG files, so name it .svg or .png")
    if not target.parent.is_dir():
        raise UsageError(f"{target}: there is no folder {target.parent} for the plot; make it, or name another one")
    plots.check_available()

    def ours(path: Path) -> bool:
        try:
            return plots.is_plot(path.read_bytes())
        except OSError:
            return False

    check_target(target, ours)


def write_plot(figures: Figures, target: Path) -> None:
    """Draws the figures of a bench run, or those of `curve_in`, into an SVG or PNG file. Raises what `check_plot` does,
    and `UsageError` for figures of which there is no plot."""
    check_plot(target)
    write_atomic(target, plot(figures, target.suffix.lower()))


def plot(figures: Figures, kind: str = ".svg") -> bytes:
    """Returns the plot of figures as a file of that kind, `.svg` or `.png`. Raises `UsageError`, `OutputError`."""
    about, figure = _drawn(figures)
    return (plots.svg if kind == ".svg" else plots.png)(figure, about, digest_of(figures))


def has_plot(figures: Figures) -> bool:
    """Returns whether there is a plot of such figures."""
    return figures["task"] in ("compress", "curve") or (figures["task"] == "denoise" and "sigmas" in figures)


def describe(figures: Figures) -> str:
    """Returns what the plot of figures shows, in a sentence. Raises as `plot` does."""
    return _drawn(figures)[0]


def read_figures(source: Path) -> Figures:
    """Returns the figures in a JSON file of `aeimg bench --json`, or those of the loss curve of a weights file.

    Raises `DataError`, `InvalidWeights`.
    """
    if source.suffix == ".safetensors":
        return curve_in(source)
    try:
        figures = json.loads(source.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{source}: can't be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{source}: is no JSON ({error}); give a file that aeimg bench --json wrote") from error
    if not isinstance(figures, dict) or "task" not in figures:
        raise DataError(f"{source}: holds no figures of aeimg bench, which state their task")
    return figures


def curve_in(weights: Path) -> Figures:
    """Returns the loss curve of the run that trained a weights file, as its card has it. Raises `DataError`,
    `InvalidWeights`."""
    header, _, _ = load_tensors(weights)
    card: Any = header.card.get("curve")
    found: dict[str, Any] = card if isinstance(card, dict) else {}
    names = sorted(set(found) - {"step", "loss"})
    whole = bool(names) and {"step", "loss"} <= set(found)
    lengths = {len(found[name]) for name in ("step", "loss", *names)} if whole else set()
    if len(lengths) != 1:
        raise DataError(f"{weights}: its card holds no loss curve with held-out figures")
    return {"task": "curve", "model": header.label, "metric": names[0], "curve": found}


def _drawn(figures: Figures) -> tuple[str, Figure]:
    """Returns what a plot shows, and the plot."""
    try:
        if figures["task"] == "compress":
            return _of_rates(figures)
        if figures["task"] == "denoise" and "sigmas" in figures:
            return _of_speeds(figures)
        if figures["task"] == "curve":
            return _of_losses(figures)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise DataError(
            f"the figures of {figures.get('task')!r} are not as aeimg bench writes them ({error!r})"
        ) from error
    what = "pairs have no speed" if "cameras" in figures else "compress and denoise have one"
    raise UsageError(f"there is no plot of these figures of {figures['task']!r}: {what}")


def _of_rates(figures: Figures) -> tuple[str, Figure]:
    codecs = figures["codecs"]
    high = min(max(point["bpp"] for point in row["points"]) for row in codecs.values())
    shown = [
        plots.Panel(
            METRICS[metric].title,
            "bits per pixel",
            (LOWEST_RATE, high),
            [plots.Series(_codec(name, figures), curve(row["points"], metric), name == "aeimg")
             for name, row in codecs.items()],
        )
        for metric in RATE_METRICS
        if metric in figures["metrics"]
    ]  # fmt: skip
    title = f"Rate against quality, means over {figures['images']} images; higher and further left is better"
    return title, plots.panels(shown, title)


def _codec(name: str, figures: Figures) -> str:
    """Returns what people call a codec; a model that is measured beside the one that ships has its own name."""
    return _named(figures) if name == "aeimg" and "shipped" in figures["codecs"] else CODECS.get(name, name)


def _of_speeds(figures: Figures) -> tuple[str, Figure]:
    """PSNR with the level known, for each level, at the speed on one thread; measured in one precision."""
    measured = {"aeimg" if "shipped" not in figures else _named(figures): figures}
    if "shipped" in figures:
        measured["aeimg, as shipped"] = figures["shipped"]
    series = [
        plots.Series(f"{name}, sigma {sigma}: {row['known']:.1f} dB", [(_speed(own), row["known"])], own is figures)
        for name, own in measured.items()
        for sigma, row in own["sigmas"].items()
    ]
    noisy = [(f"noisy, sigma {sigma}: {row['noisy']:.1f} dB", row["noisy"]) for sigma, row in figures["sigmas"].items()]
    slow = figures["one_thread_mps"]["dncnn"]
    speeds = [slow, *map(_speed, measured.values())]
    panel = plots.Panel(
        "PSNR, dB",
        "megapixels a second on one thread",
        (min(speeds) / 1.5, 1.5 * max(speeds)),
        series,
        noisy,
        [(f"the speed of DnCNN\nin fp32: {slow:.2f} MP/s", slow)],
    )
    title = f"Denoising against speed, means over {figures['images']} images; higher and further right is better"
    return title, plots.panels([panel], title)


def _named(figures: Figures) -> str:
    return next(iter(figures["models"]))


def _speed(figures: Figures) -> float:
    return float(figures["one_thread_mps"][figures["dtype"]])


def _of_losses(figures: Figures) -> tuple[str, Figure]:
    found, metric = figures["curve"], figures["metric"]
    losses, held_out = (
        [(step, value) for step, value in zip(found["step"], found[name], strict=True) if value is not None]
        for name in ("loss", metric)
    )
    title = f"Training of {figures['model']}, {found['step'][-1]:,} steps"
    figure = plots.curve_figure(  # each loss is the mean of many steps already
        losses, held_out, title=title, metric=metric, higher_is_better=metric in RISING, smoothing=1
    )
    return title, figure
