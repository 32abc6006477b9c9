"""Figures against the usual codecs, and for denoisers against the noise: whole files, through the public API.

    bench_compress   rate-distortion points of aeimg, JPEG, WebP and AVIF on the same images; BD-rates; speeds
    bench_denoise    PSNR over noise levels, told and estimated, after JPEG, of real pairs; speed on one core
    bench_engine     how near a run over files comes to what its parts need
    bench_anomaly    how well small autoencoders tell other digits from their own
    bench_textbooks  the textbooks' figures for what is not shipped

A set of figures is a dictionary that JSON can hold; `table` draws it.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from ..engine import process
from ..errors import DataError
from ..metrics import psnr, roc_auc, ssim
from ..paths import find_images
from ..pixels import to_eight_bits
from ..weights import load_tensors, save_weights
from . import compress
from .compress import bench_compress
from .setting import Figures, circumstances, images_in

__all__ = [
    "bench_anomaly",
    "bench_compress",
    "bench_denoise",
    "bench_engine",
    "bench_textbooks",
    "table",
    "write_card",
]


def _dncnn() -> Any:
    """DnCNN for colour (Zhang et al. 2017), 20 layers of 64 channels; its weights are random, which takes as long."""
    from torch import nn

    layers: list[nn.Module] = []
    for index in range(20):
        last = index == 19
        layers.append(nn.Conv2d(3 if index == 0 else 64, 3 if last else 64, 3, padding=1))
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _denoising_speeds(square: np.ndarray, chosen: dict[str, Any]) -> Figures:
    """Megapixels/s on one thread in fp32 and in the dtype asked for, through `process`; and those of DnCNN in fp32."""
    import torch

    megapixels = square.shape[0] * square.shape[1] / 1e6
    dncnn = _dncnn().to(memory_format=torch.channels_last)
    x = torch.from_numpy(square).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    options = {**chosen, "sigma": 25, "jobs": 1}

    def peer() -> None:
        with torch.inference_mode():
            dncnn(x)

    runs: dict[str, Callable[[], Any]] = {
        "fp32": lambda: process(square, "denoise", **{**options, "dtype": "fp32"}),
        "dncnn": peer,
        chosen["dtype"]: lambda: process(square, "denoise", **options),
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
    """RGB PSNR of a denoiser, or of what `aeimg denoise` chooses, on the images in `data`; and its speed on one thread.

    White noise (unclipped floats, fixed seed; results rounded to 8 bits) with sigma told and estimated, in colour, and
    told, in greyscale; noise of sigma 25, then JPEG of quality 75 with 4:2:0; and the clean images themselves, for how
    far they and the means of their channels are moved. Where `data` holds `noisy/` and `clean/`, the pairs instead.
    """
    chosen: dict[str, Any] = {"model": model, "device": device, "dtype": dtype}
    if (Path(data) / "noisy").is_dir() and (Path(data) / "clean").is_dir():
        return _bench_pairs(Path(data), limit, chosen)
    images = [x for _, x in images_in(data, limit)]
    grey = [np.asarray(Image.fromarray(x).convert("L")) for x in images]

    def noisy(stack: list[np.ndarray], sigma: float) -> list[np.ndarray]:
        result = []
        for index, x in enumerate(stack):
            noise = np.random.default_rng((index, int(10 * sigma))).standard_normal(x.shape)
            result.append((x / 255.0 + noise * sigma / 255.0).astype(np.float32))
        return result

    def score(stack: list[np.ndarray], results: Any) -> float:
        return float(np.mean([psnr(to_eight_bits(y), x) for y, x in zip(results, stack, strict=True)]))

    def run(stack: Any, sigma: float | str = "auto") -> Any:
        return process(iter(stack), "denoise", sigma=sigma, **chosen)

    rows = {}
    for sigma in sigmas:
        inputs = noisy(images, sigma)
        rows[f"{sigma:g}"] = {
            "noisy": score(images, inputs),
            "told": score(images, run(inputs, sigma)),
            "auto": score(images, run(inputs)),
            "grey": score(grey, run(noisy(grey, sigma), sigma)),
        }
    compressed = []
    for x in noisy(images, 25):
        buffer = io.BytesIO()
        Image.fromarray(to_eight_bits(x)).save(buffer, "JPEG", quality=75, subsampling="4:2:0")
        compressed.append(Image.open(buffer))
    jpeg = {
        "noisy": score(images, map(np.asarray, compressed)),
        "auto": score(images, map(np.asarray, run(compressed))),
    }
    kept = [np.asarray(y) for y in run(map(Image.fromarray, images))]
    shifts = [np.abs((y.astype(float) - x).mean((0, 1))).max() for y, x in zip(kept, images, strict=True)]
    clean = {
        "psnr": float(np.mean([min(psnr(y, x), 100.0) for y, x in zip(kept, images, strict=True)])),
        "shift": float(np.mean(shifts)),
        "largest_shift": float(np.max(shifts)),
    }
    largest = max(images, key=lambda x: x.shape[0] * x.shape[1])
    repeats = (-(-side // largest.shape[0]), -(-side // largest.shape[1]), 1)
    square = np.tile(largest, repeats)[:side, :side].astype(np.float32) / 255
    return {
        "task": "denoise",
        "images": len(images),
        "sigmas": rows,
        "jpeg75": jpeg,
        "clean": clean,
        **_denoising_speeds(square, chosen),
        **circumstances("denoise", model, device, dtype),
    }


def _bench_pairs(data: Path, limit: int | None, chosen: dict[str, Any]) -> Figures:
    """PSNR and SSIM against the clean ones of real noisy images, by camera: what their names begin with, up to `_`."""
    paths = find_images(data / "noisy")[:limit]
    if not paths:
        raise DataError(f"{data}: no images to measure on")
    results = process(iter(paths), "denoise", **chosen)
    rows: dict[str, list[tuple[float, ...]]] = {}
    for path, result in zip(paths, results, strict=True):
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
        "images": len(paths),
        "cameras": cameras,
        **circumstances("denoise", chosen["model"], chosen["device"], chosen["dtype"]),
    }


def bench_engine(
    data: Path, *, task: str = "denoise", limit: int | None = None, device: str = "auto", dtype: str = "auto"
) -> Figures:
    """How near a run over files comes to what its parts need: 1 is nothing lost.

    `busy`: the time that reading, model and writing take when each is done by itself, for all images in `data` and with
    the same threads, over that of a run that does them at once. `hidden`: how long a model slept that only sleeps, as
    long for all images as twice reading and writing take, over that of the run around it. That run takes the images as
    often as makes a hundred of them: a model has to wait for the first batch to be read and the last to be written,
    which is much of a short run and nothing of a long one.
    """
    import tempfile

    from ..engine import make_task
    from ..stream import stream
    from ..tasks.options import OPTIONS
    from ..tasks.pictures import FileSource

    paths = find_images(Path(data))[:limit]
    if not paths:
        raise DataError(f"{data}: no images to measure on")
    sources = [FileSource(path, ".png") for path in paths]
    whole: Any = make_task(task, None, device, dtype, OPTIONS[task]())

    def only(**parts: Any) -> Any:
        """The task, with nothing left of its steps but those that are given."""
        nothing = {"run": lambda items: list(items), "finish": lambda item, result: result}
        return SimpleNamespace(**{"prepare": whole.prepare, "key": whole.key, "small": True, **nothing, **parts})

    def timed(sources: Sequence[Any], parts: Any) -> tuple[float, list[Any]]:
        began = time.perf_counter()
        outcomes = list(stream(sources, parts, memory=64 << 30))
        return time.perf_counter() - began, [outcome.value for outcome in outcomes if outcome.error is None]

    def given(item: Any) -> Any:
        return item

    whole.run([whole.prepare(sources[0])])  # loading and warming up is not part of the speed

    def finish(item: Any, result: Any) -> int:
        return len(whole.finish(item, result).value)

    reading, items = timed(sources, only())
    running, made = timed(items, only(prepare=given, run=whole.run))
    results = {item.picture.name: result for item, result in zip(items, made, strict=True)}

    def known(batch: list[Any]) -> list[Any]:
        return [results[item.picture.name] for item in batch]

    writing, _ = timed(items, only(prepare=given, run=known, finish=finish))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        options: dict[str, Any] = {"device": device, "dtype": dtype, "if_exists": "overwrite"}
        if task == "denoise":
            process(paths, "denoise", out=folder, format="png", **options)
        else:
            process(paths, "compress", out=folder, **options)
        wall = time.perf_counter() - began
    each = 2 * (reading + writing) / len(items)

    def sleep(batch: list[Any]) -> list[Any]:
        time.sleep(each * len(batch))
        return known(batch)

    often = sources * -(-100 // len(sources))
    asleep, done = timed(often, only(run=sleep, finish=finish))
    return {
        "task": "engine",
        "verb": task,
        "images": len(items),
        "seconds": {"reading": reading, "model": running, "writing": writing, "all": wall},
        "busy": (reading + running + writing) / wall,
        "hidden": each * len(done) / asleep,
        "cores": os.cpu_count(),
    }


def _nothing(line: str) -> None:
    pass


def bench_anomaly(data: Path, *, width: int = 32, steps: int = 3000, device: str = "auto") -> Figures:
    """How well a `vanilla` autoencoder of one digit tells the others apart: area under the ROC curve, for each digit.

    `data` holds idx files; the last fifth is the test. Scores are `aeimg score`'s; beside it, those of principal
    components of the same training images, as many as the code is wide.
    """
    import tempfile

    from ..training import train
    from ..training.datasets import Digits

    every = Digits(data)
    test = every.split()
    images, labels = every.images[test], every.labels[test]
    rows: dict[str, dict[str, float]] = {}
    for digit in sorted(set(labels.tolist())):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "one.safetensors"
            config, recipe = {"widths": (width,)}, {"labels": (digit,)}
            train("vanilla", data, out, steps=steps, config=config, recipe=recipe, device=device, log=_nothing)
            scored = process(iter(images), "score", model=out, device=device)
            errors = np.array([one.score for one in scored])
        one = Digits(data, (digit,))
        one.split()
        left = component_errors(one.images[: one.training], images, width)
        inside = labels == digit
        rows[str(digit)] = {
            "vanilla": roc_auc(errors[inside], errors[~inside]), "components": roc_auc(left[inside], left[~inside])
        }  # fmt: skip
    return {
        "task": "anomaly",
        "images": len(images),
        "width": width,
        "digits": rows,
        "mean": {name: float(np.mean([row[name] for row in rows.values()])) for name in ("vanilla", "components")},
    }


def component_errors(seen: np.ndarray, images: np.ndarray, width: int) -> np.ndarray:
    """The mean squared error that so many principal components of the images `seen` leave of each of `images`.

    Both uint8 `[N,S,S]`; errors are of pixels in [0,1].
    """
    known, x = (some.reshape(len(some), -1) / 255.0 for some in (seen, images))
    mean = known.mean(0)
    axes = np.linalg.eigh((known - mean).T @ (known - mean))[1][:, -width:]
    centred = x - mean
    return np.asarray(np.square(centred - centred @ axes @ axes.T).mean(1))


UNSHIPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "deep2d": ("deep2d", {}),
    "vanilla, 32 values": ("vanilla", {"widths": (32,)}),
    "vanilla, 128 values": ("vanilla", {"widths": (128,)}),
}
"""What the textbooks' figures are also asked of -> the family, and the config where it is not its own."""


