"""Features, scores and drawings as files.

    save_features       vectors with names -> .safetensors, .npz or .csv
    save_scores         -> .csv
    draw, heatmap       pixels -> the bytes of an image file that names the command that drew it

`features_lie_at`, `scores_lie_at` and `drawing_lies_at` recognise these files: only they may be written over.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .errors import InputError, UsageError
from .images import Picture, encode_picture, open_image
from .metadata import Metadata
from .paths import write_atomic
from .pixels import to_eight_bits

if TYPE_CHECKING:
    from .tasks.score import Strangeness

Array = np.ndarray

FEATURE_SUFFIXES = (".safetensors", ".npz", ".csv")
SCORES = ("name", "score", "percentile", "strange")


def save_features(path: Path, names: Sequence[str], features: Array, model: str) -> None:
    """Writes vectors `[N,D]` with the names of their pictures, in the format that `path`'s suffix says.

    .safetensors: the tensor "features", and in its metadata "names" (a JSON list) and "model"; .npz: the arrays
    "features" and "names"; .csv: a line each, the name first. Raises `UsageError` for other suffixes.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from safetensors.numpy import save

        data = save({"features": np.ascontiguousarray(features)}, {"names": json.dumps(list(names)), "model": model})
    elif suffix == ".npz":
        file = io.BytesIO()
        np.savez_compressed(file, features=features, names=np.array(list(names), str))
        data = file.getvalue()
    elif suffix == ".csv":
        header = ["name", *(f"f{n}" for n in range(features.shape[1]))]
        data = _csv([header, *([name, *map(float, row)] for name, row in zip(names, features, strict=True))])
    else:
        raise UsageError(f"{path}: features go to {', '.join(FEATURE_SUFFIXES)}")
    write_atomic(path, data)


def save_scores(path: Path, names: Sequence[str], found: Sequence[Strangeness]) -> None:
    """Writes a line for each picture, the strangest first: name, score, percentile, strange (1 or 0)."""
    rows = sorted(zip(names, found, strict=True), key=lambda row: -row[1].score)
    lines: list[list[object]] = [list(SCORES)]
    for name, one in rows:
        known = one.percentile is not None
        lines.append(
            [
                name,
                f"{one.score:.6g}",
                f"{one.percentile:.1f}" if known else "",
                int(bool(one.strange)) if known else "",
            ]
        )
    write_atomic(path, _csv(lines))


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def features_lie_at(path: Path) -> bool:
    """Returns whether `save_features` has written the file."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix.lower() == ".csv":
            return _first_line(path) == b"name" or _first_line(path).startswith(b"name,f0")
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return sorted(archive.namelist()) == ["features.npy", "names.npy"]
        with safe_open(path, "numpy") as file:
            return list(file.keys()) == ["features"] and "names" in (file.metadata() or {})
    except (OSError, SafetensorError, zipfile.BadZipFile):
        return False


def scores_lie_at(path: Path) -> bool:
    """Returns whether `save_scores` has written the file."""
    try:
        return _first_line(path) == ",".join(SCORES).encode()
    except OSError:
        return False


def _first_line(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.readline(1 << 20).rstrip(b"\n")


SOFTWARE = 305
"""The EXIF tag that names the program."""


def draw(pixels: Array, suffix: str, command: str) -> bytes:
    """Returns a picture, uint8 `[C,H,W]`, as a file of the format that `suffix` names. Its EXIF data, where the format
    has any, name the command."""
    exif = Image.Exif()
    exif[SOFTWARE] = f"aeimg {command}"
    return encode_picture(Picture(pixels, metadata=Metadata(exif=exif.tobytes())), suffix)


def drawing_lies_at(path: Path, command: str) -> bool:
    """Returns whether a file is a picture that `draw` has made for that command."""
    try:
        with open(path, "rb") as file, open_image(file, str(path)) as image:
            return bool(image.getexif().get(SOFTWARE) == f"aeimg {command}")
    except (OSError, ValueError, SyntaxError, InputError):
        return False


def heatmap(error: Array) -> bytes:
    """Returns the roots of squared errors `[H,W]` as a grey PNG; 255 is an error as large as the range of pixels."""
    return draw(to_eight_bits(np.sqrt(error))[None], ".png", "score")
