"""What is measured, and where: the images of a folder, the models and the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from .. import devices, registry
from ..errors import DataError
from ..images import read_file, read_picture
from ..paths import find_images
from ..pixels import rgb_of

Figures = dict[str, Any]
"""Named figures that JSON can hold."""


class Chosen(TypedDict):
    """The words of `process` for what is measured and where."""

    model: str | None
    device: str
    dtype: str


def images_in(data: Path, limit: int | None) -> list[tuple[Path, np.ndarray]]:
    paths = find_images(Path(data))[:limit]
    if not paths:
        raise DataError(f"{data}: no images to measure on")
    return [(path, rgb_of(read_picture(read_file(path), str(path)).pixels)) for path in paths]


def circumstances(task: str, model: str | None, device: str, dtype: str) -> Figures:
    """Which model was measured, where and how."""
    import torch

    names = [model] if model is not None else list(registry.CHOICES) if task == "denoise" else [None]
    measured = [registry.get(name, task, devices.pick_device(device)) for name in names]
    return {
        "models": {
            getattr(one, "label", str(name)): getattr(one, "digest", b"").hex()
            for name, one in zip(names, measured, strict=True)
        },
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