def bench_textbooks(data: Path, *, device: str = "auto", steps: int | None = None) -> Figures:
    """Held-out figures of `UNSHIPPED`, each trained on the idx files in `data`; and of as many principal components as
    `linear` (all digits) and `deep2d` (its three) have code values.

    Of `deep2d` also how far apart its digits lie: the share of held-out ones whose nearest neighbour is of their kind.
    """
    import tempfile

    from ..training import train
    from ..training.datasets import Digits
    from ..training.textbook_objectives import TEXTBOOKS

    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (family, config) in UNSHIPPED.items():
            out = Path(folder) / f"{name}.safetensors"
            card = train(family, data, out, steps=steps, config=config, device=device, log=_nothing).card
            runs[name] = {key: card[key] for key in ("held_out", "steps", "seed", "commit", "device")}
            if name == "deep2d":
                three = Digits(data, TEXTBOOKS[family].recipe.labels)
                test = three.split()
                codes = np.stack(list(process(iter(three.images[test]), "features", model=out, device=device)))
                runs[name]["neighbours"] = _share_of_neighbours(codes, three.labels[test])
    components = {}
    for family in ("linear", "deep2d"):
        kind: Any = TEXTBOOKS[family]
        digits = Digits(data, kind.recipe.labels)
        held_out = digits.split()
        seen, others = digits.images[: digits.training], digits.images[held_out]
        left = component_errors(seen, others, kind.config["widths"][-1])
        components[family] = {"mse": float(left.mean())}
    return {"task": "textbooks", "runs": runs, "components": components}


