"""Every error that aeimg raises on purpose.

    AeimgError
    ├── UsageError            the call itself is wrong: an unknown task, an option out of range
    ├── InputError            something is wrong with one input; a batch reports it and goes on
    │   ├── UnreadableImage       not an image, damaged, or of a format that is not allowed
    │   ├── UnsupportedImage      a sound image of a kind that is not handled yet (it is named)
    │   ├── InvalidLatent         not a latent file, or a damaged one
    │   │   ├── TruncatedLatent       it ends before its own lengths say so
    │   │   ├── ChecksumMismatch      its bytes, or the symbols decoded from them, are not those written
    │   │   └── UnsupportedVersion    written by a later version of the format
    │   └── WrongWeights          the latent file names weights other than those at hand
    ├── OutputError           an output can't be written, or two inputs want the same name
    ├── ModelError            a model is unknown, is broken, or its name is already taken
    │   ├── InvalidWeights        a weights file is damaged or does not say what it is
    │   └── TrainingDiverged      the weights of a training run are no longer finite
    ├── ClusterError          a cluster can't do the work, or has not gone on for too long
    └── DataError             training or benchmark data is missing, too little or too small

Each message names the file it is about and, where there is one, a way out.
"""

from __future__ import annotations


class AeimgError(Exception):
    """The root of the tree."""


class UsageError(AeimgError, ValueError):
    """The call itself is wrong."""


class InputError(AeimgError):
    """Something is wrong with one input."""


class UnreadableImage(InputError):
    """Not an image, damaged, or of a format that is not allowed."""


class UnsupportedImage(InputError):
    """A sound image of a kind that is not handled yet."""


class InvalidLatent(InputError):
    """Not a latent file, or a damaged one."""


class TruncatedLatent(InvalidLatent):
    """The file ends before its own lengths say so."""


class ChecksumMismatch(InvalidLatent):
    """The bytes, or the symbols decoded from them, are not those written."""


class UnsupportedVersion(InvalidLatent):
    """Written by a later version of the format."""


class WrongWeights(InputError):
    """The latent file names weights other than those at hand."""


class OutputError(AeimgError):
    """An output can't be written, or two inputs want the same name."""


class ModelError(AeimgError):
    """A model is unknown, is broken, or its name is already taken."""


class InvalidWeights(ModelError):
    """A weights file is damaged or does not say what it is."""


class TrainingDiverged(ModelError):
    """The weights of a training run are no longer finite."""


class ClusterError(AeimgError):
    """A cluster can't do the work, or has not gone on for too long."""


class DataError(AeimgError):
    """Training or benchmark data is missing, too little or too small."""
