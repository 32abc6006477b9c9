"""Calls that a type checker must refuse: every line that begins with `aeimg`. Nothing here is run; see test_typing."""

from __future__ import annotations

import numpy as np

import aeimg

array = np.zeros((8, 8, 3), np.uint8)

aeimg.process(array, "sharpen")
aeimg.process(array)
aeimg.process(5, "denoise")
aeimg.process(array, "denoise", sigmaa=25)
aeimg.process(array, "denoise", quality=50)
aeimg.process(array, "denoise", strength="much")
aeimg.process(array, "compress", sigma=25)
aeimg.process(array, "compress", format="png")
aeimg.process(b"", "decompress", kind="gif")
aeimg.process(array, "features", quality=50)
aeimg.process("in/", "features", out="features/")
aeimg.process("in/", "denoise", out="out/", if_exists="maybe")
aeimg.process(array, "denoise").save("clean.png")
aeimg.process(b"", "decompress", kind="numpy").convert("L")
aeimg.process("in/", "compress", out="out/").bytes_written()
aeimg.load(5)
aeimg.load("denoise", task="compress").encode(5)
aeimg.load("denoise")(array, quality=5)
aeimg.load("denoise")([array])
aeimg.load("compress").encode(array, sigma=25)
aeimg.load("compress").decode(b"", kind="gif")
aeimg.load("compress").decode(b"").reshape(3)
aeimg.load("compress")(array)
aeimg.load("upscale")([array])
aeimg.load("upscale").encode(array)
aeimg.load("compress").decode(b"", crop="8,8")