def _share_of_neighbours(points: np.ndarray, labels: np.ndarray) -> float:
    """How many of the points have the nearest other one of their own label."""
    apart = np.square(points[:, None] - points).sum(2)
    np.fill_diagonal(apart, np.inf)
    return float((labels[apart.argmin(1)] == labels).mean())


def write_card(weights: Path, data: Path, figures: Figures) -> None:
    """Adds what was measured on `data` to the card of a weights file; its digest stays what it is."""
    header, tensors, _ = load_tensors(weights)
    if figures["task"] == "compress":
        ours = figures["codecs"]["aeimg"]
        row = {metric: {k: round(v, 1) for k, v in rates.items()} for metric, rates in ours["bd_rate"].items()}
    else:
        parts = {**figures.get("sigmas", {}), **figures.get("cameras", {})}
        parts |= {name: figures[name] for name in ("jpeg75", "clean") if name in figures}
        row = {part: {k: round(v, 2) for k, v in values.items()} for part, values in parts.items()}
    measured = {**header.card.get("figures", {}), Path(data).name: row}
    save_weights(weights, tensors, replace(header, card={**header.card, "figures": measured}))


def table(figures: Figures) -> str:
    """A set of figures as text."""
    lines = []
    if figures["task"] == "compress":
        return compress.table(figures)
    if figures["task"] == "anomaly":
        names = list(figures["mean"])
        lines.append(f"{figures['images']} held-out digits; trained on one, area under the ROC curve for the others")
        lines.append(f"{'digit':>8}" + "".join(f"{name:>14}" for name in names))
        for digit, row in [*figures["digits"].items(), ("mean", figures["mean"])]:
            lines.append(f"{digit:>8}" + "".join(f"{row[name]:14.4f}" for name in names))
    elif figures["task"] == "textbooks":
        for name, run in figures["runs"].items():
            told = ", ".join(f"{key} {value:g}" for key, value in run["held_out"].items())
            lines.append(f"{name:24}{told}; {run['steps']} steps")
            if "neighbours" in run:
                lines.append(f"{'':24}nearest neighbours of the same digit: {100 * run['neighbours']:.1f}%")
        for name, row in figures["components"].items():
            lines.append(f"as many principal components as {name} has code values: mse {row['mse']:.5g}")
    elif "cameras" in figures:
        lines.append(f"{figures['images']} pairs, real noise; RGB PSNR in dB, SSIM")
        lines.append(f"{'camera':>12}{'pairs':>8}{'noisy':>8}{'auto':>8}{'gain':>8}{'SSIM':>8}{'auto':>8}")
        for camera, row in figures["cameras"].items():
            values = f"{row['noisy']:8.2f}{row['auto']:8.2f}{row['gain']:+8.2f}"
            lines.append(f"{camera:>12}{row['pairs']:8}{values}{row['noisy_ssim']:8.3f}{row['auto_ssim']:8.3f}")
    elif figures["task"] == "engine":
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in figures["seconds"].items())
        lines.append(f"{figures['images']} images, {figures['verb']}: {seconds}")
        lines.append(f"parts one after the other over all at once: {figures['busy']:.2f}")
        lines.append(f"a model that sleeps over the run around it: {figures['hidden']:.2f}")
    else:
        lines.append(f"{figures['images']} images; RGB PSNR in dB")
        lines.append(f"{'white noise':>12}{'noisy':>10}{'told':>10}{'auto':>10}{'grey':>10}")
        for sigma, row in figures["sigmas"].items():
            lines.append(f"{sigma:>12}" + "".join(f"{row[key]:10.2f}" for key in ("noisy", "told", "auto", "grey")))
        jpeg, clean = figures["jpeg75"], figures["clean"]
        lines.append(f"{'25, JPEG 75':>12}{jpeg['noisy']:10.2f}{'':10}{jpeg['auto']:10.2f}")
        lines.append(f"clean images come back at {clean['psnr']:.2f} dB; the mean of the channel that moved most, by")
        lines.append(f"{clean['shift']:.3f} of 255 on average over images, {clean['largest_shift']:.3f} at most")
        lines.append("")
        speeds = ", ".join(f"{name} {speed:.2f}" for name, speed in figures["one_thread_mps"].items())
        lines.append(f"megapixels/s on one thread: {speeds}; in fp32 {figures['times_dncnn']:.1f} times DnCNN")
    return "\n".join(lines)
