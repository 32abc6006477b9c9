"""Training: `train()` is what `aeimg train` runs, and what made the shipped weights."""

from .loop import train

__all__ = ["train"]
