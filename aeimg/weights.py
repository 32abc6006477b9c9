"""Weights files: what one states of itself, its digest, and how it is found, read and written.

A weights file is a safetensors file whose `__metadata__` holds one key, `aeimg`: JSON with

    format        1
    architecture  a key of `ARCHITECTURES`
    config        the fields of that network's config dataclass
    task          one of `contract.MODEL_TASKS`: "denoise", "compress", ...
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
import math
import os
import re
import struct
import threading
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, InvalidWeights, ModelError
from .paths import open_regular

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

FORMAT = 1
LABEL = re.compile(r"(?!_)\w[\w .+()-]{0,80}")
"""What a label may be that a file names: it opens no other folder, stream or device, whatever the system."""
LONGEST_NAME = 80
"""The longest name of a model, in characters."""
LARGEST_NUMBER = 1 << 20
"""The largest whole number in a config."""
BESIDES_NETWORK = 64 << 20
"""How many bytes a weights file may hold besides its network: tables and the like."""

ARCHITECTURES: dict[str, tuple[str, str, str]] = {
    "unet": ("aeimg.models.unet", "UNet", "UNetConfig"),
    "hyperprior": ("aeimg.models.hyperprior", "Hyperprior", "HyperpriorConfig"),
    "dense": ("aeimg.models.dense", "Dense", "DenseConfig"),
    "variational": ("aeimg.models.variational", "Variational", "VariationalConfig"),
    "convolutional": ("aeimg.models.convolutional", "Convolutional", "ConvolutionalConfig"),
    "denoising": ("aeimg.models.convolutional", "Denoising", "DenoisingConfig"),
    "upscaler": ("aeimg.models.upscaler", "Upscaler", "UpscalerConfig"),
    "colorizer": ("aeimg.models.colorizer", "Colorizer", "ColorizerConfig"),
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
    """The task that the model is for, one of `contract.MODEL_TASKS`."""
    name: str
    """The model's name: `aeimg-codec`."""
    version: int
    """The version of its weights."""
    card: dict[str, Any] = field(default_factory=dict)
    """How the weights were made and what they reach."""

    @property
    def label(self) -> str:
        """Name and version as latent files and weights files spell them: `aeimg-codec-5`."""
        return f"{self.name}-{self.version}"


def is_name(name: object) -> bool:
    """Returns whether a model may be called `name`: printable text of at most `LONGEST_NAME` characters."""
    return isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()


def build(architecture: str, config: Mapping[str, Any]) -> nn.Module:
    """Returns a freshly initialised network of `architecture` with `config`.

    Raises `ModelError` for an unknown architecture, and `InvalidWeights` for a config that is not one of it.
    """
    try:
        module_name, network, config_class = ARCHITECTURES[architecture]
    except (KeyError, TypeError):
        raise ModelError(f"unknown architecture {architecture!r:.99}; known: {', '.join(ARCHITECTURES)}") from None
    module = importlib.import_module(module_name)
    # JSON has no tuples, and a frozen config holds no lists.
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    known = typing.get_type_hints(getattr(module, config_class))
    for key, value in values.items():
        if key not in known:
            raise InvalidWeights(f"{architecture}: this version of aeimg knows no {key!r:.99} in its config")
        if not is_of(value, known[key]):
            raise InvalidWeights(f"{architecture}: its config has {key} {value!r:.99}, which is none")
    try:
        made: nn.Module = getattr(module, network)(getattr(module, config_class)(**values))
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise InvalidWeights(f"{architecture}: no network can have its config ({error!s:.300})") from error
    return made


def is_of(value: object, kind: Any, largest: int = LARGEST_NUMBER) -> bool:
    """Returns whether a value that was read from a file is of the type that its field states: a bool, a str, a whole
    number from 0 to `largest`, a finite float, a tuple of these (or a list, as JSON has no tuples), or one of
    several."""
    if typing.get_origin(kind) is tuple:
        each = typing.get_args(kind)[0]
        return isinstance(value, tuple | list) and all(is_of(one, each, largest) for one in value)
    if isinstance(kind, types.UnionType):
        return any(is_of(value, one, largest) for one in typing.get_args(kind))
    if kind is int:
        return type(value) is int and 0 <= value <= largest
    if kind is float:
        return type(value) in (int, float) and abs(value) <= largest  # type: ignore[arg-type]
    return type(value) is kind


