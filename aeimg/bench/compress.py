"""`bench compress`: rate-distortion points of aeimg and its peers on the same images, BD-rates by each metric, speeds.

Files are whole, headers included, and every codec runs in the same run on the same machine. A point is the mean over
the images at one quality setting.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from .. import metrics
from ..engine import process
from ..progress import Progress
from .setting import Chosen, Figures, circumstances, images_in

Array = np.ndarray

QUALITIES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)


@dataclass(frozen=True)
class Peer:
    """A codec that Pillow runs, alone or with a plug-in."""

    format: str
    """Pillow's name of the format."""
    settings: str
    """How tables describe the settings."""
    qualities: Sequence[int]
    """The qualities at which it is measured."""
    options: Mapping[str, str | int] = field(default_factory=dict)
    """Pillow's words for the settings."""
    plugin: str | None = None
    """The module that registers the format when it is imported."""

    @property
    def available(self) -> bool:
        """Whether this machine can run it."""
        if self.plugin is not None:
            try:
                importlib.import_module(self.plugin)
            except ImportError:
                return False
        Image.init()
        return self.format in Image.SAVE


PEERS = {
    "jpeg": Peer(
        "JPEG", "optimized, progressive", (10, 20, 30, 45, 60, 75, 88, 94), {"optimize": True, "progressive": True}
    ),
    "webp": Peer("WEBP", "method 6", (1, 10, 30, 50, 75, 85, 95), {"method": 6}),
    "avif": Peer("AVIF", "speed 6", (20, 30, 40, 50, 60, 70, 80, 88), {"speed": 6}),
    "avif444": Peer("AVIF", "speed 6, 4:4:4", (20, 30, 40, 50, 60, 70, 80, 88), {"speed": 6, "subsampling": "4:4:4"}),
    "jxl": Peer("JXL", "effort 7", (10, 30, 50, 65, 75, 85, 92, 96), {"effort": 7}, "pillow_jxl"),
}
"""The codecs that aeimg is measured beside, those of them that this machine has."""


@dataclass(frozen=True)
class Metric:
    """A measure of how much a decoded image looks like its source."""

    title: str
    """What tables call it."""
    measure: Callable[[Array, Array], float]
    """Source and decoded image, uint8 `[H,W,3]`."""
    higher_is_better: bool = True
    """Whether a higher value is a better image."""
    available: Callable[[], bool] = lambda: True
    """Says whether this machine can compute it."""


METRICS = {
    "ssimulacra2": Metric("SSIMULACRA2", metrics.ssimulacra2, available=metrics.has_ssimulacra2),
    "ms_ssim": Metric("MS-SSIM, dB", metrics.ms_ssim_db),
    "butteraugli": Metric("butteraugli, 3-norm", metrics.butteraugli, False, metrics.has_butteraugli),
    "psnr": Metric("PSNR, dB", metrics.psnr),
}
"""In the order of what counts; those whose package or program is missing are left out and named."""

Coded = tuple[list[bytes], list[Array], float, float]
"""Files, decoded images, seconds of encoding and of decoding."""


def _ours(paths: Sequence[Path], effort: int, chosen: Chosen) -> Callable[[int], Coded]:
    process(paths[0], "compress", **chosen)  # loading the weights is not part of the speed

    def code(quality: int) -> Coded:
        began = time.perf_counter()
        files = list(process(iter(paths), "compress", quality=quality, effort=effort, **chosen))
        middle = time.perf_counter()
        decoded = list(process(files, "decompress", kind="numpy", **chosen))
        return files, decoded, middle - began, time.perf_counter() - middle

    return code


def _theirs(images: Sequence[Array], peer: Peer) -> Callable[[int], Coded]:
    def code(quality: int) -> Coded:
        pictures = [Image.fromarray(x) for x in images]
        began = time.perf_counter()
        files = []
        for picture in pictures:
            buffer = io.BytesIO()
            picture.save(buffer, peer.format, quality=quality, **peer.options)
            files.append(buffer.getvalue())
        middle = time.perf_counter()
        decoded = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
        return files, decoded, middle - began, time.perf_counter() - middle

    return code


def _measured(images: Sequence[Array], decoded: Iterable[Array], chosen: Sequence[str]) -> dict[str, float]:
    """The mean of each metric over the images; infinite PSNR counts as 100 dB."""
    pairs = list(zip(images, decoded, strict=True))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {name: [pool.submit(METRICS[name].measure, a, b) for a, b in pairs] for name in chosen}
        found = {name: [job.result() for job in row] for name, row in jobs.items()}
    return {name: float(np.mean([min(value, 100.0) for value in row])) for name, row in found.items()}


def _points(
    code: Callable[[int], Coded], levels: Iterable[int], images: Sequence[Array], chosen: Sequence[str]
) -> Figures:
    points, encode, decode = [], 0.0, 0.0
    for level in levels:
        files, decoded, *seconds = code(level)
        encode, decode = encode + seconds[0], decode + seconds[1]
        bpp = [metrics.bits_per_pixel(len(f), x.shape[1], x.shape[0]) for f, x in zip(files, images, strict=True)]
        points.append({"quality": level, "bpp": float(np.mean(bpp)), **_measured(images, decoded, chosen)})
    total = len(points) * sum(x.shape[0] * x.shape[1] for x in images) / 1e6
    return {"points": points, "encode": total / encode, "decode": total / decode}


