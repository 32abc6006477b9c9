"""Images in Zarr 3: `zarr.create_array(..., chunks=(1, 512, 512, 3), serializer=AeimgCodec(quality=60))`.

The codec is lossy. It turns arrays of uint8 and uint16 into bytes, in chunks of any shape that ends in an image:
`[H,W]`, `[H,W,3]`, `[H,W,4]`, or any number of axes before these. It is registered by an entry point, so that a process
that has imported nothing of aeimg reads such arrays, as long as aeimg is installed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zarr.abc.codec import ArrayBytesCodec

from .chunks import check_chunk, configuration, encode_chunk, held, restored

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

NAME = "aeimg"
"""The codec's name in the metadata of arrays."""


@dataclass(frozen=True)
class AeimgCodec(ArrayBytesCodec):
    """aeimg's codec as the serializer of a Zarr array."""

    quality: int = 50
    """1 (the smallest chunks) to 100."""
    effort: int = 1
    """1..9; from 2 on, encoding takes longer and chunks become a few percent smaller."""
    model: str | None = None
    """The name of a model for compress; None for the default one. Each chunk names the weights that it needs."""
    device: str = "cpu"
    """Where chunks are encoded and decoded; it is not stored."""

    is_fixed_size = False

    def __post_init__(self) -> None:
        configuration(self.quality, self.effort, self.model)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AeimgCodec:
        """Returns the codec that an array's metadata describes."""
        return cls(**(data.get("configuration") or {}))

    def to_dict(self) -> dict[str, Any]:
        """Returns what an array's metadata says of the codec."""
        return {"name": NAME, "configuration": dict(configuration(self.quality, self.effort, self.model))}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Raises `UsageError` for arrays whose chunks are no images of uint8 or uint16."""
        check_chunk(getattr(chunk_grid, "chunk_shape", shape), dtype.to_native_dtype())

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        codec = held(self.model, self.device)
        data = await asyncio.to_thread(encode_chunk, chunk_array.as_numpy_array(), codec, self.quality, self.effort)
        return chunk_spec.prototype.buffer.from_bytes(data)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        codec, dtype = held(self.model, self.device), chunk_spec.dtype.to_native_dtype()
        array = await asyncio.to_thread(restored, chunk_data.to_bytes(), codec, chunk_spec.shape, dtype)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(array)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Raises `NotImplementedError`: the size of a chunk depends on what it shows."""
        raise NotImplementedError
