"""Calls that a type checker must accept, with the types that it must find. Nothing here is run; see test_typing."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from PIL import Image

import aeimg
from aeimg.tasks.score import Strangeness
from aeimg.urls import Url

array = np.zeros((8, 8, 3), np.uint8)
image = Image.fromarray(array)
tensor = torch.zeros(3, 8, 8)
latent = aeimg.process(array, "compress", quality=60)

assert_type(latent, bytes)
assert_type(aeimg.process(image, "denoise"), Image.Image)
assert_type(aeimg.process(tensor, "denoise", sigma="auto", strength=0.5), torch.Tensor)
assert_type(aeimg.process(b"", "denoise", sigma=25, format="png"), bytes)
assert_type(aeimg.process([image, image], "denoise"), Iterator[Image.Image])
assert_type(aeimg.process(["a.png", "b.png"], "denoise", on_error="continue"), Iterator[Image.Image])
assert_type(aeimg.process("photos/", "denoise"), Image.Image | Iterator[Image.Image])
assert_type(aeimg.process(iter([tensor]), "compress", max_bytes=10_000), Iterator[bytes])
assert_type(aeimg.process([Path("a.png")], "compress"), Iterator[bytes])
assert_type(aeimg.process(tensor, "compress", target_bpp=0.5), bytes | list[bytes])
assert_type(aeimg.process(latent, "decompress"), Image.Image)
assert_type(aeimg.process(memoryview(latent), "decompress"), Image.Image)
with open("a.png", "rb") as file:
    assert_type(aeimg.process(file, "denoise"), Image.Image | Iterator[Image.Image])
    assert_type(aeimg.process(file, "compress"), bytes | Iterator[bytes])
assert_type(aeimg.process(io.BytesIO(latent), "decompress"), Image.Image | Iterator[Image.Image])
assert_type(aeimg.process(latent, "decompress", kind="tensor"), torch.Tensor)
assert_type(aeimg.process(latent, "decompress", kind="bytes", format="webp"), bytes)
assert_type(aeimg.process([latent], "decompress"), Iterator[Image.Image])
assert_type(aeimg.process(image, "score", percentile=95, model="vanilla"), Strangeness)
assert_type(aeimg.process("in/", "denoise", out="out/", dry_run=True), aeimg.Summary)
assert_type(aeimg.process(["a.png", Path("b.png")], "compress", out=Path("out"), if_exists="error"), aeimg.Summary)
assert_type(aeimg.process("in/", "decompress", out="out/", format="keep").failed, list[tuple[Path | Url, str]])

held = aeimg.load("denoise", device="cpu")
assert_type(held, aeimg.LoadedDenoiser)
assert_type(held(tensor, sigma=25), torch.Tensor)
assert_type(held(image, strength=0.5), Image.Image)
assert_type(held(b""), bytes)
assert_type(held(Path("a.png")), Image.Image)
assert_type(held.to(torch.device("cpu")), aeimg.LoadedDenoiser)
codec = aeimg.load("mine.safetensors", task="compress")
assert_type(codec, aeimg.LoadedCodec)
assert_type(aeimg.load("compress"), aeimg.LoadedCodec)
assert_type(aeimg.load("mine.safetensors"), aeimg.LoadedDenoiser | aeimg.LoadedCodec | aeimg.LoadedImageModel)
upscaler = aeimg.load("mine.safetensors", task="upscale", device="cpu")
assert_type(upscaler, aeimg.LoadedImageModel)
assert_type(aeimg.load("colorize"), aeimg.LoadedImageModel)
assert_type(upscaler(tensor, scale=4), torch.Tensor)
assert_type(upscaler(image), Image.Image)
assert_type(upscaler("a.png"), Image.Image)
assert_type(upscaler.to("cpu"), aeimg.LoadedImageModel)
assert_type(codec.decode(latent, crop=(0, 0, 8, 8), scale="1/4"), Image.Image)
assert_type(codec.encode(image, quality=60, effort=2), bytes)
assert_type(codec.decode(latent), Image.Image)
assert_type(codec.decode(latent, "tensor"), torch.Tensor)
assert_type(codec.decode("a.aei", kind="bytes", format="webp"), bytes)
assert_type(codec.round_trip(tensor, 40), torch.Tensor)
again = held(array)
print(again.shape, codec.decode(latent, kind="numpy").ndim)

denoised = aeimg.process(array, "denoise", image_quality={"jpg": 90})
vector = aeimg.process(image, "features")
back = aeimg.process(latent, "decompress", kind="numpy")
print(denoised.shape, vector.dtype, back.ndim)
