"""What is trained, on what, and how it is evaluated: the base class of all objectives, and the recipe."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..weights import build
from .datasets import Dataset

AT_LEAST = 10
"""Training needs so many images, or pairs."""
EVALUATED_SIDE = 1024
"""A held-out image is cut to its middle of at most so many pixels each way: to evaluate scans of 50 megapixels would
take longer than to learn from them."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained."""

    crop: int
    """The side of the training crops, in pixels."""
    batch: int
    """The number of crops in a batch."""
    learning_rate: float
    """The highest learning rate, which the warm-up ends at."""
    late: float
    """The share of the run that the last phase takes, 0..1."""
    late_crop: int
    """The side of the crops in the last phase."""
    late_batch: int
    """The number of crops in a batch in the last phase."""
    warmup: int = 200
    """The number of steps in which the learning rate rises to its highest."""
    hold: float = 0.0
    """From this share of the run on the learning rate falls, along half a cosine to zero. Before, it is constant, so a
    run that is resumed with more steps goes on as if it had been meant to be that long."""
    beta2: float = 0.99
    """What AdamW's average of squared gradients keeps of itself at each step."""
    clip: float = 1.0
    """The norm to which gradients are clipped."""
    average: float = 0.999
    """What the moving average of the weights keeps of itself at each step."""
    muon: bool = False
    """Whether Muon optimises the kernels of convolutions; AdamW optimises the rest."""
    pairs: float = 0.3
    """Of a blind denoiser: the share of batches that comes from real pairs, where there are any."""
    jpeg: bool = False
    """Of a blind denoiser: whether it is for white noise that has been through JPEG, and for nothing else."""
    grey: float = 0.1
    """Of a denoiser that is given its noise level: the share of grey images with grey noise."""
    saved: float = 0.4
    """Of an upscaler: the share of reduced pictures that have been saved as JPEG."""
    perceptual: float = 0.0
    """Of a codec: the share of the distortion that SSIMULACRA2 measures; squared error measures the rest."""
    perceptual_from: int = 0
    """The step from which on it does. Before, squared error alone, which is cheaper, teaches the first shapes."""
    decide: bool = False
    """Of a codec: whether codes are rounded by rate and distortion in the last phase, as the encoder rounds them."""
    minutes: float | None = None
    """How long a run takes where the call gives neither minutes nor steps."""
    steps: int | None = None
    """How many steps a run takes where the call gives neither minutes nor steps."""
    labels: tuple[int, ...] | None = None
    """Of idx files: the labels whose images are used. None: all of them."""


RecipeValue = float | bool | tuple[int, ...] | None
"""The value of a field of a `Recipe`."""
Config = Mapping[str, float | str | Sequence[int] | None]
"""Fields of a network's config dataclass, by their names; True and False are numbers."""

D = TypeVar("D", bound=Dataset)
N = TypeVar("N", bound=nn.Module)


