"""Figures against the usual codecs, and for denoisers against the noise: whole files, through the public API.

    bench_compress   rate-distortion points of aeimg, JPEG, WebP and AVIF on the same images; BD-rates; speeds
    bench_denoise    PSNR over noise levels, told and estimated; speed on one core

A set of figures is a dictionary that JSON can hold; `table` draws it.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import zoo
from .engine import process
from .errors import DataError
from .metrics import bd_rate, bits_per_pixel, psnr
from .paths import find_images

Figures = dict[str, Any]

QUALITIES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
PEERS: dict[str, tuple[str, str, dict[str, Any], Sequence[int]]] = {
    "jpeg": ("JPEG", "optimized, progressive", {"optimize": True, "progressive": True}, (10, 20, 30, 45, 60, 75, 88)),
    "webp": ("WEBP", "method 6", {"method": 6}, (1, 10, 30, 50, 75, 85, 95)),
    "avif": ("AVIF", "speed 6", {"speed": 6}, (20, 30, 40, 50, 60, 70, 80, 88)),
}
"""Name -> Pillow's format, what is said of it, its options, and its qualities."""


def _images(data: Path, limit: int | None) -> list[tuple[Path, np.ndarray]]:
    paths = find_images(Path(data))[:limit]
    if not paths:
        raise DataError(f"{data}: no images to measure on")
    return [(path, np.asarray(Image.open(path).convert("RGB"))) for path in paths]


