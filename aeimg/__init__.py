"""aeimg: a batch denoiser and learned image codec for image pipelines.

import aeimg

clean = aeimg.process(image, "denoise")                # PIL, numpy, torch, path or bytes in; the same kind out
latent = aeimg.process(image, "compress", quality=60)  # bytes
image = aeimg.process(latent, "decompress")            # a PIL image
model = aeimg.load("denoise")                          # the same, loaded once and called often: model(image)
aeimg.process("in/", "denoise", out="out/")            # a folder, as `aeimg denoise in/ out/` does it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import (
    AeimgError,
    ChecksumMismatch,
    ClusterError,
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
    from .comparison import Comparison, compare
    from .contract import ImageTask
    from .engine import Summary, process
    from .loaded import LoadedCodec, LoadedDenoiser, LoadedImageModel, load
    from .registry import register, register_task, unregister, unregister_task
    from .tasks.image import ImageRunner
    from .tasks.options import EncodingOptions, option
    from .verification import verify

__version__ = "0.1.0"

__all__ = [
    "AeimgError",
    "ChecksumMismatch",
    "ClusterError",
    "Comparison",
    "DataError",
    "EncodingOptions",
    "ImageRunner",
    "ImageTask",
    "InputError",
    "InvalidLatent",
    "InvalidWeights",
    "LoadedCodec",
    "LoadedDenoiser",
    "LoadedImageModel",
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
    "compare",
    "load",
    "option",
    "process",
    "register",
    "register_task",
    "unregister",
    "unregister_task",
    "verify",
]

# torch takes a second to import, for which `import aeimg` and `aeimg --help` must not wait.
_LAZY = {
    "process": "engine", "Summary": "engine", "ImageTask": "contract", "ImageRunner": "tasks.image",
    "load": "loaded", "LoadedCodec": "loaded", "LoadedDenoiser": "loaded",
    "LoadedImageModel": "loaded",
    "EncodingOptions": "tasks.options", "option": "tasks.options",
    **dict.fromkeys(("register", "register_task", "unregister", "unregister_task"), "registry"),
    "verify": "verification",
    **dict.fromkeys(("compare", "Comparison"), "comparison"),
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
