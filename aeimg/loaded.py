"""`load()`: a model to hold, and to call often.

    load("denoise")    -> `LoadedDenoiser`: picture -> picture
    load("upscale")    -> `LoadedImageModel`: the same, with the options of the task; so for every image-to-image task
    load("compress")   -> `LoadedCodec`: picture -> latent -> picture

Each wraps a task of `tasks` whose model is loaded, and takes one picture through its steps in the caller's thread
(`process_one`); `engine.process` does the same with a single picture. Nothing of an object changes once it is there, so
any number of threads may call it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Literal, Protocol, TypedDict, TypeVar, Unpack, overload, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import registry
from .contract import ImageTask
from .devices import pick_device, pick_dtype
from .errors import ModelError, UsageError
from .stream import Task
from .tasks import declared
from .tasks.compress import Compress
from .tasks.decompress import Decompress
from .tasks.denoise import Denoise
from .tasks.image import ImageRunner
from .tasks.options import CompressOptions, DecompressOptions, DenoiseOptions, EncodingOptions, Kind, options_of
from .tasks.pictures import Result, is_one, is_path

log = logging.getLogger("aeimg")

Array = np.ndarray
Name = str | os.PathLike[str]

# -- one picture ---------------------------------------------------------------------------------------------


@runtime_checkable
class TensorTask(Protocol):
    """A task that takes a tensor on the device where it is."""

    def tensors(self, x: Tensor, batch_size: int) -> Tensor:
        """Returns what the task makes of the pictures `x`, `[C,H,W]` or `[N,C,H,W]`."""
        ...


def process_one(task: Task[Any, Any, Any, Result[Any]], source: object, batch_size: int = 8) -> Any:
    """Returns what `task` makes of one picture, or of a tensor of several; everything runs in this thread."""
    if isinstance(source, Tensor) and isinstance(task, TensorTask):
        return task.tensors(source, batch_size)
    item = task.prepare(source)
    (raw,) = task.run([item])
    return value_of(task.finish(item, raw))


def value_of(result: Result[Any]) -> Any:
    """Returns the value of a result that does not become a file. A missed target is logged: there is no summary."""
    if "target_missed" in result.figures():
        log.warning("%s (it has %.5g)", result.warnings[-1], result.figures()["target_missed"])
    return result.value


# -- models to hold ------------------------------------------------------------------------------------------

Self = TypeVar("Self", bound="_LoadedModel")


class _LoadedModel:
    """What models to hold have in common."""

    task: str
    """What the model is for: "denoise", "compress", or another image-to-image task."""

    def __init__(self, model: str | None, device: str, dtype: str) -> None:
        self._asked = (model, device, dtype)
        self.device: torch.device = pick_device(device)
        """Where the model is."""
        self.dtype: torch.dtype = pick_dtype(dtype, self.device)
        """The precision in which it runs."""

    @property
    def models(self) -> tuple[tuple[str, str], ...]:
        """Label and digest of the weights: `(("aeimg-codec-5", "0f..."),)`. A denoiser that chooses has several."""
        raise NotImplementedError

    def _arguments(self) -> tuple[Any, ...]:
        """What the class was called with, up to the device and the precision."""
        return self._asked[:1]

    def to(self: Self, device: str | torch.device) -> Self:
        """Returns the same model on another device. This one stays where it is, so that both can be used.

        Raises `UsageError` where the device is unknown or missing.
        """
        kind: Callable[..., Self] = type(self)
        return kind(*self._arguments(), str(device), self._asked[2])

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), (*self._arguments(), *self._asked[1:]), self.models)

    def __copy__(self: Self) -> Self:
        return self  # it never changes

    def __deepcopy__(self: Self, memo: object) -> Self:
        return self

    def __repr__(self) -> str:
        labels = ", ".join(label for label, _ in self.models) or self.task
        return f"<{type(self).__name__} {labels} on {self.device} in {str(self.dtype).removeprefix('torch.')}>"


Weights = tuple[tuple[str, str], ...]
"""Label and digest of each of a model's weights."""


