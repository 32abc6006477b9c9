"""`bench denoise`: PSNR of denoisers over noise levels, after JPEG, of clean images and of real pairs; their speed."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from ..engine import process
from ..errors import DataError
from ..metrics import psnr, ssim
from ..paths import find_images
from ..pixels import to_eight_bits
from ..progress import Progress
from .setting import Chosen, Figures, circumstances, images_in

if TYPE_CHECKING:
    from torch import nn

P = TypeVar("P", Image.Image, np.ndarray)
SHIPPED = "shipped"
"""What tables call what aeimg chooses among the denoisers that come with it, beside a model that is measured."""


def _dncnn() -> nn.Module:
    """DnCNN for colour (Zhang et al. 2017), 20 layers of 64 channels; its weights are random, which takes as long."""
    from torch import nn

    layers: list[nn.Module] = []
    for index in range(20):
        last = index == 19
        layers.append(nn.Conv2d(3 if index == 0 else 64, 3 if last else 64, 3, padding=1))
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _denoising_speeds(square: np.ndarray, chosen: Chosen) -> Figures:
    """Megapixels/s on one thread in fp32 and in the dtype asked for, through `process`; and those of DnCNN in fp32."""
    import torch

    megapixels = square.shape[0] * square.shape[1] / 1e6
    dncnn = _dncnn().to(memory_format=torch.channels_last)
    x = torch.from_numpy(square).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)

    def ours(dtype: str) -> None:
        process(square, "denoise", model=chosen["model"], device=chosen["device"], dtype=dtype, sigma=25, jobs=1)

    def peer() -> None:
        with torch.inference_mode():
            dncnn(x)

    runs: dict[str, Callable[[], None]] = {
        "fp32": lambda: ours("fp32"),
        "dncnn": peer,
        chosen["dtype"]: lambda: ours(chosen["dtype"]),
    }
    threads = torch.get_num_threads()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    try:
        torch.set_num_threads(1)
        for turn in range(4):
            for name, run in runs.items():  # in turns, so that what else the machine does meets all alike
                began = time.perf_counter()
                run()
                if turn:
                    seconds[name].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    speeds = {name: megapixels / min(times) for name, times in seconds.items()}
    return {"one_thread_mps": speeds, "times_dncnn": speeds["fp32"] / speeds["dncnn"]}


@dataclass(frozen=True)
class _Denoiser:
    """What is measured, as `process` runs it."""

    chosen: Chosen
    """Which model runs, and where."""

    def __call__(self, images: Iterable[P], sigma: float | str = "auto") -> list[P]:
        return list(process(iter(images), "denoise", sigma=sigma, **self.chosen))

    def white_noise(self, images: list[np.ndarray], grey: list[np.ndarray], sigma: float) -> dict[str, float]:
        """PSNR of noisy images, and of what becomes of them with sigma known and estimated, and in greyscale."""
        inputs = _with_noise(images, sigma)
        return {
            "noisy": _mean_psnr(images, inputs),
            "known": _mean_psnr(images, self(inputs, sigma)),
            "auto": _mean_psnr(images, self(inputs)),
            "grey": _mean_psnr(grey, self(_with_noise(grey, sigma), sigma)),
        }

    def jpeg(self, images: list[np.ndarray]) -> dict[str, float]:
        """PSNR after noise of sigma 25 and JPEG of quality 75, 4:2:0."""
        compressed: list[Image.Image] = []
        for x in _with_noise(images, 25):
            buffer = io.BytesIO()
            Image.fromarray(to_eight_bits(x)).save(buffer, "JPEG", quality=75, subsampling="4:2:0")
            compressed.append(Image.open(buffer))
        results = map(np.asarray, self(compressed))
        return {"noisy": _mean_psnr(images, map(np.asarray, compressed)), "auto": _mean_psnr(images, results)}

    def clean(self, images: list[np.ndarray]) -> dict[str, float]:
        """How far clean images, and the means of their channels, change; equal images count as 100 dB."""
        kept = [np.asarray(y) for y in self(map(Image.fromarray, images))]
        pairs = list(zip(kept, images, strict=True))
        shifts = [np.abs((y.astype(float) - x).mean((0, 1))).max() for y, x in pairs]
        return {
            "psnr": float(np.mean([min(psnr(y, x), 100.0) for y, x in pairs])),
            "shift": float(np.mean(shifts)),
            "largest_shift": float(np.max(shifts)),
        }


def _with_noise(images: list[np.ndarray], sigma: float) -> list[np.ndarray]:
    """The images as float32 in [0,1] with white noise, not clipped, the same in every run."""
    noisy = []
    for index, x in enumerate(images):
        noise = np.random.default_rng((index, int(10 * sigma))).standard_normal(x.shape)
        noisy.append((x / 255.0 + noise * sigma / 255.0).astype(np.float32))
    return noisy


def _mean_psnr(images: list[np.ndarray], results: Iterable[np.ndarray]) -> float:
    """In dB, of results rounded to 8 bits."""
    return float(np.mean([psnr(to_eight_bits(y), x) for y, x in zip(results, images, strict=True)]))


def bench_denoise(
    data: Path,
    *,
    model: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    sigmas: Sequence[float] = (15, 25, 50),
    side: int = 1024,
    progress: bool = False,
) -> Figures:
    """RGB PSNR of a denoiser, or of what `aeimg denoise` chooses, and its speed on one thread.

    White noise (unclipped floats, fixed seed; results rounded to 8 bits) with sigma known and estimated, in colour, and
    known, in greyscale; noise of sigma 25, then JPEG of quality 75 with 4:2:0; and clean images, for how far they and
    the means of their channels change.

    Args:
        data: a folder of images, taken as 8-bit RGB; or one with `noisy/` and `clean/`, whose pairs are measured
            instead.
        model: a registered denoiser or a weights file; None lets aeimg choose for each image. With one, what
            aeimg would choose is measured as well, as `shipped`.
        limit: only the first so many images.
        device, dtype: as for `process`.
        sigmas: levels of white noise, in 8-bit units.
        side: of the square that speed is measured on, in pixels.
        progress: whether a progress bar is shown on standard error, or a line now and then.
    """
    every = [Chosen(model=one, device=device, dtype=dtype) for one in ([None] if model is None else [model, None])]
    if (Path(data) / "noisy").is_dir() and (Path(data) / "clean").is_dir():
        paths = find_images(Path(data) / "noisy")[:limit]
        with Progress("bench denoise", len(every) * len(paths), wanted=progress, item="pairs", speed=None) as shown:
            first, *rest = [_bench_pairs(Path(data), paths, one, shown) for one in every]
        return {**first, **({"shipped": rest[0]} if rest else {})}
    images = [x for _, x in images_in(data, limit)]
    grey = [np.asarray(Image.fromarray(x).convert("L")) for x in images]
    largest = max(images, key=lambda x: x.shape[0] * x.shape[1])
    repeats = (-(-side // largest.shape[0]), -(-side // largest.shape[1]), 1)
    square = np.tile(largest, repeats)[:side, :side].astype(np.float32) / 255
    parts = len(every) * (len(sigmas) + 3)
    with Progress("bench denoise", parts, wanted=progress, item="measurements", speed=None) as shown:
        first, *rest = [
            {
                "images": len(images),
                **_measured(one, images, grey, sigmas, square, shown),
                **circumstances("denoise", **one),
            }
            for one in every
        ]
    return {"task": "denoise", **first, **({"shipped": rest[0]} if rest else {})}


def _measured(
    chosen: Chosen,
    images: list[np.ndarray],
    grey: list[np.ndarray],
    sigmas: Sequence[float],
    square: np.ndarray,
    shown: Progress,
) -> Figures:
    """The figures of one denoiser, each of which counts as one item of the progress."""
    denoiser = _Denoiser(chosen)
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "jpeg75": lambda: {"jpeg75": denoiser.jpeg(images)},
        "clean": lambda: {"clean": denoiser.clean(images)},
        "speed": lambda: _denoising_speeds(square, chosen),
    }
    who = "" if chosen["model"] is None else f" of {chosen['model']}"
    figures: Figures = {"sigmas": {}}
    for sigma in shown.each(sigmas, lambda sigma: f"sigma {sigma:g}{who}"):
        figures["sigmas"][f"{sigma:g}"] = denoiser.white_noise(images, grey, sigma)
    for name in shown.each(runs, lambda name: f"{name}{who}"):
        figures |= runs[name]()
    return figures


def _bench_pairs(data: Path, paths: Sequence[Path], chosen: Chosen, shown: Progress) -> Figures:
    """PSNR and SSIM against the clean ones of real noisy images, by camera: what their names begin with, up to `_`."""
    if not paths:
        raise DataError(f"{data}: no images to measure on")
    results = zip(paths, process(iter(paths), "denoise", **chosen), strict=True)
    rows: dict[str, list[tuple[float, ...]]] = {}
    for path, result in shown.each(results, lambda pair: pair[0].name):
        noisy, clean = (np.asarray(Image.open(data / kind / path.name).convert("RGB")) for kind in ("noisy", "clean"))
        pair = [(psnr(y, clean), ssim(y, clean)) for y in (noisy, np.asarray(result))]
        row = tuple(value for figures in pair for value in figures)
        for camera in (path.stem.split("_")[0], "all"):
            rows.setdefault(camera, []).append(row)
    names = ("noisy", "noisy_ssim", "auto", "auto_ssim")
    cameras = {}
    for camera in sorted(rows):
        figures = dict(zip(names, np.mean(rows[camera], axis=0).tolist(), strict=True))
        cameras[camera] = {"pairs": len(rows[camera]), **figures, "gain": figures["auto"] - figures["noisy"]}
    return {
        "task": "denoise",
        "images": cameras["all"]["pairs"],
        "cameras": cameras,
        **circumstances("denoise", **chosen),
    }


def table(figures: Figures) -> str:
    """The figures as text."""
    if "cameras" in figures:
        lines = [f"{figures['images']} pairs, real noise; RGB PSNR in dB, SSIM"]
        lines.append(f"{'camera':>12}{'pairs':>8}{'noisy':>8}{'auto':>8}{'gain':>8}{'SSIM':>8}{'auto':>8}")
        for camera, row in figures["cameras"].items():
            lines.append(_camera_row(camera, row))
            if "shipped" in figures:
                lines.append(_camera_row(SHIPPED, figures["shipped"]["cameras"][camera]))
        return "\n".join(lines)
    lines = [f"{figures['images']} images; RGB PSNR in dB"]
    lines.append(f"{'white noise':>12}{'noisy':>10}{'known':>10}{'auto':>10}{'grey':>10}")
    every = [("", figures), *([(SHIPPED, figures["shipped"])] if "shipped" in figures else [])]
    for sigma in figures["sigmas"]:
        for who, own in every:
            row = own["sigmas"][sigma]
            lines.append(
                f"{who or sigma:>12}" + "".join(f"{row[key]:10.2f}" for key in ("noisy", "known", "auto", "grey"))
            )
    for who, own in every:
        jpeg = own["jpeg75"]
        lines.append(f"{who or '25, JPEG 75':>12}{jpeg['noisy']:10.2f}{'':10}{jpeg['auto']:10.2f}")
    for who, own in every:
        clean, speeds = own["clean"], ", ".join(f"{name} {speed:.2f}" for name, speed in own["one_thread_mps"].items())
        lines += [
            *(["", f"{who} with aeimg:"] if who else []),
            f"Clean images come back at {clean['psnr']:.2f} dB. The mean of the channel that changes most shifts by",
            f"{clean['shift']:.3f} of 255 on average over the images, by {clean['largest_shift']:.3f} at most.",
            "",
            f"megapixels/s on one thread: {speeds}; in fp32 {own['times_dncnn']:.1f} times DnCNN",
        ]
    return "\n".join(lines)


def _camera_row(name: str, row: dict[str, float]) -> str:
    values = f"{row['noisy']:8.2f}{row['auto']:8.2f}{row['gain']:+8.2f}"
    return f"{name:>12}{row['pairs']:8}{values}{row['noisy_ssim']:8.3f}{row['auto_ssim']:8.3f}"
