"""Networks of other projects: what the package `spandrel` makes of a safetensors file.

`--model spandrel:FILE` names such a file. spandrel finds out which architecture it holds. A network that keeps the size
of pictures runs as any other denoiser, one that enlarges them as any other upscaler. `docs/plugins.md` says what is
assumed. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .contract import Denoiser, ImageModel
from .errors import InvalidWeights, ModelError
from .pixels import padded
from .weights import read_header

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor, MaskedImageModelDescriptor

OVERLAP = 64
"""The halo of a network that may be tiled, in pixels. It is an assumption: spandrel states no receptive field."""
SIDE = 64
"""The least side of the pictures on which a network is tried, in pixels."""


class _Network:
    """What denoisers and other networks that spandrel knows have in common.

    Raises `ModelError` for a network that does not turn a picture of 1 or 3 channels into one of as many.
    """

    def __init__(self, descriptor: ImageModelDescriptor | MaskedImageModelDescriptor, name: str, digest: bytes) -> None:
        from spandrel import ImageModelDescriptor, ModelTiling

        self.label = f"spandrel:{descriptor.architecture.id}/{name}"
        self.digest = digest
        channels = descriptor.input_channels, descriptor.output_channels
        if not isinstance(descriptor, ImageModelDescriptor):
            raise ModelError(f"{self.label}: needs a mask beside the picture, and aeimg has none")
        if channels not in ((1, 1), (3, 3)):
            raise ModelError(
                f"{self.label}: makes {channels[1]} channels of {channels[0]}; aeimg takes 1 or 3 of as many"
            )
        self.channels = channels[0]
        self.scale = int(descriptor.scale)
        self.multiple = int(descriptor.size_requirements.multiple_of)
        self.halo = OVERLAP if descriptor.tiling is ModelTiling.SUPPORTED else None
        self.dtypes: tuple[torch.dtype, ...] | None = (
            torch.float32,
            *([torch.bfloat16] if descriptor.supports_bfloat16 else []),
            *([torch.float16] if descriptor.supports_half else []),
        )
        self._descriptor = descriptor.eval()
        descriptor.model.requires_grad_(False)
        self._batches = True  # which `_try_out` relies on
        self._least = padded(max(SIDE, descriptor.size_requirements.minimum), self.multiple)

    def _move(self, device: torch.device) -> None:
        self._descriptor.to(device)

    def _one_by_one(self, x: Tensor, sigma: Tensor | None) -> Tensor:
        x = x.contiguous()  # networks may view it as rows, which channels last does not allow
        if self._batches or len(x) == 1:
            return self._run(x, sigma)
        levels = [None if sigma is None else sigma[i : i + 1] for i in range(len(x))]
        return torch.cat([self._run(x[i : i + 1], level) for i, level in enumerate(levels)])

    def _run(self, x: Tensor, sigma: Tensor | None) -> Tensor:
        return self._descriptor(x)

    @torch.inference_mode()
    def _try_out(self) -> None:
        """Finds out whether two pictures at once come out as they do one by one, which spandrel does not promise."""
        x = torch.rand(2, self.channels, self._least, self._least, generator=torch.Generator().manual_seed(0))
        sigma = torch.tensor([15.0, 50.0])
        shape = (2, self.channels, self.scale * self._least, self.scale * self._least)
        try:
            single = torch.cat([self._one_by_one(x[:1], sigma[:1]), self._one_by_one(x[1:], sigma[1:])])
        except Exception as error:
            raise ModelError(f"{self.label}: does not run ({error})") from error
        if single.shape != shape:
            expected = "aeimg keeps the size of pictures" if self.scale == 1 else f"its scale is {self.scale}"
            raise ModelError(f"{self.label}: makes {list(single.shape)} of {list(x.shape)}; {expected}")
        try:
            both = self._one_by_one(x, sigma)
            self._batches = both.shape == shape and torch.allclose(both, single, atol=1e-4)
        except Exception:
            self._batches = False


class SpandrelDenoiser(_Network, Denoiser):
    """A network that spandrel knows, as a `contract.Denoiser`.

    Raises `ModelError` for a network that does not turn a picture of 1 or 3 channels into one of the same shape.
    """

    def __init__(self, descriptor: ImageModelDescriptor | MaskedImageModelDescriptor, name: str, digest: bytes) -> None:
        super().__init__(descriptor, name, digest)
        if self.scale != 1:
            raise ModelError(
                f"{self.label}: enlarges {self.scale} times; aeimg keeps the size of pictures when it denoises: "
                "aeimg upscale runs this network"
            )
        architecture = descriptor.architecture.id
        # spandrel always announces a level of 15 to these two, so they are called without it.
        self.blind = not (architecture == "DRUNet" or (architecture == "DnCNN" and "FDnCNN" in descriptor.tags))
        self._try_out()

    def to(self, device: torch.device) -> SpandrelDenoiser:
        """Moves the network to `device`."""
        self._move(device)
        return self

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `contract.Denoiser`."""
        return self._one_by_one(x, sigma)

    def _run(self, x: Tensor, sigma: Tensor | None) -> Tensor:
        if self.blind or sigma is None:
            return self._descriptor(x)
        plane = (sigma.to(x) / 255).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self._descriptor.model(torch.cat([x, plane], 1)).clamp(0, 1)


