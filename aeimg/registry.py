"""The registry: which models there are, where they come from, and how a name becomes a model that is loaded."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InvalidWeights, ModelError, UsageError
from .weights import build, find_weights, load_tensors, read_header

if TYPE_CHECKING:
    import torch

TASKS = ("denoise", "compress")
ENTRY_POINT_GROUP = "aeimg.models"

RUNNERS: dict[str, tuple[str, str]] = {
    "hyperprior": ("aeimg.hyperprior_codec", "HyperpriorCodec"),
    "dense": ("aeimg.patch_codec", "BlockCodec"),
    "variational": ("aeimg.patch_codec", "BlockCodec"),
    "convolutional": ("aeimg.patch_codec", "BlockCodec"),
}
"""Architecture -> module and class that make a model for its task of the network and its file's other tensors."""


@dataclass(frozen=True)
class Entry:
    """One registered model."""

    name: str
    task: str
    factory: Callable[[], Any]
    """Makes the model: see `noise.Denoiser` and `hyperprior_codec.Codec` for what it must then do."""
    origin: str
    """Where it comes from: "built in", "registered", "spandrel", or the package of its entry point."""
    weights: Path | None = None


BUILTINS = {
    "aeimg-denoise": ("denoise", "aeimg-denoise-5"),
    "aeimg-denoise-blind": ("denoise", "aeimg-denoise-blind-3"),
    "aeimg-denoise-jpeg": ("denoise", "aeimg-denoise-jpeg-1"),
    "aeimg-codec": ("compress", "aeimg-codec-2"),
    # The textbooks' autoencoders, of handwritten digits; see `families`.
    "linear": ("compress", "linear-1"),
    "vanilla": ("compress", "vanilla-1"),
    "multilayer": ("compress", "multilayer-1"),
    "stacked": ("compress", "stacked-1"),
    "conv": ("compress", "conv-1"),
    "sparse": ("compress", "sparse-1"),
    "denoising": ("denoise", "denoising-1"),
    "variational": ("compress", "variational-1"),
}
"""Name -> task and the label of its newest weights, which is what the plain name stands for."""

DEFAULTS = {"denoise": "aeimg-denoise", "compress": "aeimg-codec"}
"""Task -> the model that runs where none is named."""

WHITE, BLIND, JPEG = DEFAULTS["denoise"], "aeimg-denoise-blind", "aeimg-denoise-jpeg"
CHOICES = {
    WHITE: "where white noise is found",
    BLIND: "where no white noise is found",
    JPEG: "where JPEG has left marks on strong noise",
}
"""The denoisers that each picture gets one of where none is named, and when."""

COMMUNITY = "spandrel:"
"""What the name of a file begins with that `spandrel_adapter` loads."""

_registered: dict[str, Entry] = {}


def register(name: str, factory: Callable[[], Any], *, task: str | None = None) -> None:
    """Makes `factory()` available as `--model NAME`.

    `task` is "denoise" or "compress" and may be left out where the factory has an attribute `task`. What the
    factory must return is written in `docs/plugins.md`. Raises `ModelError` where the name is taken, `UsageError`
    for an unknown task.
    """
    task = task or getattr(factory, "task", None)
    if task not in TASKS:
        raise UsageError(f"model {name!r}: the task must be one of {', '.join(TASKS)}, not {task!r}")
    if _stands_for(name):
        raise ModelError(f"the model name {name!r} stands for {_stands_for(name)}; take another")
    if name in BUILTINS or name in _registered:
        raise ModelError(f"the model name {name!r} is already taken (by {_holder(name)})")
    _registered[name] = Entry(name, task, factory, "registered")


def _stands_for(name: str) -> str:
    """What kind of file `resolve` takes `name` for, whatever is registered."""
    if name.startswith(COMMUNITY):
        return "a file that spandrel loads"
    return "a weights file" if name.endswith(".safetensors") else ""


