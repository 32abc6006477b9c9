"""What files and models state of themselves, and the demonstration: text and pictures to look at."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from . import container, registry, weights
from .engine import process
from .errors import AeimgError, DataError, InputError, ModelError, UsageError
from .images import encode_picture, from_pil, open_image
from .metrics import bits_per_pixel, psnr
from .paths import LATENT_SUFFIX, Place, find, is_folder, located, open_regular, write_atomic
from .progress import Progress
from .urls import is_url, redacted

# -- info and models ----------------------------------------------------------------------------------------------


STANDARD_INPUT = "-"


def describe(source: str | os.PathLike[str]) -> Iterator[dict[str, Any] | AeimgError]:
    """Yields what a source states of itself; in the place of a file that can't be described, its error.

    A source is a latent file, a weights file, "-" for a latent file on standard input, a folder of such files, or the
    name of a model (see `registry.resolve`). Raises `InputError` where a source can't be read, `UsageError` for what is
    none of these.
    """
    name = os.fspath(source)
    if is_folder(name):
        found = find(name, [LATENT_SUFFIX, ".safetensors"])
        if not found:
            raise UsageError(f"{redacted(name)}: holds no latent files (.aei) and no weights files (.safetensors)")
        for one in found:
            try:
                yield _describe_file(one.path)
            except AeimgError as error:
                yield error
    elif name == STANDARD_INPUT:
        yield _describe_latent("standard input", sys.stdin.buffer.read())
    elif is_url(name) or os.path.lexists(name) or Path(name).suffix:
        yield _describe_file(located(name))
    else:
        yield _describe_model(name)


SORTABLE = ("file", "bytes", "bpp", "quality", "model", "mode")
"""The columns of `tabulate`."""


def tabulate(rows: Iterable[Mapping[str, Any]], sort: str = "file") -> str:
    """Returns what `describe` yields of several latent files as a table of a line each, and a line for all of them.

    `sort` is a column of `SORTABLE`: names and words ascend, figures descend, what has none comes last. Raises
    `UsageError` for another one.
    """
    if sort not in SORTABLE:
        raise UsageError(f"sort must be one of {', '.join(SORTABLE)}, not {sort!r}")
    rows = [{"bpp": row.get("bits_per_pixel"), **row} for row in rows]
    textual = sort in ("file", "model", "mode")
    rows.sort(key=lambda row: row["file"])
    rows.sort(key=lambda row: str(row.get(sort) or "") if textual else -(row.get(sort) or 0))
    rows.sort(key=lambda row: row.get(sort) is None)
    lines = [f"{'bytes':>10}{'bpp':>9}{'quality':>9}{'size':>13}  {'mode':8}{'model':22}file"]
    for row in rows:
        size = f"{row['width']}x{row['height']}" if "width" in row else ""
        bpp = "" if row["bpp"] is None else f"{row['bpp']:.3f}"
        model = row.get("model") or row.get("stored_as") or row.get("label", "")
        mode = row.get("mode", row["kind"])
        lines.append(f"{row['bytes']:10}{bpp:>9}{row.get('quality', ''):>9}{size:>13}  {mode:8}{model:22}{row['file']}")
    latents = [row for row in rows if row["bpp"] is not None]
    pixels, total = sum(row["width"] * row["height"] for row in latents), sum(row["bytes"] for row in latents)
    if pixels:
        stored = sum(row["mode"] == "stored" for row in latents)
        lines.append(
            f"{total:10}{8 * total / pixels:9.3f}{'':22}  {len(latents)} latent files, {stored} of them stored"
        )
    return "\n".join(lines)


def _describe_file(path: Place) -> dict[str, Any]:
    """Returns what a latent file or a weights file states of itself."""
    with open_regular(path) as file:
        is_latent = file.read(len(container.MAGIC)) == container.MAGIC
    if is_latent:
        return _describe_latent(str(path), container.read_file(path))
    if path.suffix == ".safetensors" and isinstance(path, Path):
        header, _, digest = weights.load_tensors(path)
        size = path.stat().st_size
        return {"file": str(path), "kind": "weights", "bytes": size, "label": header.label, "digest": digest.hex(),
                **dataclasses.asdict(header)}  # fmt: skip
    raise UsageError(f"{path}: neither a latent file (.aei) nor a weights file (.safetensors)")


def _describe_model(name: str) -> dict[str, Any]:
    """Returns what the weights of a registered model state of themselves or, where aeimg has no file of them, what the
    registry knows. Raises `ModelError`."""
    try:
        found = registry.resolve(name)
    except ModelError as error:
        raise ModelError(f"{name}: no such file or folder, and no model ({error})") from error
    if isinstance(found, Path):
        return _describe_file(found)
    return {"model": found.name, "kind": "model", "task": found.task, "origin": found.origin}


def _describe_latent(name: str, data: bytes) -> dict[str, Any]:
    latent = container.read(data, name)
    about: dict[str, Any] = {"file": name, "kind": "latent", "bytes": len(data), "format_version": data[4]}
    sizes = {tag: len(payload) for tag, payload in container.sections(data, name).items()}
    if isinstance(latent, container.Stored):
        with open_image(io.BytesIO(latent.data), name) as image:
            width, height, mode, held = *image.size, image.mode, image.format
        about |= {"mode": "stored", "stored_as": held, "width": width, "height": height, "pixels": mode}
    else:
        width, height = latent.width, latent.height
        pixels = ("L" if latent.channels == 1 else "RGB") + ("A" if latent.alpha is not None else "")
        about |= {"mode": "coded", "model": latent.label, "weights": latent.digest.hex(), "quality": latent.quality,
                  "width": width, "height": height, "pixels": pixels, "bits_per_channel": latent.depth}  # fmt: skip
    about["bits_per_pixel"] = round(bits_per_pixel(len(data), width, height), 4)
    if (page := latent.page) is not None:
        about |= {"page": page.number, "pages": page.count}
        if page.duration is not None:
            about |= {"milliseconds": page.duration / 1000, "loops": page.loops}
    return about | {"source": latent.name, "source_format": latent.format, "sections": sizes}


def kilomacs_per_pixel(task: str, model: Any) -> dict[str, float]:
    """Returns the thousands of multiply-accumulates per pixel in each direction, counted over 256x256 pixels.

    All operations count, whatever their precision: those of a codec's integer scale network too, in both directions.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side, cpu, fp32 = 256, torch.device("cpu"), torch.float32
    x = torch.rand(1, 3, side, side)
    result = {}

    def count(name: str, run: Callable[[], Any]) -> Any:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made = run()
        result[name] = round(counter.get_total_flops() / 2 / side**2 / 1e3, 1)
        return made

    if task == "denoise":
        count("denoise", lambda: model(x, torch.tensor([25.0])))
        return result
    if task != "compress":
        count(task, lambda: model(x[:, : model.channels]))
        return {task: round(result[task] / getattr(model, "scale", 1) ** 2, 1)}  # per pixel of the result

    def encode() -> bytes:
        (latent,) = model.encode(x, 50, cpu, fp32, 1)
        return bytes(model.to_bytes(latent, 50))

    data = count("encode", encode)
    count("decode", lambda: model.decode([model.from_bytes(data, side, side, 50)], (3, side, side), 50, cpu, fp32, 8))
    return result