class Objective(ABC, Generic[D, N]):
    """What is trained, a network `N`, on what, a dataset `D`, and how it is evaluated."""

    task: str
    """The task of aeimg that the model is for."""
    architecture: str
    """The network's name in `weights.build`."""
    network: type[N]
    """The class that `architecture` names."""
    recipe: Recipe
    """How the model is trained; of the class, how it is where the call says nothing else."""
    model: N
    """The network under training."""
    primary_metric: str
    """The held-out figure that says how well it goes."""
    higher_is_better = False
    """Whether a higher primary metric is better."""
    comparable_from = 0.0
    """The progress of a run, 0..1, from which on evaluations are compared for the best one."""
    passes = 1
    """How often `validate` runs each held-out image through the network."""
    gains_from_bf16 = True
    """Whether the network is faster in bf16, on a device that has it."""
    progress = 0.0
    """How much of the run is over, 0..1. The loop keeps it up to date."""
    step = 0
    """The step under way. The loop keeps it up to date."""

    @classmethod
    @abstractmethod
    def source(cls, data: Path, recipe: Recipe, config: Config) -> D:
        """The dataset in the folder `data`. Raises `DataError`."""

    def __init__(self, dataset: D, config: Config, recipe: Recipe) -> None:
        self.dataset = dataset
        self.model = self.fresh_model(config)
        self.recipe = recipe = self.fitted(recipe)
        self.notes: list[str] = []
        """What the user should know of how the data is used."""
        self.held_out = self.split()
        if recipe.late_crop > recipe.crop and (enough := dataset.count(recipe.late_crop)) < AT_LEAST - 2:
            self.recipe = replace(recipe, late_crop=recipe.crop, late_batch=recipe.batch)
            self.notes.append(
                f"{enough} images are large enough for the last phase's crops of {recipe.late_crop} pixels: "
                f"it keeps to crops of {recipe.crop}"
            )

    def fresh_model(self, config: Config) -> N:
        """The network to be trained, with random weights."""
        return self.build(config)

    def fitted(self, recipe: Recipe) -> Recipe:
        """`recipe` as the model needs it: here, as it is."""
        return recipe

    def build(self, config: Config) -> N:
        """A network of this `config` with random weights. Raises `InvalidWeights` where there is none."""
        network = build(self.architecture, config)
        assert isinstance(network, self.network)
        return network

    def split(self) -> list[int]:
        """Holds out a tenth of the images, at most 16, and returns their indices. No crop is drawn from them."""
        return list(self.dataset.split(min(16, len(self.dataset) // 10)))

    def held(self, index: int) -> Tensor:
        """The middle of held-out image `index`, uint8 `[1,C,H,W]`."""
        return middle(self.dataset.image(index))

    def evaluated_pixels(self) -> int:
        """How many pixels go through the network in one `validate`."""
        return self.passes * sum(self.held(index)[0, 0].numel() for index in self.held_out)

    def batch(self, rng: np.random.Generator, late: bool) -> tuple[Tensor, ...]:
        """What `loss` needs, made in a thread of its own: here, uint8 crops `[N,3,S,S]`.

        `late` says whether the last phase has begun.
        """
        return (self.dataset.crops(rng, *self._size(late)),)

    def _size(self, late: bool) -> tuple[int, int]:
        r = self.recipe
        return (r.late_batch, r.late_crop) if late else (r.batch, r.crop)

    def prepare(self) -> None:
        """Sets up a fresh model by the data, before its first step."""

    @abstractmethod
    def loss(self, batch: tuple[Tensor, ...], rng: np.random.Generator, late: bool) -> tuple[Tensor, dict[str, float]]:
        """The loss of a `batch`, and its terms, each named by its unit."""

    @abstractmethod
    def validate(self, model: N) -> dict[str, float]:
        """The figures of `model` on the held-out images, the primary metric among them."""

    @property
    def shipped(self) -> str | None:
        """The name of the model of this kind that comes with aeimg, for comparison; None where there is none."""
        return None

    def untouched(self) -> dict[str, float]:
        """The figures of the held-out images as they go in, where those can be compared; here, none."""
        return {}

    def export(self, model: N) -> dict[str, Tensor]:
        """The tensors of the weights file: here, the weights of `model` in half precision."""
        return {name: tensor.half() for name, tensor in model.state_dict().items()}

    def rounded(self, model: N, tensors: dict[str, Tensor]) -> N:
        """`model` as it will be loaded from `tensors`: what is measured for the weights file is measured with it."""
        network = self.build(config_of(model))
        network.load_state_dict({name: tensors[name].float() for name in model.state_dict()})
        return network.eval()


AnyObjective = Objective[Any, Any]
"""An objective of whatever network and dataset."""


def config_of(model: nn.Module) -> dict[str, float | str | Sequence[int] | None]:
    """The fields of a network's config."""
    config: object = model.config
    assert is_dataclass(config)
    assert not isinstance(config, type)
    return asdict(config)


def middle(image: np.ndarray) -> Tensor:
    """The middle of an image `[H,W,C]`, at most `EVALUATED_SIDE` each way, as `[1,C,H,W]`."""
    top, left = (max(0, (side - EVALUATED_SIDE) // 2) for side in image.shape[:2])
    part = image[top : top + EVALUATED_SIDE, left : left + EVALUATED_SIDE]
    return torch.from_numpy(part.copy()).permute(2, 0, 1)[None]


def psnr_of(error: Tensor) -> float:
    """The PSNR of an error, of values in [0,1], in dB; 100 at most."""
    return -10 * math.log10(max(float(error.square().mean()), 1e-10))


def psnr_in_eight_bits(result: Tensor, clean: Tensor) -> float:
    """The PSNR of `result`, rounded to 8 bits, against `clean`, float in [0,1], in dB."""
    return psnr_of((result.float().clamp(0, 1) * 255).round() / 255 - clean)
