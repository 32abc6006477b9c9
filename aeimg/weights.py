"""Weights files: what one says of itself, its digest, and how it is found, read and written.

A weights file is a safetensors file whose `__metadata__` holds one key, `aeimg`: JSON with

    format        1
    architecture  a key of `ARCHITECTURES`
    config        the fields of that network's config dataclass
    task          "denoise" or "compress"
    name, version what the model is called: `aeimg-codec`, 1. A version, once released, never changes
    card          how it was made and what it reaches: data, minutes, steps, commit, figures

Nothing is guessed from the names of the tensors and nothing is ever unpickled. How versions are named
and how an old latent file finds its weights is written in `docs/models.md`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InvalidWeights, ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT = 1
MAX_HEADER = 16 << 20

ARCHITECTURES: dict[str, tuple[str, str, str]] = {
    "unet": ("aeimg.models.unet", "UNet", "UNetConfig"),
    "hyperprior": ("aeimg.models.hyperprior", "Hyperprior", "HyperpriorConfig"),
    "dense": ("aeimg.models.dense", "Dense", "DenseConfig"),
    "variational": ("aeimg.models.variational", "Variational", "VariationalConfig"),
    "convolutional": ("aeimg.models.convolutional", "Convolutional", "ConvolutionalConfig"),
    "denoising": ("aeimg.models.convolutional", "Denoising", "DenoisingConfig"),
}
"""Architecture -> module, network class, config class."""


@dataclass(frozen=True)
class Header:
    """What a weights file says of itself."""

    architecture: str
    config: dict[str, Any]
    task: str
    name: str
    version: int
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name and version as latent files and weights files spell them: `aeimg-codec-2`."""
        return f"{self.name}-{self.version}"


def build(architecture: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of `architecture` with `config`, freshly initialised. Raises `ModelError` where it is unknown."""
    try:
        module_name, network, config_class = ARCHITECTURES[architecture]
    except KeyError:
        raise ModelError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}") from None
    module = importlib.import_module(module_name)
    # JSON has no tuples, and a frozen config holds no lists.
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    try:
        return getattr(module, network)(getattr(module, config_class)(**values))  # type: ignore[no-any-return]
    except TypeError as error:
        raise InvalidWeights(f"{architecture}: the config does not fit this version of aeimg ({error})") from error


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor], header: Header) -> None:
    """Writes a weights file, atomically."""
    from safetensors.torch import save

    from .paths import write_atomic

    about = {"format": FORMAT, **dataclasses.asdict(header)}
    data = save({k: v.contiguous() for k, v in tensors.items()}, {"aeimg": json.dumps(about, sort_keys=True)})
    write_atomic(path, data)


def read_header(path: Path) -> Header:
    """Reads what a weights file says of itself, without its tensors. Raises `InvalidWeights`."""
    try:
        with open(path, "rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise InvalidWeights(f"{path}: too short for a safetensors file")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(MAX_HEADER, os.fstat(file.fileno()).st_size):
                raise InvalidWeights(f"{path}: not a safetensors file, or its header is larger than {MAX_HEADER} bytes")
            raw = file.read(length)
    except OSError as error:
        raise InvalidWeights(f"{path}: can't be read ({error.strerror})") from error
    try:
        about = json.loads(json.loads(raw)["__metadata__"]["aeimg"])
        if about.pop("format") != FORMAT:
            raise InvalidWeights(f"{path}: made by a later version of aeimg; upgrade to read it")
        return Header(**about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidWeights(
            f"{path}: no weights file of aeimg, such as `aeimg train` writes; a network in a community layout runs as "
            f"spandrel:{path} ({error!r})"
        ) from error


def load_tensors(path: Path) -> tuple[Header, dict[str, torch.Tensor], bytes]:
    """A weights file's header, tensors, and the first 8 bytes of the SHA-256 over what decides its results.

    The digest covers architecture, config and tensor data, not the card: figures may be added to a card
    without making old latent files homeless. Raises `InvalidWeights`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    header = read_header(path)
    try:
        data = Path(path).read_bytes()
        tensors = load(data)
    except (OSError, SafetensorError, KeyError) as error:
        raise InvalidWeights(f"{path}: damaged or incomplete ({error})") from error
    shape = json.dumps([header.architecture, header.config], sort_keys=True).encode()
    (length,) = struct.unpack_from("<Q", data)
    return header, tensors, hashlib.sha256(shape + data[8 + length :]).digest()[:8]


def weights_folders() -> list[Path]:
    """Where weights files are looked for: `$AEIMG_WEIGHTS`, inside the package, beside it in a checkout."""
    package = Path(__file__).parent
    folders = [Path(folder) for folder in os.environ.get("AEIMG_WEIGHTS", "").split(os.pathsep) if folder]
    return [*folders, package / "weights", package.parent / "weights"]


def find_weights(label: str) -> Path:
    """The weights file called `label` (`aeimg-codec-2`). Raises `ModelError` that says what to do."""
    for folder in weights_folders():
        path = folder / f"{label}.safetensors"
        if path.is_file():
            return path
    raise ModelError(
        f"weights {label} are not installed; install an aeimg that ships them, name their file by --model, or put "
        f"{label}.safetensors into a folder that AEIMG_WEIGHTS names"
    )
