"""Read and write latent files with imageio and Pillow.

    python examples/read_with_imageio.py FOLDER

FOLDER gets one latent file. This needs `pip install imageio`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image
from skimage import data

import aeimg.pillow  # from here on, whatever reads pictures with Pillow reads latent files  # noqa: F401


def main(folder: Path) -> None:
    """Writes a photograph, and reads it back in two ways."""
    path = folder / "astronaut.aei"
    iio.imwrite(path, data.astronaut()[:96, :128], plugin="pillow", quality=60)
    picture = iio.imread(path)
    print(picture.shape, picture.dtype)
    with Image.open(path) as image:
        print("the same pixels from Pillow" if np.array_equal(np.asarray(image), picture) else "other pixels")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
