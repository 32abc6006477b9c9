"""Image-to-image tasks: what all of them do, so that each says only what is its own.

prepare   reads the picture
run       a batch through `apply`, in tiles where the model states its halo
finish    gives the picture back, with its alpha and its metadata

A task is a `contract.ImageTask`, and what does it inherits from `ImageRunner`; `docs/plugins.md` writes one.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .. import metadata, registry
from ..contract import ImageTask, Network, complete
from ..errors import InputError, ModelError, UsageError
from ..images import Picture, pixel_limit
from ..manifest import digest
from ..pixels import as_float, as_pixels, check_tensor, like_tensor, luma, mirror, padded, peak
from ..stream import BATCH_WORK, out_of_memory
from ..tiles import run_tiled
from .options import EncodingOptions
from .pictures import COPIES, Delivered, PictureItem, Result, batch_key, deliver, estimate, open_checked, stacked

Array = np.ndarray

log = logging.getLogger("aeimg")

TILE = 1504
"""The side of the tiles of large images, before the halo, in pixels of the larger side of the network."""
SMALLEST_TILE = 256
"""The side below which tiles are not halved where memory does not suffice, in pixels."""


@dataclass(frozen=True)
class Evaluation:
    """How a task is evaluated: its input is made of a good picture, and its result is compared with that."""

    degrade: Callable[[Array, int], Array]
    """Makes the input, uint8 `[H,W,3]` or `[H,W]`, of a good picture, uint8 `[H,W,3]`, and the reduction."""
    metrics: Mapping[str, Callable[[Array, Array], float]]
    """Name, with its unit -> what compares the good picture and a result, both uint8 `[H,W,3]`."""
    baselines: Mapping[str, Callable[[Array, int], Array]] = field(default_factory=dict)
    """Name -> what makes a result of an input and the reduction without any network, to stand beside the task's."""
    reduction: Callable[[ImageRunner], int] = lambda runner: 1
    """How many times smaller inputs are than good pictures, whose sides are cut to multiples of it."""
    of_originals: tuple[str, ...] = ()
    """Those of the metrics that say something of the good pictures themselves."""


