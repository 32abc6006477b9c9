"""The three files that a run writes, and the checks before it begins that nothing is lost by writing them."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path

from .. import plots
from ..errors import InvalidWeights, UsageError
from ..paths import check_writable, sweep
from ..registry import resolve
from ..weights import read_header
from .checkpoints import steps_of_checkpoint


@dataclass(frozen=True)
class Outputs:
    """The files that a run writes."""

    weights: Path
    """The weights file."""
    checkpoint: Path
    """The checkpoint."""
    curve: Path
    """The picture of the loss curve."""

    @classmethod
    def beside(cls, weights: Path, checkpoint: Path | None, curve: Path | None) -> Outputs:
        """Where nothing is given, checkpoint and loss curve lie beside the weights."""
        return cls(
            weights,
            Path(checkpoint) if checkpoint else weights.with_name(weights.name + ".checkpoint"),
            Path(curve) if curve else weights.with_suffix(".png"),
        )

    def check(self, *, resume: Path | None, start: str | Path | None, overwrite: bool) -> None:
        """Raises `UsageError` where writing them would lose something, `OutputError` where they can't be written.

        `resume` and `start` are what the run begins with; `overwrite` allows it to write over another run's weights
        and checkpoint.
        """
        targets: tuple[Path, ...] = astuple(self)
        self._check_names(targets)
        begun = None if start is None else resolve(str(start))
        if isinstance(begun, Path) and begun.exists() and self.weights.exists() and self.weights.samefile(begun):
            raise UsageError(
                f"{self.weights}: would overwrite the weights that the run begins with; give the new ones another name"
            )
        if self.curve.exists() and not plots.curve_lies_at(self.curve):
            raise UsageError(
                f"{self.curve}: would be overwritten by the loss curve; give another name for that (--curve)"
            )
        own = resume is not None and resume.exists() and self.checkpoint.exists() and self.checkpoint.samefile(resume)
        self._check_earlier_run(may_overwrite=own or overwrite)
        for path in targets:
            check_writable(path)
        sweep({path.parent for path in targets})

    def _check_names(self, targets: tuple[Path, ...]) -> None:
        for path in targets:
            if path.is_dir():
                raise UsageError(f"{path}: is a folder; name a file in it")
        if self.curve.suffix.lower() != ".png":
            raise UsageError(f"{self.curve}: loss curves are PNG; give it a name that ends in .png (--curve)")
        if len({path.resolve() for path in targets}) < len(targets):
            raise UsageError(f"{self.weights}: weights, checkpoint and loss curve need a name each")

    def _check_earlier_run(self, *, may_overwrite: bool) -> None:
        resume = f"resume it by --resume {self.checkpoint}, or begin anew by --if-exists overwrite"
        for path, found, hint in (
            (self.weights, _weights_at(self.weights), "give another name, or --if-exists overwrite"),
            (self.checkpoint, _checkpoint_at(self.checkpoint), resume),
        ):
            if not path.exists():
                continue
            if found is None:
                raise UsageError(
                    f"{path}: is there already, and nothing that aeimg train has written; give another name"
                )
            if not may_overwrite:
                raise UsageError(f"{path}: is there already ({found}); {hint}")


def _weights_at(path: Path) -> str | None:
    try:
        return f"the weights {read_header(path).label}"
    except InvalidWeights:
        return None


def _checkpoint_at(path: Path) -> str | None:
    steps = steps_of_checkpoint(path)
    return None if steps is None else f"the checkpoint of a run after {steps} steps"
