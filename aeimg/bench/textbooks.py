"""`bench anomaly` and `bench textbooks`: what the autoencoders of the textbooks do, beside principal components."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ..engine import process
from ..metrics import roc_auc
from ..progress import Progress
from ..training import train
from ..training.datasets import Digits
from ..training.objective import Config
from ..training.textbook_objectives import TEXTBOOKS
from .setting import Figures


def _nothing(line: str) -> None:
    pass


def bench_anomaly(
    data: Path, *, width: int = 32, steps: int = 3000, device: str = "auto", progress: bool = False
) -> Figures:
    """How well a `vanilla` autoencoder of one digit tells the others apart: area under the ROC curve, for each digit.

    `data` holds idx files; the last fifth is the test. Scores are `aeimg score`'s; beside it, those of principal
    components of the same training images, as many as the code is wide.
    """
    every = Digits(data)
    test = every.split()
    images, labels = every.images[test], every.labels[test]
    rows: dict[str, dict[str, float]] = {}
    digits = sorted(set(labels.tolist()))
    with Progress("bench anomaly", len(digits), wanted=progress, item="digits", speed=None) as shown:
        for digit in shown.each(digits, lambda digit: f"digit {digit}"):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "one.safetensors"
                config, recipe = {"widths": (width,)}, {"labels": (digit,)}
                train("vanilla", data, out, steps=steps, config=config, recipe=recipe, device=device, log=_nothing)
                scored = process(iter(images), "score", model=out, device=device)
                errors = np.array([one.score for one in scored])
            one = Digits(data, (digit,))
            one.split()
            left = component_errors(one.images[: one.training], images, width)
            inside = labels == digit
            rows[str(digit)] = {
                "vanilla": roc_auc(errors[inside], errors[~inside]), "components": roc_auc(left[inside], left[~inside])
            }  # fmt: skip
    return {
        "task": "anomaly",
        "images": len(images),
        "width": width,
        "digits": rows,
        "mean": {name: float(np.mean([row[name] for row in rows.values()])) for name in ("vanilla", "components")},
    }


def component_errors(seen: np.ndarray, images: np.ndarray, width: int) -> np.ndarray:
    """The mean squared error that so many principal components of the images `seen` leave of each of `images`.

    Both uint8 `[N,S,S]`; errors are of pixels in [0,1].
    """
    known, x = (some.reshape(len(some), -1) / 255.0 for some in (seen, images))
    mean = known.mean(0)
    axes = np.linalg.eigh((known - mean).T @ (known - mean))[1][:, -width:]
    centred = x - mean
    return np.asarray(np.square(centred - centred @ axes @ axes.T).mean(1))


UNSHIPPED: dict[str, tuple[str, Config]] = {
    "deep2d": ("deep2d", {}),
    "vanilla, 32 values": ("vanilla", {"widths": (32,)}),
    "vanilla, 128 values": ("vanilla", {"widths": (128,)}),
}
"""What is trained, by its name in the table -> the key of `TEXTBOOKS`, and the config where it is not the default."""


def bench_textbooks(data: Path, *, device: str = "auto", steps: int | None = None, progress: bool = False) -> Figures:
    """Held-out figures of `UNSHIPPED`, each trained on the idx files in `data`; and of as many principal components as
    `linear` (all digits) and `deep2d` (its three) have code values.

    Of `deep2d` also how far apart its digits lie: the share of held-out ones whose nearest neighbour is of their kind.
    """
    runs = {}
    shown = Progress("bench textbooks", len(UNSHIPPED), wanted=progress, item="autoencoders", speed=None)
    with tempfile.TemporaryDirectory() as folder, shown:
        for name, (key, config) in shown.each(UNSHIPPED.items(), lambda one: one[0]):
            out = Path(folder) / f"{name}.safetensors"
            card = train(key, data, out, steps=steps, config=config, device=device, log=_nothing).card
            runs[name] = {key: card[key] for key in ("held_out", "steps", "seed", "commit", "device")}
            if name == "deep2d":
                three = Digits(data, TEXTBOOKS[key].recipe.labels)
                test = three.split()
                codes = np.stack(list(process(iter(three.images[test]), "features", model=out, device=device)))
                runs[name]["neighbours"] = _share_of_neighbours(codes, three.labels[test])
    components = {}
    for key in ("linear", "deep2d"):
        kind = TEXTBOOKS[key]
        digits = Digits(data, kind.recipe.labels)
        held_out = digits.split()
        seen, others = digits.images[: digits.training], digits.images[held_out]
        widths = kind.config["widths"]
        assert isinstance(widths, tuple)
        left = component_errors(seen, others, widths[-1])
        components[key] = {"mse": float(left.mean())}
    return {"task": "textbooks", "runs": runs, "components": components}


def _share_of_neighbours(points: np.ndarray, labels: np.ndarray) -> float:
    """How many of the points have the nearest other one of their own label."""
    apart = np.square(points[:, None] - points).sum(2)
    np.fill_diagonal(apart, np.inf)
    return float((labels[apart.argmin(1)] == labels).mean())


def anomaly_table(figures: Figures) -> str:
    """The figures of `bench_anomaly` as text."""
    names = list(figures["mean"])
    lines = [f"{figures['images']} held-out digits; trained on one, area under the ROC curve for the others"]
    lines.append(f"{'digit':>8}" + "".join(f"{name:>14}" for name in names))
    for digit, row in [*figures["digits"].items(), ("mean", figures["mean"])]:
        lines.append(f"{digit:>8}" + "".join(f"{row[name]:14.4f}" for name in names))
    return "\n".join(lines)


def table(figures: Figures) -> str:
    """The figures of `bench_textbooks` as text."""
    lines = []
    for name, run in figures["runs"].items():
        held_out = ", ".join(f"{key} {value:g}" for key, value in run["held_out"].items())
        lines.append(f"{name:24}{held_out}; {run['steps']} steps")
        if "neighbours" in run:
            lines.append(f"{'':24}nearest neighbours of the same digit: {100 * run['neighbours']:.1f}%")
    for name, row in figures["components"].items():
        lines.append(f"as many principal components as {name} has code values: mse {row['mse']:.5g}")
    return "\n".join(lines)
