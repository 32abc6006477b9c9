"""What a model must do for each task, and what holds for a model that does not say so; and what a task states.

    Denoiser    pictures with noise -> pictures without
    Upscaler    pictures -> larger ones
    Colorizer   grey pictures -> planes of chroma
    ImageModel  pictures -> pictures, for a task of a plug-in
    Codec       pictures -> latents -> bytes, and back

    ImageTask   an image-to-image task, which the engine and the command line take from what it states

Each protocol states the default of every attribute that a model may leave out, once. `complete` checks what a model
states of itself and fills in the rest, when its weights are loaded or its factory has made it; everybody who gets a
model from `registry.get` may rely on every attribute of its protocol.

What only some codecs can do has protocols of its own (`PreparingCodec`, `FeatureEncoder`, `Reconstructor`,
`Generator`, `WindowCodec`), to be asked for by `isinstance`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload, runtime_checkable

from .errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from .tiles import Window

ModelTask = Literal["denoise", "compress", "upscale", "colorize"]
"""What a model is for. A codec serves the tasks compress, decompress, features and score."""

MODEL_TASKS: tuple[ModelTask, ...] = ("denoise", "compress", "upscale", "colorize")


# -- tasks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageTask:
    """An image-to-image task: a picture goes in, a picture comes out. `docs/plugins.md` shows one.

    Whoever registers it gets a command, `process()`, runs over files with a manifest, and `aeimg bench`. Raises
    `ModelError` for what can be no task.
    """

    name: str
    """How it is asked for: `aeimg run NAME`, `process(source, NAME)`. Lower-case letters, digits and hyphens."""
    summary: str
    """A sentence that says what it does, for the help: "Denoise the images in SOURCES into the folder OUT."."""
    options: type[Any]
    """Its options: a frozen dataclass that inherits from `tasks.options.EncodingOptions`, its fields made by
    `tasks.options.option`."""
    runner: str | type[Any]
    """What does it: a class that inherits from `tasks.image.ImageRunner`, or the place of one, "package.module:Class",
    which is imported when it is first needed."""
    scale: int | None = 1
    """How many times as wide and as high results are; None where each model states its own scale."""
    channels_in: int = 3
    """The channels of the pictures that it works on, 1 or 3. Grey pictures have three equal channels where it is 3;
    where it is 1, each channel of a colour picture is a picture of its own, or, if 3 channels come out, its luma goes
    in."""
    channels_out: int | None = None
    """The channels of its results, 1 or 3; None for as many as the source has."""
    needs_model: bool = True
    """Whether it runs a model, one that is registered for it."""
    model: str | None = None
    """The name of the model that runs where none is named."""
    hint: str = ""
    """What to do where there is no such model, for the error."""

    def __post_init__(self) -> None:
        named = f"the task {self.name!r:.99}"
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", self.name):
            raise ModelError(f"{named}: its name must consist of lower-case letters, digits and hyphens")
        if not isinstance(self.options, type) or not is_dataclass(self.options):
            raise ModelError(f"{named}: its options must be a dataclass, not {self.options!r:.99}")
        if self.scale is not None and not _is_whole(self.scale, 1):
            raise ModelError(f"{named} states the scale {self.scale!r}; it must be a whole number, or None")
        if self.channels_in not in (1, 3) or self.channels_out not in (None, 1, 3):
            raise ModelError(
                f"{named} states {self.channels_in!r} channels in and {self.channels_out!r} out, not 1 or 3"
            )

    @property
    def runner_class(self) -> type[Any]:
        """The class of `runner`. Raises `ModelError` where it can't be imported."""
        if isinstance(self.runner, type):
            return self.runner
        module, _, name = str(self.runner).partition(":")
        try:
            found: type[Any] = getattr(importlib.import_module(module), name)
        except Exception as error:  # a fault of a plug-in must stay in the plug-in
            raise ModelError(f"the task {self.name!r}: its runner can't be imported ({error!r})") from error
        return found


# -- models ----------------------------------------------------------------------------------------------------------


class Model(Protocol):
    """What every model states of itself."""

    label: str = ""
    """The model's name and version: `aeimg-denoise-5`. The default is the name of its class."""
    digest: bytes = b""
    """A few bytes of a hash of the weights, 8 for a codec. They distinguish one set of weights from another."""
    multiple: int = 1
    """Height and width of what the model gets are multiples of this many pixels; pictures are padded to them."""


class Network(Model, Protocol):
    """What every model states that pictures are run through in batches and tiles."""

    channels: int = 3
    """3, or 1 for a model that gets each channel as a picture of its own."""
    halo: int | None = None
    """How far from a pixel the input still affects it, in pixels. None means everywhere, so that pictures are never cut
    into tiles."""
    dtypes: tuple[torch.dtype, ...] | None = None
    """The precisions in which the model is safe, torch.float32 among them. The model runs in fp32 where another one is
    asked for. None means all."""


