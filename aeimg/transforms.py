"""aeimg among the transforms of torchvision, version 2.

    v2.Compose([aeimg.transforms.Denoise(sigma="auto"), aeimg.transforms.CompressionNoise(quality=(20, 60)), ...])

Both take what those transforms take: tensors, tv_tensors, PIL images, and structures of them. Images and videos are
transformed and keep their type; boxes, masks, labels and everything else pass through. A transform can be pickled, for
the workers of a `DataLoader`; the model is loaded where it is first needed, and is not part of the pickle.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from .errors import UsageError
from .images import from_pil, to_pil
from .loaded import LoadedCodec, LoadedDenoiser, load
from .pixels import as_pixels, like_tensor, to_floats
from .tasks.options import CompressOptions, DenoiseOptions


class _OfPictures(v2.Transform):  # type: ignore[misc, unused-ignore]  # torchvision has no types
    """What the transforms have in common: a model for each device, and what counts as a picture."""

    task: str

    def __init__(self, model: str | None, device: str | None) -> None:
        super().__init__()
        self.model, self.device = model, device
        self._held: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_held": {}}

    def _model(self, inpt: Any) -> Any:
        """Returns the model on the device of a tensor, on the CPU for a PIL image, or where the user wants it."""
        device = self.device or (str(inpt.device) if isinstance(inpt, Tensor) else "cpu")
        if device not in self._held:
            name: Any = self.model or self.task
            self._held[device] = load(name, task=self.task, device=device)
        return self._held[device]

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Returns a picture transformed, and anything else as it is; torchvision calls this."""
        if isinstance(inpt, Image.Image):
            plain = inpt.copy()  # without the orientation, which would turn it away from its boxes and masks
            plain.info = {key: value for key, value in inpt.info.items() if key == "transparency"}
            done = self._image(plain, params)
            done.info.update(inpt.info)
            return done
        if isinstance(inpt, tv_tensors.TVTensor) and not isinstance(inpt, tv_tensors.Image | tv_tensors.Video):
            return inpt
        if not isinstance(inpt, Tensor) or inpt.dim() < 3:
            return inpt
        flat = inpt.as_subclass(Tensor).reshape(-1, *inpt.shape[-3:])  # videos, and batches of them
        return like_tensor(self._tensor(flat, params).reshape(inpt.shape), inpt)

    def _image(self, image: Image.Image, params: dict[str, Any]) -> Image.Image:
        raise NotImplementedError

    def _tensor(self, pictures: Tensor, params: dict[str, Any]) -> Tensor:
        raise NotImplementedError


class Denoise(_OfPictures):
    """Removes noise from pictures."""

    task = "denoise"

    def __init__(
        self, sigma: float | str = "auto", strength: float = 1.0, *, model: str | None = None, device: str | None = None
    ) -> None:
        """`sigma` is the level of the noise in 8-bit units, or "auto" to estimate it for each picture; `strength` is 0,
        which changes nothing, to 1. `device` is where the model runs; None stands for the device of the tensor, and for
        the CPU for PIL images. Raises `UsageError`."""
        super().__init__(model, device)
        DenoiseOptions(sigma=sigma, strength=strength)
        self.sigma, self.strength = sigma, strength

    def _image(self, image: Image.Image, params: dict[str, Any]) -> Image.Image:
        held: LoadedDenoiser = self._model(image)
        return held(image, sigma=self.sigma, strength=self.strength)

    def _tensor(self, pictures: Tensor, params: dict[str, Any]) -> Tensor:
        held: LoadedDenoiser = self._model(pictures)
        return held(pictures, sigma=self.sigma, strength=self.strength)


class CompressionNoise(_OfPictures):
    """Gives pictures the artefacts that the codec leaves, as an augmentation of training data."""

    task = "compress"

    def __init__(
        self,
        quality: int | tuple[int, int] = (20, 60),
        *,
        model: str | None = None,
        device: str | None = None,
    ) -> None:
        """`quality` is 1 to 100, or the lowest and the highest of them, between which each call draws one from torch's
        generator; all pictures of a sample get the same. `device` is as in `Denoise`. Raises `UsageError`."""
        super().__init__(model, device)
        low, high = (quality, quality) if isinstance(quality, int) else quality
        CompressOptions(low)
        CompressOptions(high)
        if low > high:
            raise UsageError(f"quality: the lowest, {low}, is above the highest, {high}")
        self.quality = (low, high)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Returns the quality of this call; torchvision calls this."""
        low, high = self.quality
        return {"quality": int(torch.randint(low, high + 1, ()))}

    def _image(self, image: Image.Image, params: dict[str, Any]) -> Image.Image:
        picture = from_pil(image)
        deep = picture.pixels.dtype == np.uint16
        done = self._tensor(torch.from_numpy(to_floats(picture.pixels) if deep else picture.pixels), params)
        pixels = as_pixels(done, torch.uint16).numpy().astype(np.uint16) if deep else done.numpy()
        return to_pil(replace(picture, pixels=pixels))

    def _tensor(self, pictures: Tensor, params: dict[str, Any]) -> Tensor:
        held: LoadedCodec = self._model(pictures)
        return held.round_trip(pictures, params["quality"])