def _restored(kind: type[Self], arguments: tuple[Any, ...], models: Weights) -> Self:
    """Returns the model that was pickled. Raises `ModelError` where this process has other weights by its name."""
    made = kind(*arguments)
    if made.models != models:
        raise ModelError(
            f"the model was pickled with the weights {_named(models)}, and here its name stands for "
            f"{_named(made.models)}; use the same version of aeimg and the same weights file on both sides"
        )
    return made


def _named(models: Weights) -> str:
    return ", ".join(f"{label} ({digest})" for label, digest in models)


TensorLike = TypeVar("TensorLike", bound=Tensor)
P = TypeVar("P", Image.Image, Array, bytes)
Sigma = float | str | Array | Tensor
"""A level of noise, "auto", or a map."""


class LoadedDenoiser(_LoadedModel):
    """A denoiser to hold: `model(picture)` returns the picture without its noise.

    It can be copied, pickled (by its name and the digest of its weights, which are not part of the pickle), and called
    from several threads at once. Without a name, it chooses a network for each picture, as `process` does, and loads
    each when a picture first needs it.
    """

    task = "denoise"

    def __init__(self, model: str | None = None, device: str = "auto", dtype: str = "auto") -> None:
        super().__init__(model, device, dtype)
        self._task = Denoise(declared.DENOISE, model, self.device, self.dtype, DenoiseOptions())

    @property
    def models(self) -> tuple[tuple[str, str], ...]:
        return tuple(self._task.models())

    @overload
    def __call__(
        self, picture: TensorLike, *, sigma: Sigma = ..., strength: float = ..., chroma_strength: float | None = ...
    ) -> TensorLike: ...
    @overload
    def __call__(
        self, picture: P, *, sigma: Sigma = ..., strength: float = ..., chroma_strength: float | None = ...
    ) -> P: ...
    @overload
    def __call__(
        self,
        picture: Name | BinaryIO,
        *,
        sigma: Sigma = ...,
        strength: float = ...,
        chroma_strength: float | None = ...,
    ) -> Image.Image: ...
    def __call__(
        self, picture: Any, *, sigma: Sigma = "auto", strength: float = 1.0, chroma_strength: float | None = None
    ) -> Any:
        """Returns one picture, or a tensor of several, without noise.

        Args:
            picture: A torch tensor `[C,H,W]` or `[N,C,H,W]`, C 1, 3 or 4, uint8 or float in [0,1]; a numpy array
                `[H,W]`, `[H,W,3]` or `[H,W,4]` of uint8, uint16 or float in [0,1]; a PIL image; the bytes of an image
                file; a path or an open file. A fourth channel is alpha and stays as it is.
            sigma: The level of the noise in 8-bit units, or "auto" to estimate it for each picture, which leaves
                pictures without noise, and those with a side under 64 pixels, untouched; or a map of the level, an
                array or a tensor `[H,W]` of the picture's size.
            strength: 0 leaves the picture as it is, 1 removes all the noise.
            chroma_strength: The strength for colours alone; None for `strength`.

        Returns:
            The same kind: an array of the same shape and dtype; a tensor of the same shape, dtype and type (also
            torchvision's tv_tensors), on the same device, without gradients; a PIL image for a path or an open file.
            A tensor that is on a GPU is never copied to the CPU.

        Raises:
            UsageError: The call is wrong; or the tensor is on a GPU, and the model is on another kind of device.
            InputError: The picture can't be handled, or a map of sigma has another size.
            ModelError: The model takes no map of sigma.
        """
        _require_one(picture, "denoise")
        task = self._task.with_options(DenoiseOptions(sigma=sigma, strength=strength, chroma_strength=chroma_strength))
        clean = process_one(task, picture)
        self._task.tile = min(self._task.tile, task.tile)  # smaller where memory has not sufficed
        return clean


