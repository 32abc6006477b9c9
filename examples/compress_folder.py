"""Compress a folder of pictures into latent files, and read the files back.

    python examples/compress_folder.py FOLDER

FOLDER gets three folders: `pictures`, `latents` and `back`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from skimage import data

import aeimg


def main(folder: Path) -> None:
    """Writes two photographs, compresses them, decompresses one from bytes and all of them into files."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.chelsea()).save(pictures / "cat.png")
    Image.fromarray(data.coffee()[:256, :384]).save(pictures / "coffee.png")

    summary = aeimg.process(pictures, "compress", out=folder / "latents", quality=40)
    print(f"{summary.done} compressed: {summary.bytes_in:,} bytes became {summary.bytes_out:,}")
    for path, reason in summary.failed:  # one bad file does not stop the others
        print(f"{path} failed: {reason}")

    latent = (folder / "latents" / "cat.aei").read_bytes()
    picture = aeimg.process(latent, "decompress")  # bytes in, a PIL image out
    print(f"cat.aei holds a picture of {picture.width} x {picture.height} pixels in {len(latent):,} bytes")

    summary = aeimg.process(folder / "latents", "decompress", out=folder / "back", format="png")
    print(f"{summary.done} decompressed into {folder / 'back'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
