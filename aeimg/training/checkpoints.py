"""Checkpoints: safetensors files with all that a run needs to go on as if it had never been interrupted.

Their tensors are those of the trained network (`model/...`), of the average of its weights (`average/...`), of the best
average so far (`best/...`) and of the optimisers (`optimizer0/...`); their metadata hold the journal and the call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidWeights
from ..paths import write_atomic
from ..weights import not_finite
from .journal import Journal

FORMAT = 2
"""The version of the layout. Checkpoints are not kept for long, so that only the current one is read."""

Optimizers = list[torch.optim.Optimizer]


def tensors_of(states: Mapping[str, Mapping[str, Tensor]], optimizers: Optimizers) -> dict[str, Tensor]:
    """The tensors of a checkpoint. `states` has the state of each network by its prefix."""
    tensors = {f"{prefix}/{key}": value for prefix, state in states.items() for key, value in state.items()}
    for index, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{index}/{number}/{key}": value for key, value in state.items()}
    return tensors


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], journal: Journal, call: Mapping[str, Any]) -> None:
    """Writes a checkpoint, atomically. `call` says how the run was called. Raises `OutputError`."""
    from safetensors.torch import save

    about = json.dumps({"format": FORMAT, "journal": asdict(journal), "call": dict(call)})
    write_atomic(path, save({key: value.contiguous() for key, value in tensors.items()}, {"checkpoint": about}))


def read_checkpoint(path: Path) -> tuple[Journal, dict[str, Any], dict[str, Tensor]]:
    """The journal of a checkpoint, how its run was called, and its tensors.

    Raises `InvalidWeights` where the file is no checkpoint of this version, or has values that are not finite.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads(file.metadata()["checkpoint"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if about.get("format") != FORMAT:
            raise InvalidWeights(
                f"{path}: is a checkpoint of another version of aeimg, which this one can't resume; "
                "resume it with that version, or begin anew"
            )
        journal, call = Journal(**about["journal"]), about["call"]
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidWeights(f"{path}: is not a checkpoint of `aeimg train` ({error})") from error
    broken = not_finite(tensors.items())
    if broken is not None:
        raise InvalidWeights(
            f"{path}: its run has diverged, {broken} is not finite; resume an earlier checkpoint, or begin anew with a "
            "lower --learning-rate"
        )
    return journal, call, tensors


def steps_of_checkpoint(path: Path) -> int | None:
    """After how many steps the checkpoint at `path` was written; None where the file is no checkpoint."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads(file.metadata()["checkpoint"])
            return int(about["journal"]["step"] if "journal" in about else about["step"])
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError):
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
    for index, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in under(f"optimizer{index}/", tensors).items():
            number, name = key.split("/")
            like = parameters[int(number)]
            # A fused optimiser walks memory, so its state must be laid out as the parameter is (channels_last).
            laid_out = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            state.setdefault(int(number), {})[name] = laid_out
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