class LoadedImageModel(_LoadedModel):
    """A model of an image-to-image task to hold, of a plug-in's too: `model(picture)` returns the task's result.

    It can be copied, pickled (by the names of task and model and the digest of the weights, which are not part of the
    pickle), and called from several threads at once. Raises `UsageError`, `ModelError`.
    """

    def __init__(self, task: str, model: str | None = None, device: str = "auto", dtype: str = "auto") -> None:
        super().__init__(model, device, dtype)
        found = declared.find(task)
        if found is None:
            raise UsageError(f"unknown task {task!r}; use one of {', '.join(declared.names())}")
        self.task = task
        self._options = options_of(task)
        self._task: ImageRunner = found.runner_class(found, model, self.device, self.dtype, self._options())

    def _arguments(self) -> tuple[Any, ...]:
        return self.task, self._asked[0]

    @property
    def models(self) -> tuple[tuple[str, str], ...]:
        return tuple(self._task.models())

    @overload
    def __call__(self, picture: TensorLike, **options: Any) -> TensorLike: ...
    @overload
    def __call__(self, picture: P, **options: Any) -> P: ...
    @overload
    def __call__(self, picture: Name | BinaryIO, **options: Any) -> Image.Image: ...
    def __call__(self, picture: Any, **options: Any) -> Any:
        """Returns what the task makes of one picture, or of a tensor of several.

        Args:
            picture: What a `LoadedDenoiser` takes.
            options: Those of the task: `scale` of upscale, `strength` of colorize; of all, `format` and
                `image_quality`, where the bytes of an image file come in. See `process`.

        Returns:
            The same kind, as a `LoadedDenoiser` does it, of the size and the channels that the task makes. A tensor
            that is on a GPU stays there, unless the task of a plug-in has steps of its own for the CPU alone.

        Raises:
            UsageError: The call is wrong; or the tensor is on a GPU, and the model is on another kind of device.
            InputError: The picture can't be handled.
            ModelError: The model's result has another shape than it must have.
        """
        _require_one(picture, self.task)
        task = self._task.with_options(_of(self._options, options))
        made = process_one(task, picture)
        self._task.tile = min(self._task.tile, task.tile)  # smaller where memory has not sufficed
        return made


class EncodeWords(TypedDict, total=False):
    """See `CompressOptions`."""

    effort: int
    target_bpp: float | None
    target_psnr: float | None
    target_ssimulacra2: float | None
    max_bytes: int | None


class DecodeWords(TypedDict, total=False):
    """See `DecompressOptions`."""

    format: str | None
    image_quality: int | Mapping[str, int] | None
    crop: tuple[int, int, int, int] | None
    scale: str | float