def describe_models(task: str | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns a row for each registered model, or for each that is for `task`, and what is wrong with the broken ones.

    Raises `UsageError` where no model can be for that task.
    """
    if task is not None and task not in registry.model_tasks():
        raise UsageError(f"no model is for the task {task!r}; models are for {', '.join(registry.model_tasks())}")
    rows, broken = [], []
    for entry in registry.entries():
        if isinstance(entry, AeimgError):
            broken.append(str(entry))
            continue
        if task not in (None, entry.task):
            continue
        row: dict[str, Any] = {"name": entry.name, "task": entry.task, "origin": entry.origin}
        if entry.name in registry.CHOICES:
            row["default"] = f"for {entry.task}, {registry.CHOICES[entry.name]}"
        elif registry.default_model(entry.task) == entry.name:
            row["default"] = f"for {entry.task}"
        if entry.weights is not None:
            header, _ = weights.identify(entry.weights)
            model = registry.load_model(entry.weights)
            row |= {"label": header.label, "architecture": header.architecture}
            size = entry.weights.stat().st_size
            row["size"] = f"{size / 1e6:.1f} MB" if size >= 1_000_000 else f"{size / 1e3:.0f} kB"
            costs = kilomacs_per_pixel(entry.task, model)
            row["kMAC/pixel"] = ", ".join(f"{value:g} {key}" for key, value in costs.items())
            card = {key: value for key, value in header.card.items() if key not in ("recipe", "curve")}
        else:
            if hasattr(entry.factory, "channels"):
                row["channels"] = entry.factory.channels
            card = getattr(entry.factory, "card", {})
            card = card if isinstance(card, Mapping) else {"card": card}
        row |= {key: value for key, value in card.items() if key not in row}
        rows.append(row)
    return rows, broken


def table_of_models(rows: list[dict[str, Any]]) -> str:
    """Returns the rows of `describe_models` as a table, a line for each model."""
    columns = ("model", "task", "size", "kMAC/pixel", "default", "origin")
    lines: list[tuple[str, ...]] = [columns]
    for row in rows:
        cells = (str(row.get(column, "")) for column in columns[2:])
        lines.append((str(row["name"]), str(row["task"]), *cells))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:{n}}" for cell, n in zip(line, widths, strict=True)).rstrip() for line in lines)


# -- the demonstration ------------------------------------------------------------------------------------------------

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
DEMO_SIGMA = 25.0


def run_demo(out: Path, *, progress: bool = False) -> str:
    """Adds noise to real photographs, denoises, compresses and decompresses them into the folder `out`.

    `progress` shows how far each of these steps is, on standard error. Returns a table of figures as text. Raises
    `DataError` where the photographs are missing.
    """
    out = Path(out)
    originals = dict(_photographs())
    folders = {name: out / name for name in ("original", "noisy", "denoised", "latents", "decompressed")}
    for number, (name, pixels) in enumerate(originals.items()):
        noise = np.random.default_rng(number).normal(0, DEMO_SIGMA, pixels.shape)
        noisy = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
        for kind, image in (("original", pixels), ("noisy", noisy)):
            write_atomic(folders[kind] / f"{name}.png", encode_picture(from_pil(Image.fromarray(image)), ".png"))
    again: dict[str, Any] = {"if_exists": "overwrite", "progress": progress}
    denoised = process(folders["noisy"], "denoise", out=folders["denoised"], **again)
    compressed = process(folders["original"], "compress", out=folders["latents"], **again)
    decompressed = process(folders["latents"], "decompress", out=folders["decompressed"], **again)
    lines = [f"white noise of sigma {DEMO_SIGMA:g}, estimated and removed: PSNR in dB",
             f"    {'':12}{'noisy':>8}{'denoised':>10}"]  # fmt: skip
    for name, pixels in originals.items():
        before, after = (psnr(_pixels(folders[f] / f"{name}.png"), pixels) for f in ("noisy", "denoised"))
        lines.append(f"    {name:12}{before:8.2f}{after:10.2f}")
    lines += ["", "latent files, beside JPEG and AVIF of at most the same size: bits per pixel and PSNR in dB",
              f"    {'':12}{'bpp':>8}{'aeimg':>8}{'JPEG':>8}{'AVIF':>8}"]  # fmt: skip
    strips = []
    with Progress("demo: JPEG and AVIF of the same size", len(originals), wanted=progress, speed=None) as shown:
        for name, pixels in shown.each(originals.items(), lambda one: one[0]):
            size = (folders["latents"] / f"{name}.aei").stat().st_size
            ours = _pixels(folders["decompressed"] / f"{name}.png")
            jpeg, avif = (_best_under(size, pixels, kind) for kind in ("JPEG", "AVIF"))
            bpp = bits_per_pixel(size, pixels.shape[1], pixels.shape[0])
            scores = "".join(f"{psnr(x, pixels):8.2f}" if x is not None else f"{'-':>8}" for x in (ours, jpeg, avif))
            lines.append(f"    {name:12}{bpp:8.3f}{scores}")
            noisy, clean = (_pixels(folders[f] / f"{name}.png") for f in ("noisy", "denoised"))
            strips.append(_strip({"original": pixels, "noisy": noisy, "denoised": clean,
                                  "latent": ours, "JPEG, same size": jpeg, "AVIF, same size": avif}))  # fmt: skip
    write_atomic(out / "comparison.png", _png(np.concatenate(strips)))
    lines += ["", f"pictures: {out / 'comparison.png'}, and the folders beside it"]
    failed = [*denoised.failed, *compressed.failed, *decompressed.failed]
    if failed:
        raise InputError("; ".join(f"{path}: {reason}" for path, reason in failed))
    return "\n".join(lines)


def _photographs() -> Iterator[tuple[str, np.ndarray]]:
    try:
        from skimage import data
    except ImportError:
        raise DataError("the demo's photographs come with scikit-image: pip install 'aeimg[demo]'") from None
    for name in PHOTOGRAPHS:
        yield name, np.ascontiguousarray(getattr(data, name)()[..., :3])


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _png(pixels: np.ndarray) -> bytes:
    return encode_picture(from_pil(Image.fromarray(pixels)), ".png")


def _best_under(size: int, pixels: np.ndarray, kind: str) -> np.ndarray | None:
    """Returns `pixels` as they come back from the largest file of `kind` that has at most `size` bytes; None where even
    the smallest file is larger."""
    options: dict[str, Any] = {"optimize": True, "progressive": True} if kind == "JPEG" else {"speed": 6}
    best = None
    low, high = 1, 95
    while low <= high:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, quality=quality, **options)
        if buffer.tell() <= size:
            best, low = buffer, quality + 1
        else:
            high = quality - 1
    return None if best is None else np.asarray(Image.open(best).convert("RGB"))


def _strip(pictures: dict[str, np.ndarray | None], side: int = 224) -> np.ndarray:
    """Returns the middles of the pictures side by side, each under its name."""
    import torch
    from torchvision.utils import make_grid

    tiles = []
    for name, pixels in pictures.items():
        tile = Image.new("RGB", (side, side + 14), "white")
        if pixels is not None:
            top, left = (math.floor((n - side) / 2) for n in pixels.shape[:2])
            tile.paste(Image.fromarray(pixels).crop((left, top, left + side, top + side)), (0, 14))
        ImageDraw.Draw(tile).text((3, 1), name, fill="black")
        tiles.append(torch.from_numpy(np.asarray(tile).copy()).permute(2, 0, 1))
    return np.asarray(make_grid(torch.stack(tiles), nrow=len(tiles), pad_value=255).permute(1, 2, 0))
