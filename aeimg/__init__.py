"""aeimg: a batch denoiser and learned image codec for image pipelines.

import aeimg

clean = aeimg.process(image, "denoise")                # PIL, numpy, torch, path or bytes in; the same kind out
latent = aeimg.process(image, "compress", quality=60)  # bytes
image = aeimg.process(latent, "decompress")            # a PIL image
aeimg.process("in/", "denoise", out="out/")            # a folder, as `aeimg denoise in/ out/` does it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import (
    AeimgError,
    ChecksumMismatch,
    DataError,
    InputError,
    InvalidLatent,
    InvalidWeights,
    ModelError,
    OutputError,
    TrainingDiverged,
    TruncatedLatent,
    UnreadableImage,
    UnsupportedImage,
    UnsupportedVersion,
    UsageError,
    WrongWeights,
)

if TYPE_CHECKING:
    from .engine import Summary, process
    from .registry import register, unregister
    from .verification import verify

__version__ = "0.1.0"

__all__ = [
    "AeimgError",
    "ChecksumMismatch",
    "DataError",
    "InputError",
    "InvalidLatent",
    "InvalidWeights",
    "ModelError",
    "OutputError",
    "Summary",
    "TrainingDiverged",
    "TruncatedLatent",
    "UnreadableImage",
    "UnsupportedImage",
    "UnsupportedVersion",
    "UsageError",
    "WrongWeights",
    "__version__",
    "process",
    "register",
    "unregister",
    "verify",
]

# torch takes a second to import, for which `import aeimg` and `aeimg --help` must not wait.
_LAZY = {
    "process": "engine",
    "Summary": "engine",
    "register": "registry",
    "unregister": "registry",
    "verify": "verification",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
