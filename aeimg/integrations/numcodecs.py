"""Images for libraries that use numcodecs, such as Zarr 2: `compressor=Aeimg(quality=60)`.

It takes what `integrations.zarr` takes, and is registered by an entry point as well. It needs arrays in C order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numcodecs.abc import Codec
from numcodecs.compat import ensure_bytes, ndarray_copy

from .chunks import configuration, decode_chunk, encode_chunk, held

Array = np.ndarray


class Aeimg(Codec):  # type: ignore[misc, unused-ignore]  # numcodecs has no types
    """aeimg's codec, lossy, for arrays of uint8 and uint16 that end in an image."""

    codec_id = "aeimg"

    def __init__(self, quality: int = 50, effort: int = 1, model: str | None = None, device: str = "cpu") -> None:
        """See `integrations.zarr.AeimgCodec`. Raises `UsageError`."""
        configuration(quality, effort, model)
        self.quality, self.effort, self.model, self.device = quality, effort, model, device

    def encode(self, buf: Any) -> bytes:
        """Returns the bytes of an array. Raises `UsageError`, `InputError`."""
        return encode_chunk(np.asarray(buf), held(self.model, self.device), self.quality, self.effort)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Returns the images, `[N,H,W]` or `[N,H,W,C]`, or fills `out`. Raises `InvalidLatent`, `WrongWeights`."""
        return ndarray_copy(decode_chunk(ensure_bytes(buf), held(self.model, self.device)), out)

    def get_config(self) -> dict[str, Any]:
        """Returns what a store keeps of the codec."""
        return {"id": self.codec_id, **configuration(self.quality, self.effort, self.model)}