def _circumstances(task: str, model: str | None, device: str, dtype: str) -> Figures:
    """Which model was measured, where and how."""
    import torch

    measured = zoo.get(model, task, zoo.pick_device(device))
    return {
        "label": getattr(measured, "label", str(model)),
        "digest": getattr(measured, "digest", b"").hex(),
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


def bench_compress(
    data: Path,
    *,
    model: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    qualities: Sequence[int] = QUALITIES,
    effort: int = 1,
) -> Figures:
    """Bits per pixel of whole files, RGB PSNR, BD-rates and speeds of aeimg and its peers on the images in `data`."""
    images = _images(data, limit)
    megapixels = sum(x.shape[0] * x.shape[1] for _, x in images) / 1e6
    chosen: dict[str, Any] = {"model": model, "device": device, "dtype": dtype}
    process(images[0][1], "compress", **chosen)  # loading the weights is not part of the speed

    def ours(quality: int) -> tuple[list[bytes], list[np.ndarray], float, float]:
        began = time.perf_counter()
        paths = (path for path, _ in images)
        files = list(process(paths, "compress", quality=quality, effort=effort, **chosen))
        middle = time.perf_counter()
        decoded = list(process(files, "decompress", kind="numpy", **chosen))
        return files, decoded, middle - began, time.perf_counter() - middle

    def peer(kind: str, options: dict[str, Any]) -> Callable[[int], tuple[list[bytes], list[np.ndarray], float, float]]:
        def code(quality: int) -> tuple[list[bytes], list[np.ndarray], float, float]:
            pictures = [Image.fromarray(x) for _, x in images]
            began = time.perf_counter()
            files = []
            for picture in pictures:
                buffer = io.BytesIO()
                picture.save(buffer, kind, quality=quality, **options)
                files.append(buffer.getvalue())
            middle = time.perf_counter()
            decoded = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
            return files, decoded, middle - began, time.perf_counter() - middle

        return code

    codecs: dict[str, tuple[Callable[[int], Any], Sequence[int], str]] = {
        "aeimg": (ours, qualities, f"effort {effort}")
    }
    for name, (kind, about, options, levels) in PEERS.items():
        codecs[name] = (peer(kind, options), levels, about)
    rows = {}
    for name, (code, levels, about) in codecs.items():
        points, encode, decode = [], 0.0, 0.0
        for level in levels:
            files, decoded, e, d = code(level)
            encode, decode = encode + e, decode + d
            bpp = [bits_per_pixel(len(f), x.shape[1], x.shape[0]) for f, (_, x) in zip(files, images, strict=True)]
            dB = [psnr(y, x) for y, (_, x) in zip(decoded, images, strict=True)]  # noqa: N806
            points.append({"quality": level, "bpp": float(np.mean(bpp)), "psnr": float(np.mean(dB))})
        total = megapixels * len(levels)
        rows[name] = {"settings": about, "points": points, "encode": total / encode, "decode": total / decode}
    for row in rows.values():
        curve = [(p["bpp"], p["psnr"]) for p in row["points"]]
        row["bd_rate"] = {
            anchor: bd_rate([(p["bpp"], p["psnr"]) for p in rows[anchor]["points"]], curve) for anchor in PEERS
        }
    return {
        "task": "compress",
        "images": len(images),
        "megapixels": megapixels,
        "codecs": rows,
        **_circumstances("compress", model, device, dtype),
    }


def bench_denoise(
    data: Path,
    *,
    model: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    sigmas: Sequence[float] = (15, 25, 50),
    side: int = 1024,
) -> Figures:
    """RGB PSNR of images with white noise (unclipped floats, fixed seed; results rounded to 8 bits), and the speed.

    Each level is measured with sigma told and with sigma estimated, in colour; and told, in greyscale. The speed is
    that of one thread on a square of `side` pixels, twice: in fp32 and in the dtype that was asked for.
    """
    import torch

    images = [x for _, x in _images(data, limit)]
    grey = [np.asarray(Image.fromarray(x).convert("L")) for x in images]
    chosen: dict[str, Any] = {"model": model, "device": device, "dtype": dtype}

    def noisy(stack: list[np.ndarray], sigma: float) -> list[np.ndarray]:
        result = []
        for index, x in enumerate(stack):
            noise = np.random.default_rng((index, int(10 * sigma))).standard_normal(x.shape)
            result.append((x / 255.0 + noise * sigma / 255.0).astype(np.float32))
        return result

    def score(stack: list[np.ndarray], results: Any) -> float:
        rounded = (np.rint(np.clip(y, 0, 1) * 255).astype(np.uint8) for y in results)
        return float(np.mean([psnr(y, x) for y, x in zip(rounded, stack, strict=True)]))

    rows = {}
    for sigma in sigmas:
        inputs = noisy(images, sigma)
        rows[f"{sigma:g}"] = {
            "noisy": score(images, inputs),
            "told": score(images, process(iter(inputs), "denoise", sigma=sigma, **chosen)),
            "auto": score(images, process(iter(inputs), "denoise", sigma="auto", **chosen)),
            "grey": score(grey, process(iter(noisy(grey, sigma)), "denoise", sigma=sigma, **chosen)),
        }
    largest = max(images, key=lambda x: x.shape[0] * x.shape[1])
    repeats = (-(-side // largest.shape[0]), -(-side // largest.shape[1]), 1)
    square = np.tile(largest, repeats)[:side, :side].astype(np.float32) / 255
    threads = torch.get_num_threads()
    speeds = {}
    try:
        torch.set_num_threads(1)
        for name in ("fp32", dtype):
            options = {**chosen, "dtype": name, "sigma": 25, "jobs": 1}
            process(square, "denoise", **options)
            seconds = []
            for _ in range(3):
                began = time.perf_counter()
                process(square, "denoise", **options)
                seconds.append(time.perf_counter() - began)
            speeds[name] = side * side / 1e6 / min(seconds)
    finally:
        torch.set_num_threads(threads)
    return {
        "task": "denoise",
        "images": len(images),
        "sigmas": rows,
        "one_thread_mps": speeds,
        **_circumstances("denoise", model, device, dtype),
    }


def write_card(weights: Path, data: Path, figures: Figures) -> None:
    """Adds what was measured on `data` to the card of a weights file; its digest stays what it is."""
    header, tensors, _ = zoo.load_tensors(weights)
    if figures["task"] == "compress":
        ours = figures["codecs"]["aeimg"]
        row = {"bd_rate": {k: round(v, 1) for k, v in ours["bd_rate"].items()}}
    else:
        row = {sigma: {k: round(v, 2) for k, v in psnr.items()} for sigma, psnr in figures["sigmas"].items()}
    measured = {**header.card.get("figures", {}), Path(data).name: row}
    zoo.save_weights(weights, tensors, replace(header, card={**header.card, "figures": measured}))


def table(figures: Figures) -> str:
    """A set of figures as text."""
    lines = []
    if figures["task"] == "compress":
        lines.append(f"{figures['images']} images, {figures['megapixels']:.1f} megapixels; whole files, RGB PSNR")
        for name, row in figures["codecs"].items():
            lines.append(f"{name} {row['settings']}".rstrip())
            for point in row["points"]:
                lines.append(f"    quality {point['quality']:3}  {point['bpp']:6.3f} bpp  {point['psnr']:6.2f} dB")
        lines.append("")
        lines.append(f"{'BD-rate (PSNR) against':24}" + "".join(f"{name:>10}" for name in PEERS))
        for name, row in figures["codecs"].items():
            lines.append(f"{name:24}" + "".join(f"{row['bd_rate'][anchor]:+9.1f}%" for anchor in PEERS))
        lines.append("")
        lines.append(f"{'megapixels/s':24}{'encode':>10}{'decode':>10}")
        for name, row in figures["codecs"].items():
            lines.append(f"{name:24}{row['encode']:10.2f}{row['decode']:10.2f}")
    else:
        lines.append(f"{figures['images']} images, white noise; RGB PSNR in dB")
        lines.append(f"{'sigma':>8}{'noisy':>10}{'told':>10}{'auto':>10}{'grey':>10}")
        for sigma, row in figures["sigmas"].items():
            lines.append(f"{sigma:>8}" + "".join(f"{row[key]:10.2f}" for key in ("noisy", "told", "auto", "grey")))
        lines.append("")
        speeds = ", ".join(f"{name} {speed:.2f}" for name, speed in figures["one_thread_mps"].items())
        lines.append(f"megapixels/s on one thread: {speeds}")
    return "\n".join(lines)
