"""Denoise numpy arrays in memory, and measure what is gained.

python examples/denoise_arrays.py
"""

from __future__ import annotations

import numpy as np
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

import aeimg


def main() -> None:
    """Adds white noise to a photograph and takes it away again, by its known level and by an estimate."""
    clean = data.astronaut()[:256, 100:356]  # uint8 [256,256,3]
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    noisy = (clean + noise).clip(0, 255).round().astype(np.uint8)

    known = aeimg.process(noisy, "denoise", sigma=25)  # an array in, an array of the same shape and dtype out
    estimated = aeimg.process(noisy, "denoise")

    for name, image in {"noisy": noisy, "level known": known, "level estimated": estimated}.items():
        print(f"{name:16}{peak_signal_noise_ratio(clean, image):6.2f} dB")

    # A generator of arrays comes back for an iterable of arrays: a few are in memory at a time, however many there are.
    frames = (noisy[top : top + 64] for top in range(0, 256, 64))
    shapes = [frame.shape for frame in aeimg.process(frames, "denoise", sigma=25)]
    print(f"{len(shapes)} frames of shape {shapes[0]}")


if __name__ == "__main__":
    main()
