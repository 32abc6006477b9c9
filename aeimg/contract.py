"""What a model must do for each task, and what holds for a model that does not say so.

    Denoiser    pictures with noise -> pictures without
    Codec       pictures -> latents -> bytes, and back

Each protocol states the default of every attribute that a model may leave out, once. `complete` checks what a model
states of itself and fills in the rest, when its weights are loaded or its factory has made it; everybody who gets a
model from `registry.get` may rely on every attribute of its protocol.

What only some codecs can do has protocols of its own (`PreparingCodec`, `FeatureEncoder`, `Reconstructor`,
`Generator`), to be asked for by `isinstance`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, overload, runtime_checkable

from .errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

ModelTask = Literal["denoise", "compress"]
"""What a model is for. A codec serves the tasks compress, decompress, features and score."""

MODEL_TASKS: tuple[ModelTask, ...] = ("denoise", "compress")


class Model(Protocol):
    """What every model states of itself."""

    label: str = ""
    """The model's name and version: `aeimg-denoise-5`. The default is the name of its class."""
    digest: bytes = b""
    """A few bytes of a hash of the weights, 8 for a codec. They distinguish one set of weights from another."""
    multiple: int = 1
    """Height and width of what the model gets are multiples of this many pixels; pictures are padded to them."""


class Denoiser(Model, Protocol):
    """What a model of the task "denoise" must do."""

    channels: int = 3
    """3, or 1 for a model that gets each channel as a picture of its own."""
    halo: int | None = None
    """How far from a pixel the input still affects it, in pixels. None means everywhere, so that pictures are never cut
    into tiles."""
    dtypes: tuple[torch.dtype, ...] | None = None
    """The precisions in which the model is safe, torch.float32 among them. The model runs in fp32 where another one is
    asked for. None means all."""
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


PROTOCOLS: dict[str, type] = {"denoise": Denoiser, "compress": Codec}
CODEC_METHODS = ("encode", "to_bytes", "from_bytes", "decode")


def defaults(task: str) -> dict[str, object]:
    """Returns what holds where a model of `task` does not state an attribute, by the attribute's name."""
    classes = [one for one in reversed(PROTOCOLS[task].__mro__) if one.__module__ == __name__]
    return {name: vars(one)[name] for one in classes for name in one.__annotations__ if name in vars(one)}


@overload
def complete(model: object, task: Literal["denoise"]) -> Denoiser: ...
@overload
def complete(model: object, task: Literal["compress"]) -> Codec[object]: ...
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
    if task == "denoise":
        yield from _denoiser_faults(model, stated)


def _denoiser_faults(model: object, stated: Mapping[str, object]) -> Iterator[str]:
    import torch

    if not callable(model):
        yield "can't be called, which a denoiser must"
    if stated["channels"] not in (1, 3):
        yield f"states {stated['channels']!r} channels; it must be 3, or 1 for each by itself"
    if stated["halo"] is not None and not _is_whole(stated["halo"], 0):
        yield f"states the halo {stated['halo']!r}; it must be a whole number of pixels, or None"
    dtypes = stated["dtypes"]
    if dtypes is not None and not (isinstance(dtypes, Container) and torch.float32 in dtypes):
        yield f"states the dtypes {dtypes!r}; torch.float32 must be among them"


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and value >= least
