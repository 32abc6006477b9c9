"""Keep pictures as latent files in a table of Hugging Face's `datasets`.

    python examples/hugging_face.py FOLDER

FOLDER gets a folder `crops` with eight small latent files. This needs `pip install datasets`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from PIL import Image as PillowImage
from skimage import data
from torchvision.transforms import v2

import aeimg.pillow  # from here on, whatever reads pictures with Pillow reads latent files
import aeimg.transforms


def main(folder: Path) -> None:
    """Saves eight crops of a photograph, and reads them as images with the artefacts of stronger compression."""
    (folder / "crops").mkdir(parents=True, exist_ok=True)
    paths = [str(folder / "crops" / f"{number}.aei") for number in range(8)]
    for number, path in enumerate(paths):
        crop = data.astronaut()[:96, 48 * number : 48 * number + 96]
        PillowImage.fromarray(crop).save(path, quality=80)

    table = Dataset.from_dict({"image": paths, "label": list(range(8))}).cast_column("image", Image())
    first = table[0]
    print(f"{len(table)} rows; the first: label {first['label']}, {first['image'].mode} {first['image'].size}")

    augment = v2.Compose([v2.ToImage(), aeimg.transforms.CompressionNoise(quality=(20, 60))])

    def augmented(batch: dict[str, Any]) -> dict[str, Any]:
        return {"image": [augment(image) for image in batch["image"]], "label": batch["label"]}

    table.set_transform(augmented)
    print(f"a batch of shape {tuple(torch.stack(table[:4]['image']).shape)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
