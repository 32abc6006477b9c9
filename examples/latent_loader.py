"""Feed a network from latent files: a data set on a tenth of the disk.

    python examples/latent_loader.py FOLDER

FOLDER gets a folder `crops` with eight small latent files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from skimage import data
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import aeimg


class Latents(Dataset[Tensor]):
    """The pictures of all latent files in a folder, float32 `[3,H,W]` in [0,1]."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.rglob("*.aei"))
        self.codec = aeimg.load("compress", device="cpu")  # workers of a DataLoader can't share a GPU

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.codec.decode(self.files[index], "tensor")


def main(folder: Path) -> None:
    """Compresses eight crops of a photograph, and takes one step of training on two batches of them."""
    latents = folder / "crops"
    latents.mkdir(parents=True, exist_ok=True)
    crops = (data.astronaut()[:96, left : left + 96] for left in range(0, 8 * 48, 48))
    for number, latent in enumerate(aeimg.process(crops, "compress", quality=60)):
        (latents / f"{number}.aei").write_bytes(latent)

    network = torch.nn.Conv2d(3, 3, 3, padding=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for batch in DataLoader(Latents(latents), batch_size=4, shuffle=True):
        loss = torch.nn.functional.mse_loss(network(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"a batch of shape {tuple(batch.shape)}, loss {loss.item():.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
