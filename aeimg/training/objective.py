"""What is trained, on what, and how it is evaluated: the base class of all objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..zoo import build
from .datasets import Photographs

AT_LEAST = 10
"""Images, or pairs, that something is learned from."""
JUDGED_SIDE = 1024
"""Pixels of a held-out image each way, at most: scans of 50 megapixels would take longer to judge than to learn."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. `late` is the share of the run that the last phase takes."""

    crop: int
    batch: int
    rate: float
    late: float
    late_crop: int
    late_batch: int
    warmup: int = 200
    beta2: float = 0.99
    clip: float = 1.0
    average: float = 0.999
    muon: bool = False
    """Whether the kernels of convolutions are moved by Muon; AdamW moves the rest."""
    pairs: float = 0.3
    """Of a blind denoiser: the share of batches that comes from real pairs, where there are any."""
    jpeg: bool = False
    """Of a blind denoiser: whether it is for white noise that has been through JPEG, and for nothing else."""
    grey: float = 0.1
    """Of a denoiser that is told its noise level: the share of grey images with grey noise."""
    minutes: float | None = None
    """How long a run takes that is told nothing else; or `steps`."""
    steps: int | None = None
    labels: tuple[int, ...] | None = None
    """Of idx files: only images of these."""


class Objective(ABC):
    """What is trained, on what, and how it is judged."""

    task: str
    architecture: str
    recipe: Recipe
    model: nn.Module
    main: str
    """Which of the held-out figures says how well it goes."""
    larger = False
    """Whether more of it is better."""
    settled = 0.0
    """From which share of a run on it says so."""
    passes = 1
    """How often `validate` runs each held-out image through the network."""
    mixed = True
    """Whether bf16 gains anything, where the device has it."""
    done = 0.0
    """How much of the run is over, 0..1; the loop keeps it up to date."""

    @classmethod
    def source(cls, data: Path, recipe: Recipe, config: dict[str, Any]) -> Any:
        """What it is trained on, of the folder `data`. Raises `DataError`."""
        return Photographs(data, min_side=min(recipe.crop, recipe.late_crop), at_least=AT_LEAST)

    def __init__(self, photographs: Any, recipe: Recipe) -> None:
        self.photographs = photographs
        self.recipe = recipe
        self.notes: list[str] = []
        """What the user should know of how the data was taken."""
        self.held_out = self.split()
        if recipe.late_crop > recipe.crop and (enough := photographs.count(recipe.late_crop)) < AT_LEAST - 2:
            self.recipe = replace(recipe, late_crop=recipe.crop, late_batch=recipe.batch)
            self.notes.append(
                f"{enough} images are large enough for the last phase's crops of {recipe.late_crop} pixels: "
                f"it keeps to crops of {recipe.crop}"
            )

    def split(self) -> list[int]:
        """Indices of images that are held out."""
        return list(self.photographs.split(min(16, len(self.photographs) // 10)))

    def held(self, index: int) -> Tensor:
        """The middle of held-out image `index`, uint8 `[1,C,H,W]`."""
        return middle(self.photographs.image(index))

    def judged_pixels(self) -> int:
        """How many pixels go through the network in one `validate`."""
        return self.passes * sum(self.held(index)[0, 0].numel() for index in self.held_out)

    def batch(self, rng: np.random.Generator, late: bool) -> tuple[Tensor, ...]:
        """What `loss` needs, made in a thread of its own: here, uint8 crops `[N,3,S,S]`."""
        return (self.photographs.crops(rng, *self._size(late)),)

    def _size(self, late: bool) -> tuple[int, int]:
        r = self.recipe
        return (r.late_batch, r.late_crop) if late else (r.batch, r.crop)

    def prepare(self) -> None:
        """What a fresh model takes from the data before its first step."""

    @abstractmethod
    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        """The loss of a `batch`, and its terms, each named by its unit."""

    @abstractmethod
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Figures on the held-out images."""

    def export(self, model: nn.Module) -> dict[str, Tensor]:
        """What goes into the weights file."""
        return {name: tensor.half() for name, tensor in model.state_dict().items()}

    def rounded(self, model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
        """`model` as it will be loaded from `tensors`: these weights will run, so it is they that are measured."""
        network = build(self.architecture, asdict(model.config))  # type: ignore[call-overload]
        network.load_state_dict({name: tensors[name].float() for name in model.state_dict()})
        return network.eval()


def middle(image: np.ndarray) -> Tensor:
    """`[H,W,C]` -> `[1,C,H,W]`, of at most `JUDGED_SIDE` each way."""
    top, left = (max(0, (side - JUDGED_SIDE) // 2) for side in image.shape[:2])
    middle = image[top : top + JUDGED_SIDE, left : left + JUDGED_SIDE]
    return torch.from_numpy(middle.copy()).permute(2, 0, 1)[None]
