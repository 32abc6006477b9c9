"""Checkpoints: safetensors files with all that a run needs to go on as if it had never been interrupted.

Their tensors are those of the trained network (`model/...`), of the average of its weights (`average/...`), of the best
average so far (`best/...`) and of the optimisers (`optimizer0/...`); their metadata hold the journal and the call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from ..errors import InputError, InvalidWeights
from ..paths import open_regular, write_atomic
from ..weights import is_of, not_finite
from .journal import Journal
from .objective import Config
from .optimizers import Muon

FORMAT = 2
"""The version of the layout. Checkpoints are not kept for long, so that only the current one is read."""

Optimizers = list[torch.optim.Optimizer]


class RecordedCall(TypedDict, total=False):
    """How a run was called, as far as the run that resumes it has to know."""

    task: str
    """What was trained: a key of `run.OBJECTIVES`."""
    objective: str
    """The class of the objective."""
    pairs: bool
    """Whether a folder of pairs was given beside the clean images."""
    seed: int
    """The seed of the run."""
    config: Config
    """All fields of the network's config."""
    recipe: dict[str, object]
    """The fields of the `Recipe`."""
    start: str | None
    """The label and digest of the weights that the run began with."""
    patience: int | None
    pixels: int
    """How many pixels the training images have together."""
    name: str | None
    """The name that was given to the model, if any."""
    version: int
    """The version number of the weights."""


def tensors_of(states: Mapping[str, Mapping[str, Tensor]], optimizers: Optimizers) -> dict[str, Tensor]:
    """The tensors of a checkpoint. `states` has the state of each network by its prefix."""
    tensors = {f"{prefix}/{key}": value for prefix, state in states.items() for key, value in state.items()}
    for index, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{index}/{number}/{key}": value for key, value in state.items()}
    return tensors


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], journal: Journal, call: RecordedCall) -> None:
    """Writes a checkpoint, atomically. `call` says how the run was called. Raises `OutputError`."""
    from safetensors.torch import save

    about = json.dumps({"format": FORMAT, "journal": asdict(journal), "call": dict(call)})
    write_atomic(path, save({key: value.contiguous() for key, value in tensors.items()}, {"checkpoint": about}))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Opens a checkpoint: the file, and what its metadata say. Raises `InvalidWeights` for what is none."""
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(path).close()
        with safe_open(str(path), "pt") as file:
            about = json.loads(file.metadata()["checkpoint"])
            if not isinstance(about, dict):
                raise ValueError("its metadata are not of one")
            yield file, about
    # RecursionError: its JSON is nested a thousand levels deep.
    except (InputError, OSError, SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise InvalidWeights(f"{path}: is not a checkpoint of `aeimg train` ({error!s:.300})") from error


def read_checkpoint(path: Path) -> tuple[Journal, RecordedCall, dict[str, Tensor]]:
    """The journal of a checkpoint, how its run was called, and its tensors.

    Raises `InvalidWeights` where the file is no checkpoint of this version, or has values that are not finite.
    """
    with _opened(path) as (file, about):
        if about.get("format") != FORMAT:
            raise InvalidWeights(
                f"{path}: is a checkpoint of another version of aeimg, which this one can't resume; "
                "resume it with that version, or begin anew"
            )
        journal, call = Journal(**about["journal"]), about["call"]
        _check(journal, call)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    broken = not_finite(tensors.items())
    if broken is not None:
        raise InvalidWeights(
            f"{path}: its run has diverged, {broken} is not finite; resume an earlier checkpoint, or begin anew with a "
            "lower --learning-rate"
        )
    return journal, call, tensors


LARGEST_NUMBER = 1 << 53
"""The largest number of steps, or of anything else, in a checkpoint."""


def _check(journal: Journal, call: Any) -> None:
    """Raises `ValueError` where a value is not of its kind."""

    def fits(value: object, kind: Any) -> bool:
        return is_of(value, kind, LARGEST_NUMBER)

    rows = journal.evaluations
    kinds: dict[str, Any] = {"step": int, "seconds": float, "loss_sum": float, "loss_count": int, "next_mean": float,
             "next_evaluation": float, "last_phase": int | None, "best": int | None, "evaluations_since_best": int,
             "ending": tuple[float, ...] | None}  # fmt: skip
    wrong = [name for name, kind in kinds.items() if not fits(getattr(journal, name), kind)]
    if not isinstance(journal.losses, list) or any(
        not fits(pair, tuple[float, ...]) or len(pair) != 2 for pair in journal.losses
    ):
        wrong.append("losses")
    # Figures may be infinite: a picture that comes back whole has no error.
    if not isinstance(rows, list) or any(
        not isinstance(row, dict) or not fits(row.get("step"), float) or any(type(n) not in (int, float)
        for n in row.values()) for row in rows
    ):  # fmt: skip
        wrong.append("evaluations")
    if not wrong and journal.best is not None and journal.best >= len(rows):
        wrong.append("best")
    if journal.ending is not None and "ending" not in wrong and (len(journal.ending) != 3 or journal.ending[1] < 1):
        wrong.append("ending")
    if not isinstance(call, dict):
        wrong.append("call")
    else:
        kinds = {"config": dict, "recipe": dict, "start": str | None, "seed": int | None, "patience": int | None,
                 "name": str | None, "version": int}  # fmt: skip
        wrong += [name for name, kind in kinds.items() if name in call and not fits(call[name], kind)]
        if "version" not in wrong and call.get("version", 1) < 1:
            wrong.append("version")
    if wrong:
        raise ValueError(f"damaged: {', '.join(wrong)}")


def steps_of_checkpoint(path: Path) -> int | None:
    """After how many steps the checkpoint at `path` was written; None where the file is no checkpoint."""
    try:
        with _opened(path) as (_, about):
            return int(about["journal"]["step"] if "journal" in about else about["step"])
    except (InvalidWeights, OverflowError):
        return None


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def restore(
    path: Path, tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module], optimizers: Optimizers
) -> None:
    """Loads the `tensors` of the checkpoint at `path` into `networks`, by their prefixes, and into `optimizers`.

    Raises `InvalidWeights` where they are those of another network.
    """
    for prefix, network in networks.items():
        try:
            network.load_state_dict(under(f"{prefix}/", tensors))
        except RuntimeError as error:
            raise InvalidWeights(f"{path}: holds another network than the one to be trained ({error})") from error
    best, average = under("best/", tensors), networks["average"].state_dict()
    if best and {key: value.shape for key, value in best.items()} != {k: value.shape for k, value in average.items()}:
        raise InvalidWeights(f"{path}: its best weights are those of another network than the one to be trained")
    for index, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        names = {"momentum"} if isinstance(optimizer, Muon) else {"step", "exp_avg", "exp_avg_sq"}
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in under(f"optimizer{index}/", tensors).items():
            number, _, name = key.partition("/")
            known = number.isdecimal() and len(number) < 9 and int(number) < len(parameters) and name in names
            like = parameters[int(number)] if known else None
            if like is None or tensor.shape != (() if name == "step" else like.shape):
                raise InvalidWeights(f"{path}: is damaged: optimizer{index} has no {key!r:.99} of this shape")
            # A fused optimiser walks memory, so its state must be laid out as the parameter is (channels_last).
            laid_out = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            state.setdefault(int(number), {})[name] = laid_out
        if any(set(found) != names for found in state.values()):
            raise InvalidWeights(f"{path}: is damaged: the state of optimizer{index} is incomplete")
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
