"""Weights files: what one states of itself, its digest, and how it is found, read and written.

A weights file is a safetensors file whose `__metadata__` holds one key, `aeimg`: JSON with

    format        1
    architecture  a key of `ARCHITECTURES`
    config        the fields of that network's config dataclass
    task          "denoise" or "compress"
    name, version how the model is called: `aeimg-codec`, 1. A version never changes once it is released
    card          how the weights were made and what they reach: data, minutes, steps, commit, figures

Nothing is guessed from the names of the tensors and nothing is ever unpickled. `docs/models.md` explains how versions
are named and how an old latent file finds its weights.
"""

from __future__ import annotations

import dataclasses
import functools
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
    """What a weights file states of itself."""

    architecture: str
    """A key of `ARCHITECTURES`."""
    config: dict[str, Any]
    """The fields of the network's config dataclass."""
    task: str
    """The task that the model is for: "denoise" or "compress"."""
    name: str
    """The model's name: `aeimg-codec`."""
    version: int
    """The version of its weights."""
    card: dict[str, Any] = field(default_factory=dict)
    """How the weights were made and what they reach."""

    @property
    def label(self) -> str:
        """Name and version as latent files and weights files spell them: `aeimg-codec-3`."""
        return f"{self.name}-{self.version}"


def build(architecture: str, config: Mapping[str, Any]) -> nn.Module:
    """Returns a freshly initialised network of `architecture` with `config`. Raises `ModelError` for an unknown one."""
    try:
        module_name, network, config_class = ARCHITECTURES[architecture]
    except KeyError:
        raise ModelError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}") from None
    module = importlib.import_module(module_name)
    # JSON has no tuples, and a frozen config holds no lists.
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    try:
        made: nn.Module = getattr(module, network)(getattr(module, config_class)(**values))
    except TypeError as error:
        raise InvalidWeights(f"{architecture}: the config does not fit this version of aeimg ({error})") from error
    return made


# -- where weights lie ---------------------------------------------------------------------------------------


def weights_folders() -> list[Path]:
    """Returns where weights files are looked for: `$AEIMG_WEIGHTS`, inside the package, beside it in a checkout."""
    package = Path(__file__).parent
    folders = [Path(folder) for folder in os.environ.get("AEIMG_WEIGHTS", "").split(os.pathsep) if folder]
    return [*folders, package / "weights", package.parent / "weights"]


def find_weights(label: str) -> Path:
    """Returns the weights file called `label` (`aeimg-codec-3`). Raises `ModelError` with a way out."""
    for folder in weights_folders():
        path = folder / f"{label}.safetensors"
        if path.is_file():
            return path
    raise ModelError(
        f"weights {label} are not installed; install an aeimg that ships them, name their file by --model, or put "
        f"{label}.safetensors into a folder that AEIMG_WEIGHTS names"
    )


# -- reading and writing -------------------------------------------------------------------------------------


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor], header: Header) -> None:
    """Writes a weights file, atomically."""
    from safetensors.torch import save

    from .paths import write_atomic

    about = {"format": FORMAT, **dataclasses.asdict(header)}
    data = save({k: v.contiguous() for k, v in tensors.items()}, {"aeimg": json.dumps(about, sort_keys=True)})
    write_atomic(path, data)


def read_header(path: Path) -> Header:
    """Reads what a weights file states of itself, without its tensors. Raises `InvalidWeights`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
    except SafetensorError as error:
        raise InvalidWeights(f"{path}: not a safetensors file, or a damaged one ({error})") from error
    except OSError as error:
        raise InvalidWeights(f"{path}: can't be read ({error.strerror or error})") from error
    return _header(metadata, path)


def _header(metadata: Mapping[str, str] | None, path: Path) -> Header:
    try:
        about = json.loads((metadata or {})["aeimg"])
        if about.pop("format") != FORMAT:
            raise InvalidWeights(f"{path}: written by a later version of aeimg; upgrade aeimg to read it")
        return Header(**about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidWeights(
            f"{path}: not a weights file of aeimg, as `aeimg train` writes them; a network in another layout runs as "
            f"spandrel:{path} ({error!r})"
        ) from error


def load_tensors(path: Path) -> tuple[Header, dict[str, torch.Tensor], bytes]:
    """Reads a weights file: its header, its tensors on the CPU, and its digest (see `identify`).

    Raises `InvalidWeights`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = _header(file.metadata(), path)
            # Cloned, because the file must not stay mapped: a later run may replace it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return header, tensors, _digest(path, header)
    except SafetensorError as error:
        raise InvalidWeights(f"{path}: damaged or incomplete ({error})") from error
    except OSError as error:
        raise InvalidWeights(f"{path}: can't be read ({error.strerror or error})") from error


def _digest(path: Path, header: Header) -> bytes:
    """Returns the first 8 bytes of the SHA-256 over architecture, config and tensor data."""
    shape = json.dumps([header.architecture, header.config], sort_keys=True).encode()
    found = hashlib.sha256(shape)
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + length)
        while part := file.read(1 << 20):
            found.update(part)
    return found.digest()[:8]


def identify(path: Path) -> tuple[Header, bytes]:
    """Returns the header and the digest of a weights file, without building its network. Raises `InvalidWeights`.

    The digest is the first 8 bytes of the SHA-256 over what decides the results: architecture, config and tensor data.
    It does not cover the card, to which figures may be added without making old latent files homeless.
    """
    try:
        return _identified(path, os.stat(path).st_mtime_ns)
    except OSError as error:
        raise InvalidWeights(f"{path}: can't be read ({error.strerror or error})") from error


@functools.lru_cache(maxsize=64)
def _identified(path: Path, mtime: int) -> tuple[Header, bytes]:
    header = read_header(path)
    return header, _digest(path, header)
