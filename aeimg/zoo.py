"""The registry: which models there are, where their weights lie, and what a weights file says of itself.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InvalidWeights, ModelError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

TASKS = ("denoise", "compress")
FORMAT = 1
MAX_HEADER = 16 << 20
ENTRY_POINT_GROUP = "aeimg.models"

ARCHITECTURES: dict[str, tuple[str, str, str]] = {
    "unet": ("aeimg.models.unet", "UNet", "UNetConfig"),
    "hyperprior": ("aeimg.models.hyperprior", "Hyperprior", "HyperpriorConfig"),
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
        """Name and version as latent files and weights files spell them: `aeimg-codec-1`."""
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
        raise InvalidWeights(f"{path}: no aeimg header; weights come from `aeimg train` ({error!r})") from error


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, then MPS, then the CPU. Raises `UsageError` where `device` is not there."""
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device {device!r}; use auto, cpu, cuda or mps") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: this machine has no CUDA device that torch can use; try --device cpu")
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device mps: not available here; try --device cpu")
    return place


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 where the processor multiplies it natively (elsewhere it is slower), else fp32."""
    import torch

    if dtype == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
        native = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
        fast = device.type == "cpu" and any(probe is not None and probe() for probe in native)
        return torch.bfloat16 if fast else torch.float32
    choices = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
    if dtype not in choices:
        raise UsageError(f"unknown dtype {dtype!r}; use auto, fp32 or bf16")
    return choices[dtype]
