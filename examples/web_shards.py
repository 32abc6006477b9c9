"""Keep latent files in the shards of WebDataset, and read batches from them.

    python examples/web_shards.py FOLDER

FOLDER gets one shard, `crops.tar`. This needs `pip install webdataset`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import webdataset as wds
from skimage import data

import aeimg


def main(folder: Path) -> None:
    """Writes eight crops of a photograph with their numbers, and reads them in two batches."""
    codec = aeimg.load("compress", device="cpu")
    shard = folder / "crops.tar"
    with wds.TarWriter(str(shard)) as tar:
        for number in range(8):
            crop = data.astronaut()[:96, 48 * number : 48 * number + 96]
            tar.write({"__key__": f"{number:04}", "aei": codec.encode(crop, quality=60), "cls": number})

    def decode(key: str, content: bytes) -> object:
        return codec.decode(content, "tensor") if key.endswith(".aei") else None  # None leaves it to others

    samples = wds.WebDataset(str(shard), shardshuffle=False).decode(decode).to_tuple("aei", "cls").batched(4)
    for pictures, labels in samples:
        print(f"a batch of shape {tuple(pictures.shape)}, labels {labels.tolist()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
