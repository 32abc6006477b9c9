"""Pillow reads and writes latent files, once this module is imported: `import aeimg.pillow`.

    Image.open("a.aei")                            # reads the header; the picture is decoded when it is needed
    image.save("a.aei", quality=60, effort=2)
    Image.open("a.aei").thumbnail((256, 256))      # decodes a smaller copy, as `aeimg decompress --scale` does it
    Image.open("a.aei").crop((0, 0, 512, 512))     # decodes that part alone

Everything that opens pictures with Pillow then takes latent files as well. A picture that Pillow has no mode for,
colour or alpha of 16 bits, opens as one of 8 bits, as Pillow does it with PNG; `info["bit_depth"]` says what the file
holds.
"""

from __future__ import annotations

import functools
import io
import os
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile

from . import container, metadata
from .errors import AeimgError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from .loaded import LoadedCodec

    Array = np.ndarray

FORMAT, SUFFIX, MIME = "AEI", ".aei", "image/x-aeimg"

SAVE_OPTIONS = ("quality", "effort", "target_bpp", "target_psnr", "target_ssimulacra2", "max_bytes")
"""What `Image.save` takes of the options of compress; others are passed over, as Pillow's own formats do it."""
INFO = ("icc_profile", "exif", "xmp", "dpi")
"""What `Image.save` takes in the place of what the picture's `info` holds."""

_runs_on = ("cpu", "auto")


def use(device: str = "cpu", dtype: str = "auto") -> None:
    """Sets where latent files are encoded and decoded, for all of this process; the default is the CPU, on which the
    workers of a `DataLoader` can run too. Raises `UsageError` for a device that is unknown or missing."""
    from .devices import pick_device, pick_dtype

    pick_dtype(dtype, pick_device(device))
    global _runs_on
    _runs_on = device, dtype


@functools.lru_cache(maxsize=4)
def _codec(device: str, dtype: str) -> LoadedCodec:
    from .loaded import load

    return load("compress", device=device, dtype=dtype)


