"""The card of trained weights: what they were made of, and how well they did."""

from __future__ import annotations

import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .journal import Journal
from .loop import Loop, rounded

CURVE_POINTS = 45
"""A card has so many points of the loss curve at most, as cards are read whole."""


def commit() -> str:
    """The commit of the code that is running; "unknown" of code that was installed, whatever repository it lies in."""
    if not (Path(__file__).parents[2] / ".git").exists():
        return "unknown"
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def thinned_curve(journal: Journal, metric: str) -> dict[str, list[float | None]]:
    """At most `CURVE_POINTS` evaluations: their steps, the mean training loss on the way to each, their `metric`.

    A metric that is called `loss` as well is entered as `held_out_loss`.
    """
    rows = journal.evaluations
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(CURVE_POINTS, len(rows))).round().astype(int))
    held_out = "held_out_loss" if metric == "loss" else metric
    curve: dict[str, list[float | None]] = {"step": [], "loss": [], held_out: []}
    before = 0.0
    for row in (rows[n] for n in chosen):
        losses = [value for step, value in journal.losses if before < step <= row["step"]]
        curve["step"].append(row["step"])
        curve["loss"].append(rounded(sum(losses) / len(losses)) if losses else None)
        curve[held_out].append(rounded(row[metric]))
        before = row["step"]
    return curve


def make_card(loop: Loop, task: str, data: str, code: str, figures: dict[str, float]) -> dict[str, object]:
    """The card of the weights that `loop` has made for `task`, with the held-out `figures` of the step at which they
    were chosen. `data` describes the training data, `code` is the commit that ran."""
    settings, journal, objective = loop.settings, loop.journal, loop.objective
    start, patience = loop.call["start"], settings.patience
    return {
        "objective": task,
        "data": data,
        "minutes": round(journal.seconds / 60, 1),
        "steps": journal.step,
        "device": str(settings.device),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "seed": settings.seed,
        "recipe": asdict(objective.recipe),
        "commit": code,
        **({"start": start} if start else {}),
        **({"patience": patience, "kept": figures["step"]} if patience is not None else {}),
        "held_out": {key: rounded(value) for key, value in figures.items() if key != "step"},
        "curve": thinned_curve(journal, objective.primary_metric),
    }