def curve(points: Sequence[dict[str, float]], metric: str) -> list[tuple[float, float]]:
    """(bits per pixel, quality) of the points, where more is better, from the lowest rate to the highest.

    A point that costs more than one before it and is no better is left out: no interpolation goes through it.
    """
    sign = 1 if METRICS[metric].higher_is_better else -1
    kept: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: p["bpp"]):
        if not kept or sign * point[metric] > kept[-1][1]:
            kept.append((point["bpp"], sign * point[metric]))
    return kept


def bd_rates(codecs: dict[str, Figures], chosen: Sequence[str]) -> None:
    """Adds to each codec its BD-rate in percent by each metric against each of the others; NaN where curves do not
    meet."""
    for row in codecs.values():
        row["bd_rate"] = {}
        for metric in chosen:
            rates = row["bd_rate"][metric] = {}
            for anchor in (name for name in codecs if name != "aeimg"):
                curves = [curve(one["points"], metric) for one in (codecs[anchor], row)]
                try:
                    rates[anchor] = metrics.bd_rate(*curves)
                except ValueError:
                    rates[anchor] = math.nan


def bench_compress(
    data: Path,
    *,
    model: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    qualities: Sequence[int] = QUALITIES,
    effort: int = 1,
    peers: Sequence[str] | None = None,
    progress: bool = False,
) -> Figures:
    """Rate-distortion points, BD-rates and speeds of aeimg and its peers on the images in `data`.

    Args:
        data: a folder of images, taken as 8-bit RGB.
        model: a registered codec or a weights file; the codec that ships is then one of the peers.
        limit: only the first so many images.
        device, dtype, effort: as for `process`.
        qualities: those of aeimg.
        peers: names in `PEERS`; None takes all that this machine can run.
        progress: whether a progress bar is shown on standard error, or a line now and then.

    Returns:
        A dictionary that JSON can hold; `table` draws it. `codecs` maps each codec to its `points` (quality, bpp and a
        value for each metric), `bd_rate` (metric -> peer -> percent) and speeds in megapixels per second.
    """
    found = images_in(data, limit)
    paths, images = [path for path, _ in found], [x for _, x in found]
    smallest = min(min(x.shape[:2]) for x in images)
    chosen = [name for name, metric in METRICS.items() if metric.available()]
    if smallest < metrics.SMALLEST_FOR_MS_SSIM:
        chosen.remove("ms_ssim")
    ours = {"aeimg": model} if model is None else {"aeimg": model, "shipped": None}
    codecs = {
        name: (f"effort {effort}", _ours(paths, effort, Chosen(model=one, device=device, dtype=dtype)), qualities)
        for name, one in ours.items()
    }
    for name in PEERS if peers is None else peers:
        if PEERS[name].available:
            codecs[name] = (PEERS[name].settings, _theirs(images, PEERS[name]), PEERS[name].qualities)
    rows = {}
    count = sum(len(levels) for *_, levels in codecs.values())
    with Progress("bench compress", count, wanted=progress, item="points", speed=None) as shown:
        for name, (settings, code, levels) in codecs.items():
            through = shown.each(levels, lambda level, name=name: f"{name}, quality {level}")  # type: ignore[misc]
            rows[name] = {"settings": settings, **_points(code, through, images, chosen)}
    bd_rates(rows, chosen)
    return {
        "task": "compress",
        "images": len(images),
        "megapixels": sum(x.shape[0] * x.shape[1] for x in images) / 1e6,
        "metrics": chosen,
        "not_measured": [name for name in METRICS if name not in chosen]
        + [name for name in PEERS if peers is None and name not in codecs],
        "codecs": rows,
        **circumstances("compress", model, device, dtype),
    }


def quality_rows(figures: Figures) -> list[str]:
    """What each quality of aeimg gives on average, as a Markdown table for the documentation."""
    chosen = figures["metrics"]
    titles = ["quality", "bits per pixel", *(METRICS[metric].title for metric in chosen)]
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for point in figures["codecs"]["aeimg"]["points"]:
        values = " | ".join(f"{point[metric]:.1f}" for metric in chosen)
        rows.append(f"| {point['quality']} | {point['bpp']:.2f} | {values} |")
    return rows


def table(figures: Figures) -> str:
    """The figures as text."""
    chosen, codecs = figures["metrics"], figures["codecs"]
    lines = [f"{figures['images']} images, {figures['megapixels']:.1f} megapixels; whole files, means over the images"]
    for name, row in codecs.items():
        titles = "".join(f"{METRICS[metric].title:>21}" for metric in chosen)
        lines.append(f"{name + ' ' + row['settings']:24}{'bpp':>8}{titles}")
        for point in row["points"]:
            values = "".join(f"{point[metric]:21.3f}" for metric in chosen)
            lines.append(f"    quality {point['quality']:3}{'':9}{point['bpp']:8.3f}{values}")
    lines += ["", *quality_rows(figures)]
    for metric in chosen:
        anchors = codecs["aeimg"]["bd_rate"][metric]
        title = f"BD-rate ({METRICS[metric].title}) against"
        lines += ["", f"{title:40}" + "".join(f"{name:>10}" for name in anchors)]
        for name, row in codecs.items():
            lines.append(f"{name:40}" + "".join(f"{value:+9.1f}%" for value in row["bd_rate"][metric].values()))
    lines += ["", f"{'megapixels/s':40}{'encode':>10}{'decode':>10}"]
    lines += [f"{name:40}{row['encode']:10.2f}{row['decode']:10.2f}" for name, row in codecs.items()]
    if figures["not_measured"]:
        lines += ["", f"not on this machine, so not measured: {', '.join(figures['not_measured'])}"]
    return "\n".join(lines)