class SpandrelModel(_Network, ImageModel):
    """A network that spandrel knows, as a `contract.ImageModel` of its own scale: an upscaler, or the model of a
    plug-in's task."""

    def __init__(self, descriptor: ImageModelDescriptor | MaskedImageModelDescriptor, name: str, digest: bytes) -> None:
        super().__init__(descriptor, name, digest)
        self._try_out()

    def to(self, device: torch.device) -> SpandrelModel:
        """Moves the network to `device`."""
        self._move(device)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """See `contract.ImageModel`."""
        return self._one_by_one(x, None)


def load_spandrel(path: Path, task: str = "denoise") -> SpandrelDenoiser | SpandrelModel:
    """Returns the model for `task` of a safetensors file that spandrel knows, in fp32 on the CPU, ready for use.

    Its `label` is "spandrel:SCUNet/stem of the file", its `digest` the first 8 bytes of the file's SHA-256. Raises
    `ModelError` where spandrel is missing or the network is none for the task; `InvalidWeights` for a file that is
    damaged or not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if path.suffix.lower() != ".safetensors":
        raise InvalidWeights(
            f"{path}: only .safetensors files are loaded, because others can run code; convert it with "
            f"safetensors.torch.save_file if you trust it"
        )
    try:
        from spandrel import ModelLoader, UnsupportedModelError
    except ImportError as error:
        raise ModelError(f"{path}: needs the package spandrel: pip install 'aeimg[spandrel]' ({error})") from error
    try:
        data = path.read_bytes()
        tensors = load(data)
    except (OSError, SafetensorError, KeyError) as error:
        raise InvalidWeights(f"{path}: can't be read, or is not a safetensors file ({error})") from error
    try:
        descriptor = ModelLoader("cpu").load_from_state_dict(tensors)
    except UnsupportedModelError as error:
        try:
            read_header(path)
        except InvalidWeights:
            raise ModelError(f"{path}: spandrel does not know its architecture") from error
        raise ModelError(f"{path}: a weights file of aeimg; name it without spandrel:") from error
    except Exception as error:  # spandrel looks at a few names, and fails at the others in its own ways
        raise InvalidWeights(f"{path}: is not the network that its names promise ({error})") from error
    digest = hashlib.sha256(data).digest()[:8]
    if task == "denoise":
        return SpandrelDenoiser(descriptor, path.stem, digest)
    made = SpandrelModel(descriptor, path.stem, digest)
    if task == "upscale" and made.scale == 1:
        raise ModelError(f"{made.label}: keeps the size of pictures; aeimg denoise runs it")
    return made
