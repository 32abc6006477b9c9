"""aeimg over a folder of foreign images, compared with Pillow: `python tests/corpus.py FOLDER`. See corpus.md.

Each image goes through `denoise --strength 0` into PNG, into TIFF, and through `compress` and `decompress`. What comes
back must have Pillow's size, orientation, colours and alpha, and the metadata that Pillow sees. Exits with 1 where
something differs, or where an error has no type.
"""

from __future__ import annotations

import argparse
import io
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

import aeimg
from aeimg import AeimgError, registry
from aeimg.images import ImageFile, encode_picture, read_file
from aeimg.paths import IMAGE_SUFFIXES
from aeimg.pixels import to_eight_bits

LARGEST = 4_000_000
"""Larger images, in pixels, are passed over: what is wrong with them is wrong with small ones."""


class Same(torch.nn.Module):
    """Leaves pictures as they are."""

    task, halo, label, digest = "denoise", 0, "same-1", b"same"

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x


def pillow(data: bytes, frame: int) -> Image.Image:
    """The upright image that Pillow reads."""
    image = Image.open(io.BytesIO(data))
    image.seek(frame)
    image.load()
    return ImageOps.exif_transpose(image)


def rgba(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGBA")).astype(int)


def differences(expected: Image.Image, back: Image.Image, tolerance: float) -> list[str]:
    """What differs between the image that Pillow reads and the one that came back."""
    if expected.size != back.size:
        return [f"size {expected.size} became {back.size}"]
    found = []
    if expected.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        a, b = rgba(expected), rgba(back)
        seen = a[..., 3:] > 0
        error = float((np.abs(a[..., :3] - b[..., :3]) * seen).mean())
        if error > tolerance:
            found.append(f"colours differ by {error:.1f}")
        if (a[..., 3] != b[..., 3]).any():
            found.append("alpha differs")
    if (expected.info.get("icc_profile") or None) != (back.info.get("icc_profile") or None) and expected.mode != "CMYK":
        found.append("ICC profile")
    for tag in (270, 271, 272, 306, 315, 33432):
        a, b = (image.getexif().get(tag) for image in (expected, back))
        if isinstance(a, str) and a.strip("\0 ") and a != b:
            found.append(f"EXIF tag {tag}: {a!r:.40} became {b!r:.40}")
    return found


def check(path: Path) -> str:
    """What became of a file: "same", or the kind of refusal. Raises an `AssertionError` that says what differs."""
    try:
        file = ImageFile(read_file(path), str(path))
        picture = file.picture(1)
    except AeimgError as error:
        try:
            pillow(path.read_bytes(), 0)
        except Exception:
            return "refused by both"
        return f"refused: {str(error).replace(str(path), '').strip(': ')[:70]}"
    if picture.width * picture.height > LARGEST:
        return "too large for this test"
    try:
        expected = pillow(file.data, file.places[0].frame)
    except Exception:
        return "read, and not by Pillow"
    source = path.read_bytes()
    options = {"model": "same", "sigma": 5, "strength": 0, "pages": 1}
    found = []
    try:
        denoised = aeimg.process(source, "denoise", format="png", **options)
        found += [f"denoise: {what}" for what in differences(expected, Image.open(io.BytesIO(denoised)), 1.0)]
        if to_eight_bits(picture.planes).shape[0] != 2:
            tiff = Image.open(io.BytesIO(encode_picture(picture, ".tiff")))
            found += [f"tiff: {what}" for what in differences(expected, tiff, 1.0)]
        latent = aeimg.process(source, "compress", quality=90, model=CODEC, pages=1)
        back = aeimg.process(latent, "decompress", kind="bytes", format="png")
        found += [f"latent: {what}" for what in differences(expected, Image.open(io.BytesIO(back)), LOSS)]
    except AeimgError as error:
        return f"refused: {str(error)[:70]}"
    assert not found, "; ".join(found)
    return "same"


CODEC, LOSS = None, 12.0
"""The default codec, and by how much colours may differ after it, mean of all pixels: noise is worst."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, help="take so many files, evenly spread")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    registry.register("same", Same)
    paths = sorted(path for path in given.folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if given.limit and len(paths) > given.limit:
        paths = [paths[int(n)] for n in np.linspace(0, len(paths) - 1, given.limit)]
    kinds: Counter[str] = Counter()
    for path in paths:
        try:
            kind = check(path)
        except AssertionError as error:
            kind = "DIFFERENT"
            print(f"{path}: {error}", flush=True)
        except Exception:
            kind = "UNTYPED ERROR"
            print(f"{path}: {traceback.format_exc(limit=-3)}", flush=True)
        kinds[kind] += 1
    for kind, count in kinds.most_common():
        print(f"{count:5}  {kind}")
    return int(bool(kinds["DIFFERENT"] or kinds["UNTYPED ERROR"]))


if __name__ == "__main__":
    sys.exit(main())