class ImageModel(Network, Protocol):
    """What a model of a plug-in's task must do, where the task does not say otherwise."""

    scale: int = 1
    """How many times as wide and as high as the picture the result is."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Turns pictures `[N,channels,H,W]`, float in [0,1], into pictures `[N,channels,scale*H,scale*W]`."""
        ...


class Upscaler(ImageModel, Protocol):
    """What a model of the task "upscale" must do: an `ImageModel` whose scale is 2 or more."""

    scale: int = 2
    """How many times as wide and as high as the picture the result is."""


class Colorizer(Network, Protocol):
    """What a model of the task "colorize" must do."""

    channels: int = 1
    """1: it gets luma."""
    side: int = 320
    """The shorter side, in pixels, to which pictures are reduced for it; smaller ones stay as they are."""

    def __call__(self, luma: Tensor, /) -> Tensor:
        """Turns luma `[N,1,H,W]`, float in [0,1], into the planes Cb and Cr of BT.601 `[N,2,H,W]`, in [-0.5,0.5]."""
        ...


class Denoiser(Network, Protocol):
    """What a model of the task "denoise" must do."""

    blind: bool = False
    """Whether the model ignores `sigma`."""
    takes_grey: bool = False
    """Whether the model has learned from grey noise in three equal channels. To the others, grey noise is announced as
    sqrt(3) times its level, which is the level of colour noise of the same power."""

    takes_map: bool = False
    """Whether `sigma` may also be a map `[N,1,H,W]`: a level for each pixel."""

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor:
        """Returns the clean pictures, `[N,channels,H,W]`.

        `x` `[N,channels,H,W]` is float in [0,1]; `sigma` `[N]` is the level of the noise in 8-bit units.
        """
        ...


Latent = TypeVar("Latent")
"""What a codec makes of a picture and writes as bytes; each codec has a type of its own."""
Prepared = TypeVar("Prepared", covariant=True)
"""What a codec makes of pictures before it knows the quality."""


class Codec(Model, Protocol[Latent]):
    """What a model of the task "compress" must do.

    Pixels are `[N,C,H,W]`, C 1 or 3: uint8, uint16, or float in [0,1]; quality is 1..100. A codec must state its
    `label` and its `digest` of 8 bytes: a latent file names them.
    """

    errors: np.ndarray | None = None
    """Percentiles 0..100 of the mean squared errors at which the training images came back, pixels in [0,1]."""

    def encode(
        self, x: Tensor, quality: int, device: torch.device, dtype: torch.dtype, effort: int
    ) -> Sequence[Latent]:
        """Turns pixels on the CPU into the latent of each picture; a higher `effort`, 1..9, makes it smaller."""
        ...

    def to_bytes(self, latent: Latent, quality: int) -> bytes:
        """Turns a latent into its bytes, which hold a checksum of the latent."""
        ...

    def from_bytes(self, data: bytes, width: int, height: int, quality: int) -> Latent:
        """Mirrors `to_bytes`. Raises `InvalidLatent` for damaged data."""
        ...

    def decode(self, latents: list[Latent], shape: tuple[int, int, int], quality: int, device: torch.device,
               dtype: torch.dtype, depth: int) -> Tensor:  # fmt: skip
        """Turns latents of pictures of one shape `(C, H, W)` into pixels on the CPU: uint8 or uint16 for `depth` 8 or
        16."""
        ...


@runtime_checkable
class PreparingCodec(Protocol[Prepared]):
    """A codec that can do the part of its analysis that does not depend on the quality once for several qualities."""

    def prepare(self, x: Tensor, device: torch.device, dtype: torch.dtype) -> Prepared:
        """Turns pixels into what `encode` takes in their place."""
        ...


@runtime_checkable
class WindowCodec(Protocol):
    """A codec that decodes a part of a picture, or a smaller copy, in less time and memory than the whole picture."""

    def from_bytes_within(self, data: bytes, window: Window, quality: int) -> Sequence[object]:
        """Does what `from_bytes` does, for what `window` needs."""
        ...

    def decode_within(self, latents: list[Any], channels: int, window: Window, quality: int, device: torch.device,
                      dtype: torch.dtype, depth: int) -> Tensor:  # fmt: skip
        """Turns what `from_bytes_within` has made into pixels `[N,C,h,w]` on the CPU: in a part, those of `decode`."""
        ...