class AeiImageFile(ImageFile.ImageFile):
    """A latent file that Pillow has opened."""

    format = FORMAT
    format_description = "latent file of aeimg"

    _coded = False
    """Whether the picture is coded, so that a part or a smaller copy of it can be decoded."""
    _divisor = 1
    """How many pixels in a row become one, after `draft`."""

    def _open(self) -> None:
        assert self.fp is not None
        try:
            head = container.read_head(self.fp, self._label)
            if isinstance(head, container.Stored):
                self._begin(*_stored(head.data, self._label))
            else:
                self._coded = True
                about, _ = metadata.sound(head.metadata)
                mode = ("L" if head.channels == 1 else "RGB") + ("" if head.alpha is None else "A")
                self._begin((head.width, head.height), "I;16" if (mode, head.depth) == ("L", 16) else mode, about)
                if head.depth != 8:
                    self.info["bit_depth"] = head.depth
        except AeimgError as error:
            raise OSError(str(error)) from error

    @property
    def _label(self) -> str:
        return os.fspath(self.filename) if self.filename else "the latent file"  # type: ignore[return-value]

    def _begin(self, size: tuple[int, int], mode: str, about: metadata.Metadata) -> None:
        self._size, self._mode = size, mode
        self.info.update(metadata.to_info(about))
        self.tile = [ImageFile._Tile("raw", (0, 0, *size), 0, mode)]

    def load(self) -> Any:
        """Decodes the picture, if that has not happened yet. Raises `OSError` where the file is damaged, or its weights
        are missing."""
        if self.tile and self.fp is not None:
            samples = self._decode(self._whole(), scale=1 / self._divisor)
            height, width = samples.shape[:2]
            deep = samples.dtype.itemsize == 2
            mode = "I;16" if deep else "L" if samples.ndim == 2 else {2: "LA", 3: "RGB", 4: "RGBA"}[samples.shape[2]]
            self._begin((width, height), mode, metadata.Metadata())
            if self._exclusive_fp:
                self.fp.close()
            self.fp = io.BytesIO(samples.tobytes())
        return super().load()

    @property
    def _waiting(self) -> bool:
        """Whether the picture is coded and not decoded yet."""
        return self._coded and bool(self.tile) and self.fp is not None

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """Makes the picture a smaller copy, of means of 2x2, 4x4 or 8x8 pixels, that is no smaller than `size`, as
        Pillow's JPEG does it; `thumbnail` calls this. Returns the mode and the box of the picture in that copy; None
        where nothing changes: the picture is stored or decoded already, or not twice as large."""
        if not (self._waiting and self._divisor == 1 and size is not None):
            return None
        room = min(have // max(1, wanted) for have, wanted in zip(self.size, size, strict=True))
        self._divisor = next(divisor for divisor in (8, 4, 2, 1) if divisor <= max(1, room))
        if self._divisor == 1:
            return None
        width, height = self.size
        small = (-(-width // self._divisor), -(-height // self._divisor))
        self._size = small
        self.tile = [ImageFile._Tile("raw", (0, 0, *small), 0, self.mode)]
        return self.mode, (0, 0, width / self._divisor, height / self._divisor)

    def crop(self, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        """Returns a part of the picture. While the picture is not decoded, only the part is. Raises `OSError` as `load`
        does."""
        whole = (0, 0, *self.size)
        left, top, right, bottom = (round(value) for value in (box or whole))
        inside = 0 <= left < right <= self.width and 0 <= top < bottom <= self.height
        if not (self._waiting and self._divisor == 1 and inside) or (left, top, right, bottom) == whole:
            return super().crop(box)
        samples = self._decode(self._whole(), crop=(left, top, right - left, bottom - top))
        return self._new(Image.fromarray(samples).im)

    def load_seek(self, pos: int) -> None:
        """Nothing has to be sought: the samples are all there is."""

    def verify(self) -> None:
        """Compares the file's checksum, and closes the file. Raises `OSError` where it is damaged."""
        try:
            container.read(self._whole(), self._label)
        except AeimgError as error:
            raise OSError(str(error)) from error
        super().verify()

    def _whole(self) -> bytes:
        if self.fp is None:
            raise ValueError("the file was closed")
        self.fp.seek(0)
        return self.fp.read(container.MAX_FILE)

    def _decode(self, data: bytes, **seen: Any) -> Array:
        """Returns the samples `[H,W]` or `[H,W,C]`, of 8 bits unless they are grey; `seen` is what `LoadedCodec.decode`
        takes as `crop` or `scale`."""
        from .pixels import to_eight_bits

        try:
            found = _codec(*_runs_on).decode(data, "numpy", **seen)
        except AeimgError as error:
            raise OSError(f"{self._label}: {error}") from error
        if found.dtype.itemsize == 2:
            self.info["bit_depth"] = 16
        return found if found.ndim == 2 else to_eight_bits(found)


def _stored(data: bytes, name: str) -> tuple[tuple[int, int], str, metadata.Metadata]:
    """Returns size, mode and metadata of a picture that is stored as an image file, upright, as `images` reads it."""
    from .images import open_image

    with open_image(io.BytesIO(data), name) as image:
        found = metadata.read(image, data)
        turned = found.orientation >= 5 and image.format != "TIFF"  # which Pillow turns itself
        clear = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
        grey = image.mode.startswith(("1", "L", "I"))
        mode = ("L" if grey else "RGB") + ("A" if clear else "")
        return (
            image.size[::-1] if turned else image.size,
            mode if image.mode[0] != "I" or clear else "I;16",
            found.metadata,
        )


# -- writing -------------------------------------------------------------------------------------------------


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    """Writes a picture, with what its `info` holds or the call names. Raises `OSError` where that can't be done,
    `UsageError`, which is a `ValueError`, for options out of range."""
    given = image.encoderinfo
    plain = image.copy()  # of several frames, the one that is shown
    for name in INFO:
        if name in given:
            value = given[name]
            plain.info[name] = value.tobytes() if isinstance(value, Image.Exif) else value
    try:
        data = _codec(*_runs_on).encode(plain, **{name: given[name] for name in SAVE_OPTIONS if name in given})
    except UsageError:
        raise
    except AeimgError as error:
        raise OSError(f"cannot write this picture as {FORMAT}: {error}") from error
    file.write(data)


def _accept(start: bytes) -> bool:
    return start.startswith(container.MAGIC)


Image.register_open(FORMAT, AeiImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, SUFFIX)
Image.register_mime(FORMAT, MIME)
