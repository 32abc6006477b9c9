"""One training loop for every model: what `aeimg train` runs, and what made the shipped weights.

What is trained and on what say `objectives` and `families`; here is the loop: warm-up, cosine to zero, clipping, an
average of the weights, checkpoints.

A run ends after `minutes` or `steps`, whichever comes first, and the learning rate is always decayed to its
end by then. A checkpoint is a safetensors file as well; resuming continues at the same step with the same
batches, the time spent before included.
"""

from __future__ import annotations

import json
import math
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .data import Pairs
from .errors import InvalidWeights, UsageError
from .families import FAMILIES
from .objectives import BlindObjective, CompressObjective, DenoiseObjective, Objective, Recipe
from .optim import optimizers
from .paths import write_atomic
from .zoo import Header, build, load_tensors, pick_device, pick_dtype, resolve, save_weights

OBJECTIVES: dict[str, type[Objective]] = {"denoise": DenoiseObjective, "compress": CompressObjective, **FAMILIES}
"""What can be trained: a denoiser and a codec as they ship, and the autoencoders of the textbooks."""


def _batches(
    objective: Objective, seed: int, start: int, late: Callable[[int], bool]
) -> Iterator[tuple[int, tuple[Tensor, ...], np.random.Generator, bool]]:
    """Batches from a thread of their own, two ahead; each depends on (seed, step, phase) alone."""
    ahead: queue.Queue[Any] = queue.Queue(2)
    stop = threading.Event()

    def work() -> None:
        step = start
        try:
            while not stop.is_set():
                rng = np.random.default_rng((seed, step))
                phase = late(step)
                item = (step, objective.batch(rng, phase), rng, phase)
                while not stop.is_set():
                    try:
                        ahead.put(item, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                step += 1
        except BaseException as error:  # handed to the loop, which raises it
            ahead.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item = ahead.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


Optimizers = list[torch.optim.Optimizer]


def _save_checkpoint(
    path: Path, model: nn.Module, average: nn.Module, optimizers: Optimizers, about: dict[str, Any]
) -> None:
    from safetensors.torch import save

    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in average.state_dict().items()}
    for index, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{index}/{number}/{k}": v for k, v in state.items()}
    write_atomic(path, save({k: v.contiguous() for k, v in tensors.items()}, {"checkpoint": json.dumps(about)}))