# -- where weights lie ---------------------------------------------------------------------------------------


def weights_folders() -> list[Path]:
    """Returns where weights files are looked for: `$AEIMG_WEIGHTS`, inside the package, beside it in a checkout."""
    package = Path(__file__).parent
    folders = [Path(folder) for folder in os.environ.get("AEIMG_WEIGHTS", "").split(os.pathsep) if folder]
    return [*folders, package / "weights", package.parent / "weights"]


def find_weights(label: str) -> Path:
    """Returns the weights file called `label` (`aeimg-codec-5`). Raises `ModelError` with a way out."""
    if not LABEL.fullmatch(label):
        raise ModelError(f"{label!r:.99} is no label of weights; labels are like aeimg-codec-5, without folders")
    for folder in weights_folders():
        path = folder / f"{label}.safetensors"
        if os.path.isfile(path):
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


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    """Opens a weights file. Raises `InvalidWeights` for what is none, and for whatever is found out in the body."""
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(path).close()
        with safe_open(path, framework) as file:
            yield file
    except SafetensorError as error:
        raise InvalidWeights(f"{path}: not a safetensors file, or a damaged one ({error!s:.300})") from error
    except InputError as error:
        raise InvalidWeights(str(error)) from error
    except OSError as error:
        raise InvalidWeights(f"{path}: can't be read ({error.strerror or error})") from error


def read_header(path: Path) -> Header:
    """Reads what a weights file states of itself, without its tensors. Raises `InvalidWeights`."""
    with _opened(path, "numpy") as file:
        return _header(file.metadata(), path)


def _header(metadata: Mapping[str, str] | None, path: Path) -> Header:
    try:
        about = json.loads((metadata or {})["aeimg"])
        if about.pop("format") != FORMAT:
            raise InvalidWeights(f"{path}: written by a later version of aeimg; upgrade aeimg to read it")
        header = Header(**about)
        _shape(header)
    # RecursionError: its JSON is nested a thousand levels deep.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidWeights(
            f"{path}: not a weights file of aeimg, as `aeimg train` writes them; a network in another layout runs as "
            f"spandrel:{path} ({error!r:.300})"
        ) from error
    kinds = {"architecture": str, "config": dict, "task": str, "name": str, "version": int, "card": dict}
    for name, kind in kinds.items():
        if type(getattr(header, name)) is not kind:
            raise InvalidWeights(f"{path}: its header is damaged: {name} is {getattr(header, name)!r:.99}")
    if not is_name(header.name) or not 0 <= header.version < 1 << 31:
        raise InvalidWeights(f"{path}: its header is damaged: no model is called {header.label!r:.99}")
    return header


def _shape(header: Header) -> bytes:
    return json.dumps([header.architecture, header.config], sort_keys=True).encode()


def load_tensors(path: Path) -> tuple[Header, dict[str, Tensor], bytes]:
    """Reads a weights file: its header, its tensors on the CPU, and its digest (see `identify`).

    Raises `InvalidWeights`, also where a tensor has a value that is not finite.
    """
    with _opened(path, "pt") as file:
        header = _header(file.metadata(), path)
        return header, _tensors(file, path, file.keys()), _digest(path, header)


