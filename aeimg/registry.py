"""The registry: which models there are, where they come from, and how a name becomes a model that is loaded.

    BUILTINS        the models that ship
    register()      a model of one's own, for this process
    entry points    models of installed packages, in the group `aeimg.models`
    spandrel:FILE   networks of other projects, see `spandrel_adapter`

    register_task() an image-to-image task of one's own, for this process
    entry points    tasks of installed packages, in the group `aeimg.tasks`

    name ──resolve──> weights file or `Entry` ──load, complete──> model ──kept──> `get`

A model is loaded once for each device and kept as long as somebody holds it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from .contract import MODEL_TASKS, Codec, Colorizer, Denoiser, ImageTask, Model, Upscaler, complete
from .errors import InvalidWeights, ModelError, UsageError
from .weights import LABEL, find_weights, identify, load_network

if TYPE_CHECKING:
    import torch

ENTRY_POINT_GROUP = "aeimg.models"
TASK_GROUP = "aeimg." + "tasks"  # in two parts, because tests take the name of a module for an import of it
"""The groups of entry points of models and of tasks."""
OWN_TASKS = (*MODEL_TASKS, "decompress", "features", "score")
"""The names of aeimg's own tasks, which no plug-in can take."""

BUILTINS = {
    "aeimg-denoise": ("denoise", "aeimg-denoise-5"),
    "aeimg-denoise-blind": ("denoise", "aeimg-denoise-blind-3"),
    "aeimg-denoise-jpeg": ("denoise", "aeimg-denoise-jpeg-1"),
    "aeimg-codec": ("compress", "aeimg-codec-5"),
    # Here is the line of each model for upscale and colorize, once its weights ship: nothing else names them.
    # The textbooks' autoencoders, of handwritten digits.
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

DEFAULTS = {task: name for name, (task, _) in reversed(BUILTINS.items())}
"""Task -> the model that runs where none is named: the first of `BUILTINS` that is for it."""

WHITE, BLIND, JPEG = DEFAULTS["denoise"], "aeimg-denoise-blind", "aeimg-denoise-jpeg"
CHOICES = {
    WHITE: "where white noise is found",
    BLIND: "where no white noise is found",
    JPEG: "where JPEG has left marks on strong noise",
}
"""The denoisers of which each picture gets one where none is named, and when."""

RUNNERS: dict[str, tuple[str, str]] = {
    "hyperprior": ("aeimg.hyperprior_codec", "HyperpriorCodec"),
    "dense": ("aeimg.patch_codec", "PatchCodec"),
    "variational": ("aeimg.patch_codec", "PatchCodec"),
    "convolutional": ("aeimg.patch_codec", "PatchCodec"),
}
"""Architecture -> module and class that make a codec of the network and the other tensors of its file."""

SPANDREL = "spandrel:"
"""The beginning of a name that stands for a file which `spandrel_adapter` loads."""


@dataclass(frozen=True)
class Entry:
    """One registered model."""

    name: str
    """The name by which it is asked for."""
    task: str
    """The task that it is for: one of `contract.MODEL_TASKS`, or that of a plug-in."""
    factory: Callable[[], Any]
    """Returns the model; `contract` says what it must then do."""
    origin: str
    """Where it comes from: "built in", "registered", "spandrel", or the package of its entry point."""
    weights: Path | None = None
    """The file that holds its weights, where aeimg knows it."""


_registered: dict[str, Entry] = {}
_registered_tasks: dict[str, ImageTask] = {}


# -- tasks of plug-ins ---------------------------------------------------------------------------------------


def register_task(task: ImageTask) -> None:
    """Makes an image-to-image task available by its name, for this process; see `docs/plugins.md`.

    Raises `ModelError` where the name is taken.
    """
    if not isinstance(task, ImageTask):
        raise UsageError(f"a task is an aeimg.ImageTask, not a {type(task).__name__}")
    if task.name in OWN_TASKS or task.name in _registered_tasks:
        raise ModelError(f"the task name {task.name!r} is already taken ({_holder_of_task(task.name)})")
    _registered_tasks[task.name] = task


def unregister_task(name: str) -> None:
    """Undoes `register_task`; aeimg's own tasks and those of entry points stay."""
    _registered_tasks.pop(name, None)


def _holder_of_task(name: str) -> str:
    return "by aeimg itself" if name in OWN_TASKS else "by a call of aeimg.register_task"


def plugged_tasks() -> list[str]:
    """Returns the names of the tasks of plug-ins, without loading anything."""
    return sorted({*_registered_tasks, *_points(TASK_GROUP)})


def plugged_task(name: str) -> ImageTask | None:
    """Returns the task of that name that a plug-in has brought; None where there is none.

    Raises `ModelError` where its name is taken or its package is broken.
    """
    points = _points(TASK_GROUP).get(name, [])
    if not points:
        return _registered_tasks.get(name)
    packages = " and ".join(sorted(_package(point) for point in points))
    about = f"the task {name!r} of the package {packages}"
    if len(points) > 1:
        raise ModelError(f"the task name {name!r} is claimed by two packages, {packages}; uninstall one of them")
    if name in OWN_TASKS or name in _registered_tasks:
        raise ModelError(f"{about} has a name that is already taken ({_holder_of_task(name)}); uninstall {packages}")
    try:
        found = points[0].load()
    except (Exception, SystemExit) as error:  # a fault of a plug-in must stay in the plug-in
        raise ModelError(f"{about} can't be loaded ({error!r})") from error
    if not isinstance(found, ImageTask) or found.name != name:
        raise ModelError(f"{about} is no aeimg.ImageTask of that name, but {found!r:.99}")
    return found


def _is_task(task: object) -> bool:
    """Returns whether a model can be for `task`."""
    return task in MODEL_TASKS or task in _registered_tasks or task in _points(TASK_GROUP)


def model_tasks() -> list[str]:
    """Returns the names of the tasks that models can be for."""
    return [*MODEL_TASKS, *(name for name in plugged_tasks() if name not in OWN_TASKS)]


def default_model(task: str) -> str | None:
    """Returns the name of the model that runs where none is named; None where there is none."""
    if task in DEFAULTS:
        return DEFAULTS[task]
    found = None if task in OWN_TASKS else plugged_task(task)
    return None if found is None else found.model


# -- registering ---------------------------------------------------------------------------------------------


def register(name: str, factory: Callable[[], Any], *, task: str | None = None) -> None:
    """Makes `factory()` available as `--model NAME`. The factory is called once for each device.

    `task` is one of `contract.MODEL_TASKS` or that of a plug-in, and may be left out where the factory has an attribute
    `task`. What the factory must return is written in `docs/plugins.md`. Raises `ModelError` where the name is taken,
    `UsageError` for an unknown task.
    """
    task = task or getattr(factory, "task", None)
    if task is None or not _is_task(task):
        raise UsageError(f"model {name!r}: the task must be one of {', '.join(model_tasks())}, not {task!r}")
    if _stands_for(name):
        raise ModelError(f"the model name {name!r} stands for {_stands_for(name)}; take another")
    if name in BUILTINS or name in _registered:
        raise ModelError(f"the model name {name!r} is already taken (by {_holder(name)})")
    _registered[name] = Entry(name, task, factory, "registered")


def unregister(name: str) -> None:
    """Undoes `register`; built-in models and entry points stay."""
    if _registered.pop(name, None) is not None:
        _made.forget(name)


def _stands_for(name: str) -> str:
    """Returns the kind of file for which `resolve` takes `name`, whatever is registered."""
    if name.startswith(SPANDREL):
        return "a file that spandrel loads"
    return "a weights file" if name.endswith(".safetensors") else ""


def _holder(name: str) -> str:
    return "aeimg itself" if name in BUILTINS else "a call of aeimg.register"


def _builtin(name: str) -> Entry:
    task, label = BUILTINS[name]
    path = find_weights(label)
    return Entry(name, task, lambda: load_model(path), "built in", path)


def _spandrel(name: str, task: str = "denoise") -> Entry:
    path = Path(name.removeprefix(SPANDREL)).expanduser()
    if not os.path.isfile(path):
        raise ModelError(f"{path}: no such file, for the model {name!r}")

    def load() -> Any:
        from .spandrel_adapter import load_spandrel

        return load_spandrel(path, task)

    return Entry(name, task, load, "spandrel", path)


def _points(group: str = ENTRY_POINT_GROUP) -> dict[str, list[metadata.EntryPoint]]:
    points: dict[str, list[metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=group):
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
    except (Exception, SystemExit) as error:  # a fault of a plug-in must stay in the plug-in
        raise ModelError(f"model {name!r} of the package {packages} can't be loaded ({error!r})") from error
    task = getattr(factory, "task", None)
    if not isinstance(task, str) or not _is_task(task):
        raise ModelError(f"model {name!r} of the package {packages} states no task (one of {', '.join(model_tasks())})")
    return Entry(name, task, factory, packages)


# -- finding -------------------------------------------------------------------------------------------------


def entry(name: str) -> Entry:
    """Returns the registered model called `name`. Raises `ModelError` where there is none or where it is broken."""
    points = _points()
    if name.startswith(SPANDREL) and name not in points:
        return _spandrel(name)
    if name in points:
        return _from_point(name, points[name])
    if name in _registered:
        return _registered[name]
    if name in BUILTINS:
        return _builtin(name)
    if os.path.isfile(name):
        raise ModelError(f"{name}: not a .safetensors file; others are not loaded, because some of them can run code")
    known = ", ".join(names())
    raise ModelError(
        f"unknown model {name!r}; known: {known}; or name a weights file, FILE.safetensors or spandrel:FILE"
    )


def names() -> list[str]:
    """Returns the name of every registered model, without loading anything."""
    return sorted({*BUILTINS, *_registered, *_points()})


def entries() -> list[Entry | ModelError]:
    """Returns every registered model; in the place of a broken one, the error that says what is wrong with it."""
    found: list[Entry | ModelError] = []
    for name in names():
        try:
            found.append(entry(name))
        except ModelError as error:
            found.append(error)
    return found


def labelled(label: str, device: torch.device) -> Codec[Any]:
    """Returns the codec that a latent file names, on `device`: built in, registered, or in one of `weights_folders`.

    Unlike a name that the user gives, a label never stands for a path. Raises `ModelError`.
    """
    if not LABEL.fullmatch(label) or _stands_for(label):
        raise ModelError(f"{label!r:.99} is no label; name the weights with --model FILE")
    return get(label, "compress", device)


def resolve(name: str) -> Path | Entry:
    """Returns what `name` stands for: a weights file, named by its path, by its label or as that of a registered model;
    or a model whose weights are not a file of aeimg. Raises `ModelError`."""
    if "\0" in name:
        raise ModelError(f"no model is called {name!r:.99}")
    if name.startswith(SPANDREL):
        return _spandrel(name)
    if name.endswith(".safetensors"):
        return Path(name)
    if name in {label for _, label in BUILTINS.values()}:  # whatever names plug-ins claim
        return find_weights(name)
    if name not in BUILTINS and name not in _registered and re.fullmatch(r".+-\d+", name) and name not in _points():
        return find_weights(name)
    found = entry(name)
    return found.weights or found


def task_of(model: str | os.PathLike[str]) -> str:
    """Returns the task of the model that `model` names, without loading it. Raises `ModelError`."""
    found = resolve(os.fspath(model))
    return identify(found)[0].task if isinstance(found, Path) else found.task


# -- loading -------------------------------------------------------------------------------------------------

KEPT = 4
"""Of the models that nobody holds, as many stay loaded, the last ones used."""

T = TypeVar("T")


class _Loaded:
    """Models by key: loaded once, and never twice while somebody holds one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a factory may itself ask for a model
        self._recent: OrderedDict[Hashable, Any] = OrderedDict()
        self._alive: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()

    def get(self, key: Hashable, load: Callable[[], T]) -> T:
        """Returns the model of `key`, which `load` makes where there is none."""
        with self._lock:
            model: T | None = self._recent.get(key, self._alive.get(key))
            if model is None:
                model = load()
            self._recent[key] = model
            self._recent.move_to_end(key)
            with contextlib.suppress(TypeError):  # some objects have no weak references; they may be loaded again
                self._alive[key] = model
            while len(self._recent) > KEPT:
                self._recent.popitem(last=False)
            return model


class _Made:
    """What factories have made, by name and device, until the name is registered anew."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._models: dict[tuple[str, str], tuple[Callable[[], Any], Any]] = {}

    def get(self, found: Entry, device: torch.device) -> Any:
        """Returns what the factory of `found` has made for `device`."""
        key = (found.name, str(device))
        with self._lock:
            factory, model = self._models.get(key, (None, None))
            if factory is not found.factory:
                model = _make(found, device)
                self._models[key] = (found.factory, model)
            return model

    def forget(self, name: str) -> None:
        """Lets go of what was made for `name`."""
        with self._lock:
            self._models = {key: made for key, made in self._models.items() if key[0] != name}


_loaded, _made = _Loaded(), _Made()


def _make(found: Entry, device: torch.device) -> Any:
    try:
        model = found.factory()
        model = model.to(device) if hasattr(model, "to") else model
        fault = None
        try:
            return complete(model, found.task)
        except ModelError as error:
            fault = error
    except Exception as error:  # a fault of a plug-in must stay in the plug-in
        raise ModelError(f"model {found.name!r} can't be made ({error!r})") from error
    raise ModelError(f"model {found.name!r} {fault}; see docs/plugins.md") from fault


def load_model(path: Path, task: str | None = None) -> Any:
    """Returns the model of a weights file: in fp32 on the CPU, in evaluation mode, every attribute of `contract` set.

    Its `label` ("aeimg-codec-5") and `digest` (see `weights.identify`) are those of the file. Raises `ModelError` where
    the file is for another task than `task`, `InvalidWeights` for a damaged file.
    """
    import torch

    header, network, tensors, digest = load_network(path)
    if task is not None and header.task != task:
        raise _WrongTask(header.task)
    network.eval().requires_grad_(False)
    network = network.to(memory_format=torch.channels_last)
    model: Any = network
    if header.architecture in RUNNERS:
        module, runner = RUNNERS[header.architecture]
        try:
            model = getattr(importlib.import_module(module), runner)(network, tensors, header.label, digest)
        except (KeyError, ValueError) as error:
            raise InvalidWeights(f"{path}: its tables are missing or malformed ({error!s:.300})") from error
    else:
        model.label, model.digest = header.label, digest
    return complete(model, header.task)


class _WrongTask(ModelError):
    """A weights file is for the task that this error names."""


def _name(model: str | os.PathLike[str] | None, task: str) -> str:
    if model is not None:
        return os.fspath(model)
    if task in DEFAULTS:  # by its label, so that no plug-in that claims its name takes it away
        return BUILTINS[DEFAULTS[task]][1]
    name = default_model(task)
    if name is None:
        raise ModelError(f"no model for the task {task} is named, and none ships: name one by --model")
    return name


def _resolve_for(name: str, task: str) -> Path | Entry:
    """Returns what `resolve` does; a network that spandrel loads becomes a model for any image-to-image task."""
    found = resolve(name)
    if isinstance(found, Entry) and found.origin == "spandrel" and task != "compress":
        return _spandrel(name, task)
    return found


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise InvalidWeights(f"{path}: can't be read ({error.strerror})") from error


def _check_task(name: str, found: str, task: str) -> None:
    if found != task:
        raise ModelError(f"model {name!r} is for the task {found}, not for {task}")


@overload
def get(model: str | os.PathLike[str] | None, task: Literal["denoise"], device: torch.device) -> Denoiser: ...
@overload
def get(model: str | os.PathLike[str] | None, task: Literal["compress"], device: torch.device) -> Codec[Any]: ...
@overload
def get(model: str | os.PathLike[str] | None, task: Literal["upscale"], device: torch.device) -> Upscaler: ...
@overload
def get(model: str | os.PathLike[str] | None, task: Literal["colorize"], device: torch.device) -> Colorizer: ...
@overload
def get(model: str | os.PathLike[str] | None, task: str, device: torch.device) -> Any: ...
def get(model: str | os.PathLike[str] | None, task: str, device: torch.device) -> Any:
    """Returns the model for `task` that `model` names, on `device`; None is the default for the task.

    `model` is a registered name, a weights file, the label of one (`aeimg-codec-5`) that lies in `weights_folders`, or
    `spandrel:FILE`. Who asks twice gets the same object. Raises `ModelError`.
    """
    name = _name(model, task)
    found = _resolve_for(name, task)
    if isinstance(found, Path):
        path = found
        try:
            return _loaded.get((path, _mtime(path), task, str(device)), lambda: load_model(path, task).to(device))
        except _WrongTask as error:
            _check_task(name, str(error), task)
    assert isinstance(found, Entry)
    _check_task(name, found.task, task)
    if found.weights is None:
        return _made.get(found, device)
    key = (name, _mtime(found.weights), task, str(device))
    return _loaded.get(key, lambda: complete(found.factory().to(device), task))


def identity(model: str | os.PathLike[str] | None, task: str, device: torch.device) -> tuple[str, str]:
    """Returns the label of the model that `get` would return, and what distinguishes its weights from others.

    No network is built where a weights file of aeimg says both. Raises `ModelError`.
    """
    name = _name(model, task)
    found = resolve(name)
    if isinstance(found, Path):
        header, digest = identify(found)
        _check_task(name, header.task, task)
        return header.label, digest.hex()
    made: Model = get(model, task, device)
    # Of models that state no digest, one function is as good as another: then their names distinguish them.
    return made.label, made.digest.hex() or name