@runtime_checkable
class FeatureEncoder(Protocol):
    """A codec whose encoder describes a picture by a vector."""

    def features(self, x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Turns pixels `[N,C,H,W]` into vectors `[N,D]`."""
        ...


@runtime_checkable
class Reconstructor(Protocol):
    """A codec that can bring pictures back without rounding their codes."""

    def reconstruct(self, x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Turns pixels `[N,C,H,W]` into what comes back of them: float, on the CPU."""
        ...


@runtime_checkable
class Generator(Protocol):
    """A codec whose codes can be drawn at random and mixed."""

    label: str

    @property
    def own_side(self) -> int | None:
        """The side of the blocks that the network sees, in pixels; None where it takes any."""
        ...

    def code_shape(self, side: int) -> tuple[int, ...]:
        """The shape of the code of one block of that side."""
        ...

    def analyse(self, x: Tensor, device: torch.device) -> Tensor:
        """Turns pixels `[N,C,H,W]` into the codes of their blocks, `[N,C*blocks,D,...]`, float, on the CPU."""
        ...

    def synthesise(
        self, codes: Tensor, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Mirrors `analyse`: pixels `[N,C,H,W]` of `dtype`, on the CPU; `shape` is their `(C,H,W)`."""
        ...

    def draw(self, count: int, side: int, generator: torch.Generator) -> Tensor:
        """Draws the random codes of `count` pictures of `side` pixels a side."""
        ...

    def from_normal(self, noise: Tensor) -> Tensor:
        """Turns standard normal values into codes that are distributed as those of the training images."""
        ...


PROTOCOLS: dict[str, type] = {"denoise": Denoiser, "compress": Codec, "upscale": Upscaler, "colorize": Colorizer}
"""Task -> what its models must do; those of plug-ins' tasks are `ImageModel`s."""
CODEC_METHODS = ("encode", "to_bytes", "from_bytes", "decode")


def defaults(task: str) -> dict[str, object]:
    """Returns what holds where a model of `task` does not state an attribute, by the attribute's name."""
    classes = [one for one in reversed(PROTOCOLS.get(task, ImageModel).__mro__) if one.__module__ == __name__]
    return {name: vars(one)[name] for one in classes for name in one.__annotations__ if name in vars(one)}


@overload
def complete(model: object, task: Literal["denoise"]) -> Denoiser: ...
@overload
def complete(model: object, task: Literal["compress"]) -> Codec[object]: ...
@overload
def complete(model: object, task: Literal["upscale"]) -> Upscaler: ...
@overload
def complete(model: object, task: Literal["colorize"]) -> Colorizer: ...
@overload
def complete(model: object, task: str) -> Model: ...
def complete(model: object, task: str) -> object:
    """Returns `model` with every attribute of its protocol. Raises `ModelError` that lists what it states wrongly."""
    faults = list(_faults(model, task))
    if faults:
        raise ModelError("; ".join(faults))
    missing = {name: value for name, value in defaults(task).items() if not hasattr(model, name)}
    if not getattr(model, "label", ""):
        missing["label"] = type(model).__name__
    try:
        for name, value in missing.items():
            setattr(model, name, value)
    except AttributeError as error:
        raise ModelError(f"does not state {', '.join(missing)}, and can't be given attributes ({error})") from error
    return model


def _faults(model: object, task: str) -> Iterator[str]:
    """Yields what is wrong with what a model states of itself."""
    stated = {name: getattr(model, name, value) for name, value in defaults(task).items()}
    if not _is_whole(stated["multiple"], 1):
        yield f"states the multiple {stated['multiple']!r}; it must be a whole number of 1 or more"
    label, digest = stated["label"], stated["digest"]
    if not isinstance(label, str) or not isinstance(digest, bytes):
        yield f"states the label {label!r} and the digest {digest!r}; they must be a str and bytes"
    elif task == "compress":
        required = [*(name for name in ("label", "digest") if not hasattr(model, name)),
                    *(name for name in CODEC_METHODS if not hasattr(model, name))]  # fmt: skip
        if required:
            yield f"has no {', '.join(required)}, which a codec must have"
        elif len(digest) != 8:
            yield f"states a digest of {len(digest)} bytes; a codec's must have 8"
    if task != "compress":
        yield from _network_faults(model, stated, task)


def _network_faults(model: object, stated: Mapping[str, object], task: str) -> Iterator[str]:
    import torch

    if not callable(model):
        kind = {"denoise": "denoiser", "upscale": "upscaler", "colorize": "colorizer"}.get(task, f"model for {task}")
        yield f"can't be called, which a {kind} must"
    if task == "colorize" and (stated["channels"] != 1 or not _is_whole(stated["side"], 1)):
        yield f"states {stated['channels']!r} channels and the side {stated['side']!r}; it must be 1, and 1 or more"
    elif stated["channels"] not in (1, 3):
        yield f"states {stated['channels']!r} channels; it must be 3, or 1 for each by itself"
    least = 2 if task == "upscale" else 1
    if "scale" in stated and not _is_whole(stated["scale"], least):
        yield f"states the scale {stated['scale']!r}; it must be a whole number of {least} or more"
    if stated["halo"] is not None and not _is_whole(stated["halo"], 0):
        yield f"states the halo {stated['halo']!r}; it must be a whole number of pixels, or None"
    dtypes = stated["dtypes"]
    if dtypes is not None and not (isinstance(dtypes, Container) and torch.float32 in dtypes):
        yield f"states the dtypes {dtypes!r}; torch.float32 must be among them"


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and value >= least