def _tensors(file: Any, path: Path, names: Iterable[str], *, as_floats: bool = False) -> dict[str, Tensor]:
    """Returns those of the tensors of a file, in fp32 with `as_floats`. One at a time is in memory twice."""
    import torch

    tensors = {}
    for name in names:
        # Copied, because the file must not stay mapped: a later run may replace it.
        held = file.get_tensor(name)
        tensors[name] = held.float() if as_floats and held.dtype != torch.float32 else held.clone()
        if not_finite([(name, tensors[name])]) is not None:
            raise InvalidWeights(f"{path}: {name} is not finite; these weights are of no use")
    return tensors


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Returns the name of the first of the named tensors that has a value that is not finite; None where there is
    none."""
    for name, tensor in tensors:
        # As fp32, in which everything runs.
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            return name
    return None


def load_network(path: Path) -> tuple[Header, nn.Module, dict[str, Tensor], bytes]:
    """Reads a weights file: its header, its network in fp32 on the CPU, the tensors that are none of its network, and
    its digest.

    The network is built without memory first: a config to which the tensors do not fit costs none. Raises
    `InvalidWeights`.
    """
    import torch

    with _opened(path, "pt") as file:
        header = _header(file.metadata(), path)
        held = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        try:
            with torch.device("meta"), _unfilled(), _at_most(len(held)):
                network = build(header.architecture, header.config)
        except ModelError as error:
            raise InvalidWeights(f"{path}: {error}") from error
        if getattr(network, "task", None) != header.task:
            raise InvalidWeights(f"{path}: says that its {header.architecture} is for the task {header.task!r:.99}")
        state = network.state_dict()
        _check_fit(path, state, held)
        network.load_state_dict(_tensors(file, path, state, as_floats=True), assign=True)
        besides = _tensors(file, path, [name for name in held if name not in state])
        digest = _digest(path, header)
    return header, network, besides, digest


FILLED_AT_RANDOM = {
    *("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_normal_"),
    *("xavier_uniform_", "orthogonal_"),
}
"""Methods of tensors, and functions of `torch.nn.init`, that fill a tensor with random values."""


def _unfilled() -> AbstractContextManager[object]:
    """In the body, tensors are not filled with random values. There is nothing to fill on the meta device, but torch
    imports its compiler for it, which takes 1.4 seconds and 150 MB."""
    from torch.overrides import TorchFunctionMode

    class Unfilled(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: Any = None
        ) -> object:
            if getattr(func, "__name__", "") in FILLED_AT_RANDOM:
                return args[0] if args else kwargs["tensor"]
            return func(*args, **(kwargs or {}))

    return Unfilled()


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Raises `InvalidWeights` where more than `count` parameters are made in the body."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    thread, left = threading.get_ident(), count

    def made(*_: object) -> None:  # is called in every thread
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:
            raise InvalidWeights("its config asks for more tensors than it has")

    hook = register_module_parameter_registration_hook(made)
    try:
        yield
    finally:
        hook.remove()


FLOATS = {"F16", "BF16", "F32", "F64"}


def _check_fit(path: Path, state: Mapping[str, Tensor], held: Mapping[str, Any]) -> None:
    """Raises `InvalidWeights` where the tensors that the file holds are not those of a network with that `state`."""
    for name, expected in state.items():
        if name not in held:
            raise InvalidWeights(f"{path}: its tensors do not fit its config: it has no {name}")
        shape = list(held[name].get_shape())
        if shape != list(expected.shape) or held[name].get_dtype() not in FLOATS:
            raise InvalidWeights(
                f"{path}: its tensors do not fit its config: {name} is {held[name].get_dtype()} {shape}, and must be "
                f"floats {list(expected.shape)}"
            )
    besides = [one for name, one in held.items() if name not in state]
    unknown = [name for name in held if name not in state and "/" not in name and name != "tables"]
    if unknown:
        raise InvalidWeights(f"{path}: its tensors do not fit its config, which has no {unknown[0]!r:.99}")
    if sum(8 * math.prod(one.get_shape()) for one in besides) > BESIDES_NETWORK:
        raise InvalidWeights(f"{path}: its tables are larger than those of any model")


def _digest(path: Path, header: Header) -> bytes:
    """Returns the first 8 bytes of the SHA-256 over architecture, config and tensor data."""
    found = hashlib.sha256(_shape(header))
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
    except (OSError, ValueError) as error:
        raise InvalidWeights(f"{path}: can't be read ({error})") from error


@functools.lru_cache(maxsize=64)
def _identified(path: Path, mtime: int) -> tuple[Header, bytes]:
    header = read_header(path)
    return header, _digest(path, header)