class LoadedCodec(_LoadedModel):
    """A codec to hold: `encode` turns pictures into latents, `decode` turns these back.

    It can be copied, pickled (by its name and the digest of its weights, which are not part of the pickle), and called
    from several threads at once.
    """

    task = "compress"

    def __init__(self, model: str | None = None, device: str = "auto", dtype: str = "auto") -> None:
        super().__init__(model, device, dtype)
        self._compress = Compress(model, self.device, self.dtype, CompressOptions())
        self._decompress = Decompress(model, self.device, self.dtype, DecompressOptions())

    @property
    def models(self) -> tuple[tuple[str, str], ...]:
        return ((self._compress.model.label, self._compress.model.digest.hex()),)

    def encode(
        self,
        image: Image.Image | Array | Tensor | bytes | memoryview | Name | BinaryIO,
        quality: int | None = None,
        **options: Unpack[EncodeWords],
    ) -> bytes:
        """Returns the bytes of the latent file of one picture.

        Args:
            image: A picture of any kind that a `LoadedDenoiser` takes; of tensors, one of `[C,H,W]`.
            quality: 1 (the smallest files) to 100; None stands for 50, or for what a target asks for.
            options: `effort`, and the targets `target_bpp`, `target_psnr`, `target_ssimulacra2` and `max_bytes`, which
                stand in the place of a quality: see `process`.

        Raises:
            UsageError: The call is wrong.
            InputError: The picture can't be handled.
        """
        if isinstance(image, Tensor) and image.dim() == 4:
            raise UsageError("encode takes one picture, [C,H,W]: encode each of [N,C,H,W], or give them to process")
        _require_one(image, "compress")
        data: bytes = process_one(
            self._compress.with_options(_of(CompressOptions, {"quality": quality, **options})), image
        )
        return data

    @overload
    def decode(
        self, latent: bytes | memoryview | Name | BinaryIO, kind: Literal["pil"] = ..., **options: Unpack[DecodeWords]
    ) -> Image.Image: ...
    @overload
    def decode(
        self, latent: bytes | memoryview | Name | BinaryIO, kind: Literal["numpy"], **options: Unpack[DecodeWords]
    ) -> Array: ...
    @overload
    def decode(
        self, latent: bytes | memoryview | Name | BinaryIO, kind: Literal["tensor"], **options: Unpack[DecodeWords]
    ) -> Tensor: ...
    @overload
    def decode(
        self, latent: bytes | memoryview | Name | BinaryIO, kind: Literal["bytes"], **options: Unpack[DecodeWords]
    ) -> bytes: ...
    def decode(self, latent: Any, kind: Kind = "pil", **options: Unpack[DecodeWords]) -> Any:
        """Returns the picture of a latent file.

        Args:
            latent: The bytes of a latent file, its path, or an open file.
            kind: What comes back: "pil"; "numpy", `[H,W]`, `[H,W,3]` or `[H,W,4]`, uint8 or uint16; "tensor",
                `[C,H,W]`, float in [0,1]; "bytes" of an image file.
            options: `crop` and `scale`, for a part of the picture or a smaller copy, in the time and memory of that;
                `format` and `image_quality` of the image file: see `process`.

        Raises:
            UsageError: The call is wrong.
            InputError: The crop lies outside of the picture.
            InvalidLatent: These are not the bytes of a latent file, or they are damaged.
            WrongWeights: The file was made with other weights. The default codec finds those that the file names.
        """
        _require_one(latent, "decompress")
        return process_one(self._decompress.with_options(_of(DecompressOptions, {"kind": kind, **options})), latent)

    def round_trip(self, x: TensorLike, quality: int | None = None) -> TensorLike:
        """Returns what a tensor of pictures becomes when it is compressed and decompressed, without making files.

        `x` is `[C,H,W]` or `[N,C,H,W]`, C 1, 3 or 4, uint8 or float in [0,1]; the result has its shape, dtype, device
        and type. A fourth channel is alpha and stays as it is. Raises `UsageError`, `InputError`.
        """
        back: Any = self._compress.with_options(CompressOptions(quality)).round_trip(x)
        return back


Options = TypeVar("Options", CompressOptions, DecompressOptions, EncodingOptions)


def _of(options: type[Options], words: Mapping[str, Any]) -> Options:
    try:
        return options(**words)
    except TypeError as error:
        raise UsageError(f"an option is unknown or has the wrong type ({error})") from None


def _require_one(source: object, task: str) -> None:
    if not is_one(source) or (is_path(source) and os.path.isdir(source)):
        raise UsageError(
            f"a model that is held takes one picture at a time, not {_what(source)}; "
            f"aeimg.process(..., {task!r}) takes folders and iterables"
        )


def _what(source: object) -> str:
    return f"the folder {os.fspath(source)!r}" if is_path(source) else f"a {type(source).__name__}"


# -- loading -------------------------------------------------------------------------------------------------

Held = LoadedDenoiser | LoadedCodec | LoadedImageModel
"""A model to hold."""


