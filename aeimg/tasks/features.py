"""The task features: picture -> a vector that describes it, of the codec's encoder."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch

from .. import registry
from ..contract import FeatureEncoder
from ..errors import ModelError
from .options import FeaturesOptions
from .pictures import AnyShape, PictureItem, Result, stacked

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class FeaturesResult(Result[Array]):
    """A vector, float32 `[D]`."""


class Features(AnyShape):
    """See the module. Raises `ModelError` for a codec whose encoder describes no pictures."""

    small = False

    def __init__(
        self,
        model: str | os.PathLike[str] | None,
        device: torch.device,
        dtype: torch.dtype,
        options: FeaturesOptions,
    ) -> None:
        self.asked, self.device, self.dtype, self.options = model, device, dtype, options
        codec = registry.get(model, "compress", device)
        if not isinstance(codec, FeatureEncoder):
            raise ModelError(f"model {codec.label} gives no features")
        self.label = codec.label
        self.encoder: FeatureEncoder = codec

    def run(self, items: list[PictureItem]) -> list[Array]:
        """Returns the vector of each picture."""
        return list(self.encoder.features(stacked(items, 1), self.device, self.dtype).float().numpy())

    def finish(self, item: PictureItem, raw: Array) -> FeaturesResult:
        """Returns the vector."""
        return FeaturesResult(
            value=raw, width=item.picture.width, height=item.picture.height, warnings=item.picture.notes
        )
