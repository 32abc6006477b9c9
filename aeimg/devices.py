"""Where a model runs, and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    import torch


def pick_device(device: str) -> torch.device:
    """Returns the device of that name; "auto" is CUDA where there is one, then MPS, then the CPU.

    Raises `UsageError` where the device is unknown or missing.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown device {device!r}; use auto, cpu, cuda or mps")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: this machine has no CUDA device that torch can use; try --device cpu")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {device}: this machine has {torch.cuda.device_count()} of them, counted from 0")
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device mps: not available here; try --device cpu")
    return place


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Returns the precision of that name; "auto" is bf16 where the processor multiplies it natively (elsewhere bf16 is
    slower), else fp32. Raises `UsageError` for an unknown name."""
    import torch

    if dtype == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
        native = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
        fast = device.type == "cpu" and any(probe is not None and probe() for probe in native)
        return torch.bfloat16 if fast else torch.float32
    choices = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
    if dtype not in choices:
        raise UsageError(f"unknown dtype {dtype!r}; use auto, fp32 or bf16")
    return choices[dtype]