@dataclass(frozen=True)
class ImageItem(PictureItem):
    """A picture on its way through a task."""

    scale: int = 1
    """How many times as wide and as high the result is."""
    channels: int | None = None
    """The channels of the result; None for as many as the picture has."""

    @property
    def work(self) -> int:
        """The number of pixels of the result."""
        return super().work * self.scale**2

    @property
    def nbytes(self) -> int:
        """The bytes in memory, at most; see `grown`."""
        growth = self.scale**2 * max(1, (self.channels or 1) // len(self.picture.pixels))
        return grown(super().nbytes, growth)


def grown(nbytes: int, growth: int) -> int:
    """Returns how many bytes a picture holds on its way that would hold `nbytes` if its result had as many samples, and
    whose result has `growth` times as many: half of the copies are the result's."""
    return nbytes + nbytes * COPIES // 2 * (growth - 1) // COPIES


@dataclass(frozen=True, kw_only=True)
class ImageResult(Result[Delivered]):
    """A picture."""

    task: str
    """The name of the task."""
    model: str | None
    """The label of the model; None for a task without."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else the summary says of it."""

    def figures(self) -> dict[str, Any]:
        return {**({} if self.model is None else {"model": self.model}), **self.more}

    def sentence(self) -> str:
        by = self.task if self.model is None else f"{self.task} by {self.model}"
        more = [f", {name.replace('_', ' ')} {value}" for name, value in self.more.items()]
        return "".join([f"{self.width}x{self.height}, {by}", *more])


class ImageRunner:
    """What does an image-to-image task: `apply` is what a task must say, the rest it may. See `stream.Task`.

    Raises `ModelError` where the task needs a model and none is named, registered as its default, or for it.
    """

    small = False
    evaluation: ClassVar[Evaluation | None] = None
    """How it is evaluated, by `aeimg bench TASK`; None where it is not."""

    def __init__(
        self,
        task: ImageTask,
        model: str | os.PathLike[str] | None,
        device: torch.device,
        dtype: torch.dtype,
        options: EncodingOptions,
    ) -> None:
        self.task, self.asked, self.device, self.dtype, self.options = task, model, device, dtype, options
        self.tile = TILE
        if model is not None and not task.needs_model:
            raise UsageError(f"{task.name} works without a model: leave --model out")
        self.network = self._load()

    def with_options(self, options: Any) -> Self:
        """Returns the same task with other options. It shares the model: so a model that is held gets the options of
        each call, and what follows from options is found out when it is needed, not in `__init__`."""
        other = copy.copy(self)
        other.options = options
        return other

    def models(self) -> list[tuple[str, str]]:
        """Returns label and digest of every model that a picture may get; none for a task without a model."""
        return [registry.identity(self.asked, self.task.name, self.device)] if self.task.needs_model else []

    def _load(self) -> Any:
        """Returns the model; for a task without, one that changes nothing."""
        task = self.task
        if not task.needs_model:
            return complete(_Unchanged(), task.name)
        if self.asked is None and registry.default_model(task.name) is None:
            raise ModelError(f"no model for the task {task.name} ships yet: {task.hint or 'name one by --model'}")
        network = registry.get(self.asked, task.name, self.device)
        if hasattr(network, "scale") and task.scale not in (None, network.scale):
            raise ModelError(
                f"model {network.label}: enlarges {network.scale} times, where {task.name} asks for {task.scale}"
            )
        return network

    @property
    def scale(self) -> int:
        """How many times as wide and as high results are."""
        return int(self.network.scale) if self.task.scale is None else self.task.scale

    def recipe(self) -> str:
        """Returns what is equal for runs that make the same of the same input: by model and options."""
        named = self.task.needs_model
        model = registry.identity(self.asked, self.task.name, self.device) if named else None
        about = [self.task.name, model, asdict(self.options), str(self.dtype)]
        return digest(json.dumps(about, sort_keys=True, default=str).encode())

    # -- the three steps ---------------------------------------------------------------------------------------

    def estimate(self, source: object) -> int:
        """Returns how many bytes a picture will hold, by its header."""
        return grown(estimate(source), self.scale**2 * (self.task.channels_out or 1))

    def prepare(self, source: object) -> ImageItem:
        """Reads a picture. Raises `InputError` where the result would be larger than what aeimg reads."""
        item = ImageItem(open_checked(source, self.options.page), self.scale, self.task.channels_out)
        if item.work > pixel_limit():
            raise InputError(
                f"{item.label}: the result would have {item.work / 1e6:.0f} megapixels, more than the "
                f"{pixel_limit() / 1e6:.0f} that aeimg reads"
            )
        return item

    def key(self, item: ImageItem) -> Hashable:
        """Returns channels, depth and padded size."""
        return batch_key(item.picture, self.multiple)

    def run(self, items: list[ImageItem]) -> list[Array]:
        """Returns the pixels `[C,H,W]` of each result, in the depth of the picture."""
        x = stacked(items, self.multiple, mirrored=True)
        alone, tileable = len(items) == 1, self.halo is not None
        made = self.in_tiles(lambda: self.run_batch(x), alone=alone, tileable=tileable).numpy()
        sizes = [(self.scale * item.picture.height, self.scale * item.picture.width) for item in items]
        return [y[:, :height, :width] for y, (height, width) in zip(made, sizes, strict=True)]

    def apply(self, x: Tensor) -> Tensor:
        """Turns pictures `[N,channels,H,W]`, float in [0,1] and on the device, into results
        `[N,channels,scale*H,scale*W]`. Here: runs the model."""
        made: Tensor = self.network(x)
        return made

    def finish(self, item: ImageItem, raw: Array) -> ImageResult:
        """Gives the result back, with the picture's alpha and metadata."""
        picture = item.picture
        made = with_pixels(picture, raw)
        return ImageResult(
            value=deliver(made, item.opened, self.options),
            width=made.width,
            height=made.height,
            warnings=made.notes,
            task=self.task.name,
            model=self.network.label if self.task.needs_model else None,
            more=self.figures_of(item, raw),
        )

    def figures_of(self, item: ImageItem, raw: Array) -> dict[str, Any]:
        """Returns what the summary says of a result, beside its size and its model: numbers and text. Here: nothing."""
        return {}

    def empty(self, like: Tensor) -> Tensor:
        """Returns the results of no pictures at all, for a tensor `[0,C,H,W]`."""
        channels = self.task.channels_out or like.shape[1]
        return like.new_empty(0, channels, self.scale * like.shape[2], self.scale * like.shape[3])

    # -- tensors -----------------------------------------------------------------------------------------------

    def tensors(self, x: Tensor, batch_size: int = 8) -> Tensor:
        """Returns what the task makes of the pictures `x`, `[C,H,W]` or `[N,C,H,W]`, C 1, 3 or 4, uint8 or float in
        [0,1].

        The result has the dtype, device and type of `x`, and no gradients. A fourth channel is alpha, which is resized
        as the picture is. What is on another device than the CPU is never copied to the CPU, unless the task has a
        `prepare`, `run` or `finish` of its own, but no `on_device`. Raises `UsageError`, `InputError`, `ModelError`.
        """
        check_tensor(x)
        if x.device.type not in ("cpu", self.device.type):
            raise UsageError(f"the tensor is on {x.device} and the model on {self.device}; move one of them with .to()")
        with torch.no_grad():
            plain = x.detach().as_subclass(Tensor)
            batch = plain if plain.dim() == 4 else plain[None]
            pixels, alpha = (batch[:, :3], batch[:, 3:]) if batch.shape[1] == 4 else (batch, None)
            if not len(batch):
                made = self.empty(pixels)
            elif self._steps_are_own():
                made = torch.stack([self._by_steps(one) for one in pixels])
            else:
                pixels = pixels if pixels.dtype in (torch.uint8, torch.float32) else pixels.float()
                room = BATCH_WORK // max(1, pixels[0, 0].numel() * self.scale**2)
                parts = pixels.split(max(1, min(batch_size, room)))
                made = torch.cat([self._halved(part).to(plain.dtype) for part in parts])
            if alpha is not None:
                made = torch.cat([made, resized_alpha(alpha, *made.shape[2:])], 1)
        return like_tensor(made if plain.dim() == 4 else made[0], x)

    def on_device(self, x: Tensor) -> Tensor:
        """Returns the results of pictures `[N,C,H,W]` of one size, uint8 or float32, in their dtype, where they are.
        Here: what `run` does. A task with a `run` or a `finish` of its own may say here what they do to tensors."""
        height, width = x.shape[2:]
        whole = mirror(x, padded(height, self.multiple), padded(width, self.multiple))
        alone, tileable = len(x) == 1, self.halo is not None
        made = self.in_tiles(lambda: self.run_batch(whole), alone=alone, tileable=tileable)
        return made[:, :, : self.scale * height, : self.scale * width]

    def _halved(self, x: Tensor) -> Tensor:
        """Returns `on_device` of a batch; where memory does not suffice for it, in halves."""
        try:
            return self.on_device(x)
        except Exception as error:
            if len(x) == 1 or not out_of_memory(error):
                raise
        return torch.cat([self._halved(part) for part in x.tensor_split(2)])

    def _steps_are_own(self) -> bool:
        """Whether the class has changed what the steps do, but does not say what that is for tensors."""
        kind, own = type(self), ImageRunner
        changed = (kind.prepare, kind.run, kind.finish) != (own.prepare, own.run, own.finish)
        return changed and kind.on_device is own.on_device

    def _by_steps(self, x: Tensor) -> Tensor:
        """Returns what the steps make of one picture `[C,H,W]`, which they take to the CPU."""
        item = self.prepare(x)
        (raw,) = self.run([item])
        made = self.finish(item, raw).value
        assert isinstance(made, Tensor)
        return made

    # -- in batches and tiles ------------------------------------------------------------------------------------

    @property
    def multiple(self) -> int:
        """What height and width of a batch are multiples of."""
        return int(self.network.multiple)

    @property
    def halo(self) -> int | None:
        """How far from a pixel the input still affects it; None where pictures must go through whole. Of a task without
        a model, here: everywhere."""
        halo: int | None = self.network.halo
        return halo

    def run_batch(self, x: Tensor) -> Tensor:
        """Runs a batch, pixels `[N,C,H,W]` on the CPU, through `apply`."""
        return self.once(x, scale=self.scale)

    def once(self, x: Tensor, *, scale: int) -> Tensor:
        """Runs a batch through `apply`, which enlarges it `scale` times, in tiles."""
        task, network = self.task, self.network
        into, out = network.channels if task.needs_model else task.channels_in, task.channels_out
        apart = into == 1 and out is None
        expected = out or (1 if apart else into)
        return run_in_tiles(
            Applied(self.apply, network.label if task.needs_model else task.name, into, expected, scale, apart=apart),
            x, device=self.device, dtype=safe_dtype(self.network, self.dtype), tile=self.tile, halo=self.halo,
            multiple=self.multiple,
        )  # fmt: skip

    def in_tiles(self, run: Callable[[], Tensor], *, alone: bool, tileable: bool) -> Tensor:
        """Returns what `run` makes of a batch in tiles of `self.tile`; where memory does not suffice for a picture that
        is `alone` and `tileable`, in tiles of half the side from there on. Raises `InputError`."""
        while True:
            try:
                return run()
            except Exception as error:
                if not (alone and out_of_memory(error)):
                    raise  # the stream tries a batch again in halves
                if self.tile <= SMALLEST_TILE or not tileable:
                    raise InputError(f"memory does not suffice, not even in tiles of {self.tile} pixels") from error
                self.tile //= 2
                log.info("memory does not suffice: going on in tiles of %d pixels", self.tile)


def with_pixels(picture: Picture, pixels: Array) -> Picture:
    """`picture` with other pixels `[C,H,W]`, perhaps of another size or with colours: alpha is resized, and metadata
    that would no longer be true changed or left out, which the notes say."""
    height, width = pixels.shape[1:]
    notes, about, alpha = list(picture.notes), picture.metadata, picture.alpha
    if (height, width) != (picture.height, picture.width):
        about = metadata.with_size(about, width, height)
        alpha = None if alpha is None else resized_plane(alpha, height, width)
    if len(pixels) != len(picture.pixels) and about.icc is not None:
        about = replace(about, icc=None)
        notes.append("its colour profile was left out: it is for other channels")
    return replace(picture, pixels=pixels, alpha=alpha, metadata=about, notes=tuple(notes))


def resized_plane(plane: Array, height: int, width: int) -> Array:
    """A plane `[H,W]` of any depth, resized by cubic convolution (Keys 1981, a = -0.5), rounded and clipped."""
    made = np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    made = np.clip(made, 0, peak(plane.dtype))
    return (np.rint(made) if plane.dtype != np.float32 else made).astype(plane.dtype)


def resized_alpha(alpha: Tensor, height: int, width: int) -> Tensor:
    """What `resized_plane` does, of planes `[N,1,H,W]`, uint8 or float, on their device."""
    if alpha.shape[2:] == (height, width) or not len(alpha):
        return alpha if len(alpha) else alpha.new_empty(0, 1, height, width)
    made = F.interpolate(as_float(alpha), (height, width), mode="bicubic", antialias=True, align_corners=False)
    return as_pixels(made.clamp(0, 1), alpha.dtype, alpha.device).to(alpha.dtype)


# -- a batch through a network -------------------------------------------------------------------------------


def safe_dtype(model: Network, dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or fp32 where the model is not safe in it."""
    return dtype if model.dtypes is None or dtype in model.dtypes else torch.float32


class _Unchanged:
    """What stands in the place of a model, for tasks without one."""

    def __call__(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Applied:
    """What a batch goes through, and how its channels meet those of the pictures."""

    apply: Callable[..., Tensor]
    """Turns `[N,into,H,W]`, and the part of each of the `maps`, into `[N,out,scale*H,scale*W]`, floats."""
    label: str
    """The model's label, for messages."""
    into: int
    """The channels that it gets, 1 or 3."""
    out: int
    """The channels that it must give."""
    scale: int = 1
    """How many times as wide and high its results are."""
    apart: bool = False
    """Whether each channel is a picture of its own."""
    strengths: tuple[float, float] = (1.0, 1.0)
    """How much of the difference between picture and result, of one shape, is applied to luma and to chroma (Cb and Cr
    of BT.601); of a grey picture, only the first counts."""
    maps: tuple[Tensor, ...] = ()
    """What belongs to each pixel beside its colour, `[N,...,H,W]` on the device: it is cut and continued as the
    pictures are."""

    def shown(self, x: Tensor) -> Tensor:
        """The pictures `[N,C,H,W]` with the channels that `apply` gets."""
        if self.apart:
            return x.reshape(-1, 1, *x.shape[2:])
        if self.into == 1 and x.shape[1] == 3:
            return luma(x)
        return x.expand(-1, self.into, -1, -1)

    def given_back(self, made: Tensor, x: Tensor) -> Tensor:
        """The results with the channels that the pictures `x` are to have: grey pictures stay grey, unless others are
        what the task is for."""
        if self.apart:
            made = made.reshape(*x.shape[:2], *made.shape[2:])
        elif x.shape[1] == 1 and self.into == self.out == 3:
            made = made.mean(1, keepdim=True)
        of_luma, of_chroma = self.strengths
        if of_luma == of_chroma or x.shape[1] == 1:
            return made if of_luma == 1 else x + of_luma * (made - x)
        taken = made - x
        grey = luma(taken)
        return x + of_luma * grey + of_chroma * (taken - grey)  # what is left beside luma is that of Cb and Cr


@torch.inference_mode()
def run_in_tiles(
    through: Applied, x: Tensor, *, device: torch.device, dtype: torch.dtype, tile: int, halo: int | None, multiple: int
) -> Tensor:
    """Runs a batch of one size, pixels `[N,C,H,W]`, uint8, uint16 or float; returns results of that dtype, where the
    pixels are.

    Pictures larger than `tile` pixels, of the finer of input and result, are cut into tiles, if the halo is known, and
    only one tile is ever on the device, or in memory as floats. A tile whose result is not finite is computed again in
    fp32. Raises `InputError` where that does not help, `ModelError` where the result has another shape.
    """

    def run(part: Tensor, *maps: Tensor) -> Tensor:
        arriving = device.type == "cuda" and part.device.type == "cpu"
        if arriving:  # from pinned memory the copy does not hold up this thread
            part = part.contiguous().pin_memory()
        source = as_float(part.to(device, non_blocking=arriving))
        height, width = source.shape[2:]
        shown = through.shown(source)
        whole, *besides = (mirror(one, padded(height, multiple), padded(width, multiple)) for one in (shown, *maps))
        made = finite_result(through, whole.contiguous(memory_format=torch.channels_last), dtype, *besides)
        made = made[:, :, : through.scale * height, : through.scale * width]
        return as_pixels(through.given_back(made, source), x.dtype, x.device)

    side = padded(max(1, tile // through.scale) if halo is not None else max(x.shape[2:]), multiple)
    return run_tiled(run, x, side, padded(halo or 0, multiple), *through.maps, scale=through.scale)


def finite_result(through: Applied, x: Tensor, dtype: torch.dtype, *maps: Tensor) -> Tensor:
    """Returns what `through` makes of `x`, and of the same part of its maps, in `dtype`, or in fp32 where that is not
    finite."""
    expected = (x.shape[0], through.out, through.scale * x.shape[2], through.scale * x.shape[3])
    for precision in dict.fromkeys((dtype, torch.float32)):
        with torch.autocast(x.device.type, precision, enabled=precision != torch.float32):
            made = through.apply(x, *maps)
        if not isinstance(made, Tensor) or made.shape != expected:  # it might broadcast, or be cut to fit
            what = list(made.shape) if isinstance(made, Tensor) else f"a {type(made).__name__}"
            wanted = "a tensor of the same shape" if expected == x.shape else f"a tensor of shape {list(expected)}"
            raise ModelError(f"model {through.label}: made {what} of {list(x.shape)}; it must give back {wanted}")
        made = made.float()
        if bool(torch.isfinite(made.sum())):  # a sum holds whatever is not finite, and takes no memory
            return made
    raise InputError("the model's result is not finite, not even in fp32; the picture may hold such values")