def unregister(name: str) -> None:
    """Takes back what `register` did; built-in models and entry points stay."""
    _registered.pop(name, None)


def _holder(name: str) -> str:
    return "aeimg itself" if name in BUILTINS else "a call of aeimg.register"


def _builtin(name: str) -> Entry:
    task, label = BUILTINS[name]
    path = find_weights(label)
    return Entry(name, task, lambda: load_model(path), "built in", path)


def _community(name: str) -> Entry:
    path = Path(name.removeprefix(COMMUNITY)).expanduser()
    if not path.is_file():
        raise ModelError(f"{path}: no such file, for the model {name!r}")
    return Entry(name, "denoise", lambda: _load_community(path), "spandrel", path)


def _load_community(path: Path) -> Any:
    from .spandrel_adapter import load_community

    return load_community(path)


def _points() -> dict[str, list[metadata.EntryPoint]]:
    points: dict[str, list[metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        points.setdefault(point.name, []).append(point)
    return points


def _package(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _from_point(name: str, points: list[metadata.EntryPoint]) -> Entry:
    packages = " and ".join(sorted(_package(point) for point in points))
    if _stands_for(name):
        raise ModelError(f"the model name {name!r} of the package {packages} stands for {_stands_for(name)}")
    if len(points) > 1:
        raise ModelError(f"the model name {name!r} is claimed by two packages, {packages}; uninstall one of them")
    if name in BUILTINS or name in _registered:
        raise ModelError(
            f"the model name {name!r} of the package {packages} is already taken (by {_holder(name)}); uninstall "
            f"{packages}"
        )
    try:
        factory = points[0].load()
    except (Exception, SystemExit) as error:  # a plug-in's fault stays the plug-in's
        raise ModelError(f"model {name!r} of the package {packages} can't be loaded ({error!r})") from error
    task = getattr(factory, "task", None)
    if task not in TASKS:
        raise ModelError(f"model {name!r} of the package {packages} states no task (one of {', '.join(TASKS)})")
    return Entry(name, task, factory, packages)


def entry(name: str) -> Entry:
    """The registered model called `name`. Raises `ModelError` where there is none or where it is broken."""
    points = _points()
    if name.startswith(COMMUNITY) and name not in points:
        return _community(name)
    if name in points:
        return _from_point(name, points[name])
    if name in _registered:
        return _registered[name]
    if name in BUILTINS:
        return _builtin(name)
    if os.path.isfile(name):
        raise ModelError(f"{name}: is no .safetensors file; others are not loaded, for some of them could run code")
    known = ", ".join(sorted({*BUILTINS, *_registered, *points}))
    raise ModelError(
        f"unknown model {name!r}; known: {known}; or name a weights file, FILE.safetensors or spandrel:FILE"
    )


def entries() -> list[Entry | ModelError]:
    """Every registered model; in the place of a broken one, the error that says what is wrong with it."""
    found: list[Entry | ModelError] = []
    for name in sorted({*BUILTINS, *_registered, *_points()}):
        try:
            found.append(entry(name))
        except ModelError as error:
            found.append(error)
    return found


# -- loading -----------------------------------------------------------------------------------------------------------


def load_model(path: Path) -> Any:
    """The model of a weights file: a network in fp32 on the CPU, in evaluation mode, ready for its task.

    It carries `label` ("aeimg-codec-2") and `digest` (see `load_tensors`).
    """
    import torch

    header, tensors, digest = load_tensors(path)
    network = build(header.architecture, header.config)
    own = {name: tensor for name, tensor in tensors.items() if "/" not in name and name != "tables"}
    try:
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in own.items()})
    except RuntimeError as error:
        raise InvalidWeights(f"{path}: its tensors do not fit its config ({error})") from error
    network.eval().requires_grad_(False)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if header.architecture in RUNNERS:
        module, runner = RUNNERS[header.architecture]
        try:
            return getattr(importlib.import_module(module), runner)(network, tensors, header.label, digest)
        except (KeyError, ValueError) as error:
            raise InvalidWeights(f"{path}: its tables are missing or malformed ({error})") from error
    network.label, network.digest = header.label, digest  # type: ignore[assignment]
    return network


@lru_cache(maxsize=4)
def _shared(load: Callable[[Path], Any], path: Path, changed: int, device: torch.device) -> Any:
    return load(path).to(device)


def resolve(name: str) -> Path | Entry:
    """What `name` stands for: a weights file, by its path, by its label or as that of a registered model; or a
    model without one of aeimg's. Raises `ModelError`."""
    if name.startswith(COMMUNITY):
        return _community(name)
    if name.endswith(".safetensors"):
        return Path(name)
    if name in {label for _, label in BUILTINS.values()}:  # whatever plug-ins call theirs
        return find_weights(name)
    if name not in BUILTINS and name not in _registered and re.fullmatch(r".+-\d+", name) and name not in _points():
        return find_weights(name)
    found = entry(name)
    return found.weights or found


def get(model: str | os.PathLike[str] | None, task: str, device: torch.device) -> Any:
    """The model for `task` that `model` names, on `device`; None is the default.

    `model` is a registered name, a weights file, the label of one (`aeimg-codec-2`) that lies in `weights_folders`, or
    `spandrel:FILE`; weights are loaded once and shared. Raises `ModelError`.
    """
    # By its label: no plug-in that claims its name takes the default away.
    name = BUILTINS[DEFAULTS[task]][1] if model is None else os.fspath(model)
    found = resolve(name)
    found_task = read_header(found).task if isinstance(found, Path) else found.task
    if found_task != task:
        raise ModelError(f"model {name!r} is for the task {found_task}, not for {task}")
    if isinstance(found, Path):
        return _shared(load_model, found, found.stat().st_mtime_ns, device)
    if found.weights is not None:
        return _shared(_load_community, found.weights, found.weights.stat().st_mtime_ns, device)
    try:
        made = found.factory()
        made = made.to(device) if hasattr(made, "to") else made
        faults = list(_faults(made, task))
    except Exception as error:  # a plug-in's fault stays the plug-in's
        raise ModelError(f"model {name!r} can't be made ({error!r})") from error
    if faults:
        raise ModelError(f"model {name!r} {'; '.join(faults)}; see docs/plugins.md")
    return made


CODEC = ("label", "digest", "encode", "to_bytes", "from_bytes", "decode")
"""What a codec must have."""


def _faults(model: Any, task: str) -> Iterator[str]:
    """What is wrong with what a model states of itself."""
    import torch

    def whole(value: Any, least: int) -> bool:
        return isinstance(value, int) and value >= least

    multiple, label, digest = getattr(model, "multiple", 1), getattr(model, "label", ""), getattr(model, "digest", b"")
    if not whole(multiple, 1):
        yield f"states the multiple {multiple!r}; it must be a whole number of 1 or more"
    if not isinstance(label, str) or not isinstance(digest, bytes):
        yield f"states the label {label!r} and the digest {digest!r}; they must be a str and bytes"
    if task == "compress":
        missing = [word for word in CODEC if not hasattr(model, word)]
        if missing:
            yield f"has no {', '.join(missing)}, which a codec must have"
        elif len(digest) != 8:
            yield f"states a digest of {len(digest)} bytes; a codec's must have 8"
        return
    if not callable(model):
        yield "can't be called, which a denoiser must"
    channels, halo, dtypes = (getattr(model, word, None) for word in ("channels", "halo", "dtypes"))
    if channels not in (None, 1, 3):
        yield f"states {channels!r} channels; it must be 3, or 1 for each by itself"
    if halo is not None and not whole(halo, 0):
        yield f"states the halo {halo!r}; it must be a whole number of pixels, or None"
    if dtypes is not None and torch.float32 not in dtypes:
        yield f"states the dtypes {dtypes!r}; torch.float32 must be among them"