def _load_checkpoint(path: Path, model: nn.Module, average: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads(file.metadata()["checkpoint"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InvalidWeights(f"{path}: not a checkpoint of `aeimg train` ({error})") from error
    for prefix, module in (("model/", model), ("average/", average)):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    for index, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"optimizer{index}/"):
                _, number, name = key.split("/")
                like = parameters[int(number)]
                # A fused optimizer walks memory, so its state must be laid out as the parameter is (channels_last).
                laid_out = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
                state.setdefault(int(number), {})[name] = laid_out
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return dict(about)


def _commit() -> str:
    """The commit this runs from, for the card; a package that was installed has none."""
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


def train(
    task: str,
    data: Path,
    out: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: Path | None = None,
    checkpoint: Path | None = None,
    start: str | Path | None = None,
    name: str | None = None,
    version: int = 1,
    pairs: Path | None = None,
    blind: bool = False,
    labels: Sequence[int] | None = None,
    config: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> Header:
    """Trains a model of `task` on the images below `data` and writes its weights to `out`.

    Ends after `minutes` or `steps`, whichever comes first (at least one must be given); both count what a
    run that is resumed had already done. `checkpoint` (default: beside `out`) is written every three minutes,
    and `resume` continues from one. `start` names weights (a registered model or a file) of the same network to begin
    with instead of random ones. `blind` trains a denoiser that is told no noise level, on what cameras do to pictures,
    and on real `pairs` (see `data.Pairs`) where there are any. `labels`: only images of these, of idx files. `config`
    and `recipe` override fields of the network's config and of the `Recipe`. Raises `UsageError`, `DataError`.
    """
    if task not in OBJECTIVES:
        raise UsageError(f"unknown task {task!r}; known: {', '.join(OBJECTIVES)}")
    if minutes is None and steps is None:
        raise UsageError("say how long to train: minutes, steps, or both")
    out = Path(out)
    checkpoint = Path(checkpoint) if checkpoint else out.with_name(out.name + ".checkpoint")
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    if (blind or pairs) and task != "denoise":
        raise UsageError(f"blind training and pairs are for the task denoise, not for {task}")
    blind = blind or pairs is not None
    kind = BlindObjective if blind else OBJECTIVES[task]
    the_recipe = Recipe(**{**asdict(kind.recipe), **(recipe or {})})
    photographs = kind.source(Path(data), the_recipe, labels)
    torch.manual_seed(seed)
    more: dict[str, Any] = {}
    if pairs is not None:
        more["pairs"] = Pairs(pairs, min_side=max(the_recipe.crop, the_recipe.late_crop), at_least=10)
    objective = kind(photographs, config or {}, **more)  # type: ignore[call-arg]
    objective.recipe = the_recipe
    model = objective.model
    if resume is None and start is None:
        objective.prepare()
    origin = None
    if start is not None:
        found = resolve(str(start))
        if not isinstance(found, Path):
            raise UsageError(f"{start}: a model without a weights file can't be trained further")
        header, tensors, digest = load_tensors(found)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        known = {name: tensor.shape for name, tensor in tensors.items() if name in shapes}
        if (header.architecture, known) != (objective.architecture, shapes):
            raise UsageError(f"{start}: holds another network than the one to be trained; start from one of its kind")
        model.load_state_dict({name: tensors[name].float() for name in shapes})
        origin = f"{header.label} ({digest.hex()})"
    model.to(place).to(memory_format=torch.channels_last)
    average = build(objective.architecture, asdict(model.config))  # type: ignore[call-overload]
    average.load_state_dict(model.state_dict())
    average.to(place).to(memory_format=torch.channels_last).requires_grad_(False)
    moves = optimizers(model, the_recipe.rate, the_recipe.beta2, precision, muon=the_recipe.muon)
    first, before = 0, 0.0
    if resume is not None:
        about = _load_checkpoint(Path(resume), model, average, moves)
        first, before = int(about["step"]), float(about["seconds"])
        log(f"resumed {resume} at step {first}, {before / 60:.1f} minutes in")
    commit = _commit()  # of the code that is running, not of what the checkout has become when the run ends
    began = time.monotonic() - before

    def progress(step: int) -> float:
        parts = [0.0]
        if minutes is not None:
            parts.append((time.monotonic() - began) / (60 * minutes))
        if steps is not None:
            parts.append(step / steps)
        return max(parts)

    log(
        f"{task}: {len(photographs)} images, {photographs.pixels / 1e6:.1f} megapixels, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {place}, {precision}"
    )
    finished = first
    batches = _batches(objective, seed, first, lambda step: progress(step) >= 1 - the_recipe.late)
    saved = logged = judged = time.monotonic()
    window: dict[str, list[float]] = {}
    model.train()
    try:
        for step, batch, rng, late in batches:
            done = progress(step)
            if done >= 1:
                break
            torch.manual_seed(seed * 1_000_003 + step)  # for the noise that stands for rounding
            scale = min(1.0, (step + 1) / the_recipe.warmup) * 0.5 * (1 + math.cos(math.pi * done))
            for group in (group for optimizer in moves for group in optimizer.param_groups):
                group["lr"] = the_recipe.rate * max(scale, 1e-3)
            objective.done = done
            with torch.autocast(place.type, precision, enabled=precision != torch.float32):
                loss, terms = objective.loss(tuple(part.to(place) for part in batch), rng, late)
            model.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(model.parameters(), the_recipe.clip)
            if not torch.isfinite(norm):
                log(f"step {step}: the gradient is not finite; the step is left out")
                continue
            for optimizer in moves:
                optimizer.step()
            with torch.no_grad():
                # Early on a short memory, or the random start would linger in the average.
                decay = min(the_recipe.average, (step + 1) / (step + 10))
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
            finished = step + 1
            for key, value in {"loss": float(loss.detach()), **terms}.items():
                window.setdefault(key, []).append(value)
            now = time.monotonic()
            if now - logged > 30:
                means = " ".join(f"{k} {sum(v) / len(v):.5f}" for k, v in window.items())
                log(f"step {step} {(now - began) / 60:.1f} min, {100 * done:.0f}%: {means}")
                window.clear()
                logged = now
            if now - saved > 180:
                about = {"step": finished, "seconds": now - began}
                _save_checkpoint(checkpoint, model, average, moves, about)
                saved = now
            if now - judged > 600:
                figures = objective.validate(average)
                log("held out: " + " ".join(f"{k} {v:.3f}" for k, v in figures.items()))
                judged = time.monotonic()
    finally:
        batches.close()  # type: ignore[attr-defined]
        seconds = time.monotonic() - began
        # An interrupted run keeps what it has, too.
        _save_checkpoint(checkpoint, model, average, moves, {"step": finished, "seconds": seconds})
    average.eval()
    figures = objective.validate(average)
    log("held out: " + " ".join(f"{k} {v:.3f}" for k, v in figures.items()))
    header = Header(
        architecture=objective.architecture,
        config=asdict(average.config),  # type: ignore[call-overload]
        task=objective.task,
        name=name or out.stem,
        version=version,
        card={
            "data": f"{len(photographs)} images, {photographs.pixels / 1e6:.1f} megapixels, of {Path(data).name}/"
            + (f"; {len(more['pairs'])} pairs of {Path(pairs).name}/" if pairs else ""),
            "minutes": round(seconds / 60, 1),
            "steps": finished,
            "device": str(place),
            "dtype": str(precision).removeprefix("torch."),
            "seed": seed,
            "recipe": asdict(the_recipe),
            "commit": commit,
            **({"start": origin} if origin else {}),
            "held_out": {k: round(v, 3) for k, v in figures.items()},
        },
    )
    save_weights(out, objective.export(average), header)
    log(f"wrote {out}")
    return header