@overload
def load(
    task_or_model: Literal["denoise"], *, device: str | torch.device = ..., dtype: str | torch.dtype = ...
) -> LoadedDenoiser: ...
@overload
def load(
    task_or_model: Literal["compress"], *, device: str | torch.device = ..., dtype: str | torch.dtype = ...
) -> LoadedCodec: ...
@overload
def load(
    task_or_model: Literal["upscale", "colorize"],
    *,
    device: str | torch.device = ...,
    dtype: str | torch.dtype = ...,
) -> LoadedImageModel: ...
@overload
def load(
    task_or_model: ImageTask, *, device: str | torch.device = ..., dtype: str | torch.dtype = ...
) -> LoadedDenoiser | LoadedImageModel: ...
@overload
def load(
    task_or_model: Name,
    *,
    task: Literal["denoise"],
    device: str | torch.device = ...,
    dtype: str | torch.dtype = ...,
) -> LoadedDenoiser: ...
@overload
def load(
    task_or_model: Name,
    *,
    task: Literal["compress"],
    device: str | torch.device = ...,
    dtype: str | torch.dtype = ...,
) -> LoadedCodec: ...
@overload
def load(
    task_or_model: Name,
    *,
    task: Literal["upscale", "colorize"],
    device: str | torch.device = ...,
    dtype: str | torch.dtype = ...,
) -> LoadedImageModel: ...
@overload
def load(
    task_or_model: Name, *, task: str | None = ..., device: str | torch.device = ..., dtype: str | torch.dtype = ...
) -> Held: ...
def load(
    task_or_model: Name | ImageTask,
    *,
    task: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> Held:
    """Returns a model to hold and to call often, on its device.

    The weights of a model are in memory once for each device, however often it is loaded, and stay as long as anybody
    holds it.

    Args:
        task_or_model: "denoise", "upscale", "colorize", "compress" or the name of a plug-in's task, or its `ImageTask`,
            for the default model of the task; or a model: a registered name, the label of built-in weights, a weights
            file, or `spandrel:FILE`.
        task: What the model must be for: it says so to type checkers, and is checked. A network of `spandrel:FILE`
            becomes a model for it.
        device: "auto", "cpu", "cuda", "cuda:1", "mps", or a `torch.device`.
        dtype: "auto", "fp32", "bf16", or a `torch.dtype`.

    Returns:
        A `LoadedDenoiser` or a `LoadedImageModel`, which is called with a picture, or a `LoadedCodec`, which has
        `encode` and `decode`.

    Raises:
        UsageError: The call is wrong, or the device is missing.
        ModelError: The model is unknown, broken, or for another task.
    """
    asked = task_or_model.name if isinstance(task_or_model, ImageTask) else task_or_model
    if not is_path(asked) or isinstance(asked, bytes):
        raise UsageError(
            f"load takes a task, the name of a model or a weights file, not a {type(asked).__name__}; "
            "aeimg.register(name, lambda: model, task=...) gives a model a name"
        )
    name = os.fspath(asked)
    if name in ("decompress", "features", "score"):
        raise UsageError(f"{name} is done by the models of compress: load('compress')")
    is_task = name == "compress" or declared.find(name) is not None
    found = name if is_task else _task_of(name, task)
    if task is not None and task != found:
        raise ModelError(f"{name!r} is for the task {found}, not for {task}")
    about = (None if is_task else _absolute(name), str(device), str(dtype).removeprefix("torch."))
    if found == "compress":
        return LoadedCodec(*about)
    return LoadedDenoiser(*about) if found == "denoise" else LoadedImageModel(found, *about)


def _task_of(model: str, task: str | None) -> str:
    """Returns the task of a model. A network that spandrel loads is for whichever image-to-image task is asked for."""
    if task not in (None, "compress") and model.startswith(registry.SPANDREL):
        return str(task)
    return registry.task_of(model)


def _absolute(name: str) -> str:
    """Returns the name of a model that stands for the same file in every folder, for pickles."""
    prefix = registry.SPANDREL if name.startswith(registry.SPANDREL) else ""
    if not prefix and not name.endswith(".safetensors"):
        return name
    return prefix + os.path.abspath(os.path.expanduser(name.removeprefix(prefix)))
