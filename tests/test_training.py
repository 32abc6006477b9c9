"""What training claims, measured where it happens: each test fails when the claim is broken."""

from __future__ import annotations

import json
import math
import struct
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from aeimg import InvalidWeights, OutputError, TrainingDiverged, plots
from aeimg.training import journal, loop, train
from aeimg.training import run as run_module
from aeimg.training.compress_objective import CompressObjective
from aeimg.training.datasets import Digits, GreyPhotographs, Pairs, Photographs
from aeimg.training.denoise_objectives import BlindObjective, DenoiseObjective, PairsObjective
from aeimg.training.objective import Objective, Recipe
from aeimg.training.textbook_objectives import TEXTBOOKS, Sparse, Vanilla, Variational
from aeimg.weights import load_tensors, save_weights

RECIPE = Recipe(crop=32, batch=8, learning_rate=1e-3, late=0.2, late_crop=32, late_batch=8, grey=0.0)
UNET = {"channels": (8, 16), "blocks": (1, 1), "blocks_up": (1,)}


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A folder of clean/ and noisy/ with 20 images each, and digits/, in all of which image n has one value, 10 n."""
    folder = tmp_path_factory.mktemp("flat")
    values = np.repeat(np.arange(20, dtype=np.uint8) * 10, 28 * 28).reshape(20, 28, 28)
    for name in ("clean", "noisy", "digits"):
        (folder / name).mkdir()
    for n in range(20):
        for name in ("clean", "noisy"):
            Image.new("RGB", (40, 40), (10 * n,) * 3).save(folder / name / f"{n:02}.png")
    for kind, array in (("images-idx3-ubyte", values), ("labels-idx1-ubyte", np.zeros(20, np.uint8))):
        header = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
        (folder / "digits" / kind).write_bytes(header + array.tobytes())
    return folder


def values_of(crops):
    """Which of the flat images a batch was drawn from."""
    return set((crops.float().amax((1, 2, 3)) / 10).round().int().tolist())


# -- held-out images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Photographs, GreyPhotographs, Pairs, Digits])
def test_no_crop_is_drawn_from_a_held_out_image_and_all_others_are_drawn(flat, kind):
    images = {Pairs: lambda: Pairs(flat, min_side=28), Digits: lambda: Digits(flat / "digits")}.get(
        kind, lambda: kind(flat / "clean", min_side=28)
    )()
    held_out = images.split(4)
    assert len(held_out) == 4
    drawn = values_of(images.crops(np.random.default_rng(0), 600, 28))
    assert drawn == set(range(20)) - set(held_out)
    assert (images.count(28), images.count(10_000)) == (len(images) - 4, 0)
    assert [int(images.image(index).max()) for index in held_out] == [10 * index for index in held_out]
    assert images.image(0).shape[2] == images.channels


@pytest.mark.parametrize(
    ("make", "folder"),
    [(DenoiseObjective, "clean"), (BlindObjective, "clean"), (PairsObjective, "."), (CompressObjective, "clean")],
)
def test_what_an_objective_evaluates_it_does_not_learn_from(flat, make, folder):
    config = UNET if make is not CompressObjective else {"codes": 32, "width8": 8, "width16": 16, "hyper": 4}
    objective = make(make.source(flat / folder, RECIPE, {}), config, RECIPE)
    evaluated = {int(objective.held(index).amax()) // 10 for index in objective.held_out}
    assert len(evaluated) == 2  # one image in ten
    drawn = set()
    for step in range(40):
        clean = objective.batch(np.random.default_rng(step), step % 2 == 0)[0][:, :3]
        drawn |= values_of(clean * 255 if clean.is_floating_point() else clean)
    assert not drawn & evaluated
    assert len(drawn) > 15


def test_held_out_pairs_beside_clean_images_are_not_learned_from_either(flat):
    recipe = Recipe(**{**vars(RECIPE), "pairs": 1.0})
    pairs = Pairs(flat, min_side=32)
    objective = BlindObjective(BlindObjective.source(flat / "clean", recipe, {}), UNET, recipe, pairs)
    assert len(objective.held_out_pairs) == 2
    drawn = set()
    for step in range(40):
        drawn |= values_of(255 * objective.batch(np.random.default_rng(step), False)[0])
    assert drawn == set(range(20)) - set(objective.held_out_pairs)


@pytest.mark.parametrize("fails", [False, True])
def test_the_thread_that_makes_batches_ends_with_the_run_even_where_it_waits_to_hand_one_on(fails):
    made = []

    class Source:
        def batch(self, rng, late):
            made.append(late)
            if fails and len(made) > journal.BATCHES_AHEAD + 1:
                raise OSError("the disk is gone")
            return ()

    threads = set(threading.enumerate())
    batches = loop.batches_ahead(Source(), 0, 0, lambda step: False)
    assert next(batches).step == 0
    (maker,) = set(threading.enumerate()) - threads
    while len(made) < journal.BATCHES_AHEAD + 2:  # all places are taken, and one more is in the making
        time.sleep(0.001)
    ending = threading.Thread(target=batches.close, daemon=True)
    ending.start()
    ending.join(30)
    assert not ending.is_alive()
    assert not maker.is_alive()


# -- the signs of the losses -------------------------------------------------------------------------------------------


class Stub(nn.Module):
    """A network that answers what it is told to."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, *inputs, **options):
        return self.answer(*inputs, **options)


def losses(objective, answers, batch, late=False):
    """The loss of the same batch, with each of these for a network."""
    found = []
    for answer in answers:
        objective.model = Stub(answer) if not isinstance(answer, nn.Module) else answer
        found.append(float(objective.loss(batch, np.random.default_rng(0), late)[0].detach()))
    return found


@pytest.mark.parametrize("late", [False, True])
def test_the_loss_of_a_denoiser_falls_as_its_result_comes_nearer(flat, late):
    white = DenoiseObjective(DenoiseObjective.source(flat / "clean", RECIPE, {}), UNET, RECIPE)
    crops = white.batch(np.random.default_rng(0), late)
    clean = crops[0].float() / 255
    blind = BlindObjective(BlindObjective.source(flat / "clean", RECIPE, {}), UNET, RECIPE)
    for objective, batch in ((white, crops), (blind, (clean, clean + 0.1))):
        errors = (0.2, 0.1, -0.05, 0.0)
        found = losses(objective, [lambda x, sigma, e=e: clean + e for e in errors], batch, late)
        assert found == sorted(found, reverse=True)
        assert found[0] > 1.5 * found[1] > 2 * found[2]


def test_the_same_error_counts_more_where_the_noise_is_weak(flat):
    blind = BlindObjective(BlindObjective.source(flat / "clean", RECIPE, {}), UNET, RECIPE)
    clean = torch.full((4, 3, 32, 32), 0.5)
    weak, strong = (losses(blind, [lambda x, s: clean + 0.02], (clean, clean + n / 255))[0] for n in (5, 50))
    assert weak > 1.3 * strong


@pytest.mark.parametrize("perceptual", [0.0, 0.8])
def test_the_loss_of_the_codec_falls_with_the_error_and_with_the_bits_of_each_kind(flat, perceptual):
    config = {"codes": 32, "width8": 8, "width16": 16, "hyper": 4, "features": 8, "context": 8}
    recipe = replace(RECIPE, perceptual=perceptual, decide=True)
    objective = CompressObjective(Photographs(flat / "clean", min_side=32), config, recipe)
    batch = objective.batch(np.random.default_rng(0), False)
    zero, many = torch.zeros(8), torch.full((8,), 500.0)

    def answer(error, codes, side):
        return lambda x, q, decide: ((x + error).clone(), codes, side)

    best, blurred, more_codes, more_side = losses(
        objective,
        [answer(0.0, zero, zero), answer(0.1, zero, zero), answer(0.0, many, zero), answer(0.0, zero, many)],
        batch,
    )
    assert best < min(blurred, more_codes, more_side)
    worse, worst = losses(objective, [answer(0.1, many, zero), answer(0.2, many, many)], batch)
    assert max(blurred, more_codes) < worse < worst


def test_the_codec_s_phases_begin_when_the_recipe_says(flat):
    """Squared error alone until `perceptual_from`; rounding by rate and distortion in the last phase only."""
    recipe = replace(RECIPE, perceptual=0.8, perceptual_from=5, decide=True)
    objective = CompressObjective(Photographs(flat / "clean", min_side=32), {"codes": 32, "width8": 8}, recipe)
    batch = objective.batch(np.random.default_rng(0), False)
    seen = []

    def answer(x, q, decide):
        seen.append(decide)
        return x + 0.01, torch.zeros(len(x)), torch.zeros(len(x))

    objective.model = Stub(answer)
    terms = {}
    for step, late in ((4, False), (5, False), (5, True)):
        objective.step = step
        terms[step, late] = set(objective.loss(batch, np.random.default_rng(0), late)[1])
    assert "ssimulacra2" not in terms[4, False]
    assert "ssimulacra2" in terms[5, False]
    assert seen == [False, False, True]


class Network(nn.Module):
    """An autoencoder with given codes and logits."""

    def __init__(self, logits, code):
        super().__init__()
        self.decoder = nn.ModuleList([nn.Linear(code.shape[1], 4)])
        nn.init.constant_(self.decoder[0].weight, 0.5)
        self.given, self.code = logits, code

    def encode(self, x):
        return self.code

    def logits(self, code):
        return self.given

    def forward(self, x):
        return self.given, self.code, torch.zeros_like(self.code)


@pytest.mark.parametrize("name", ["linear", "vanilla", "conv", "sparse", "variational"])
def test_the_loss_of_a_textbook_falls_as_the_reconstruction_comes_nearer(flat, name):
    kind = TEXTBOOKS[name]
    objective = kind(kind.source(flat / "digits", kind.recipe, {}), {}, kind.recipe)
    x = torch.randint(0, 2, (8, 1, 28, 28), generator=torch.Generator().manual_seed(0)).float()
    target = x if name == "linear" else 8 * (2 * x - 1)
    code = torch.ones(8, 5)
    near, far, opposite = losses(objective, [Network(target * n, code) for n in (1, 0.1, -1)], ((255 * x).byte(),))
    assert near < far < opposite


@pytest.mark.parametrize("kind", [Sparse, Variational])
def test_large_codes_cost_what_their_penalty_says(flat, kind):
    objective = kind(kind.source(flat / "digits", kind.recipe, {}), {}, kind.recipe)
    batch = (torch.zeros(8, 1, 28, 28, dtype=torch.uint8),)
    logits = torch.full((8, 1, 28, 28), -9.0)
    small, large = losses(objective, [Network(logits, torch.full((8, 5), value)) for value in (0.1, 2.0)], batch)
    # Sparse: 1e-4 times five values, times the norm of four weights of 0.5. Variational: half the squares, by 100.
    expected = 1e-4 * 5 * 1.9 if kind is Sparse else 5 * (2.0**2 - 0.1**2) / 2 / 100
    assert large - small == pytest.approx(expected, rel=1e-3)


# -- steps -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(monkeypatch):
    """What the optimiser sees at each step: learning rate, norm of the gradient, weights after it; and the loop.

    `after` may change the weights.
    """

    class Recorded(torch.optim.SGD):
        def step(self, closure=None):
            parameters = self.param_groups[0]["params"]
            seen["learning_rates"].append(self.param_groups[0]["lr"])
            seen["norms"].append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))
            super().step()
            with torch.no_grad():
                seen["after"](len(seen["norms"]) - 1, parameters)
            seen["weights"].append([p.detach().clone() for p in parameters])

    def make_optimizers(model, learning_rate, beta2, dtype, *, muon):
        parameters = list(model.parameters())
        seen["weights"].append([p.detach().clone() for p in parameters])
        return [Recorded(parameters, lr=learning_rate)]

    def make_card(underway, *arguments):
        seen["loop"] = underway
        return original(underway, *arguments)

    seen = {"learning_rates": [], "norms": [], "weights": [], "after": lambda step, parameters: None}
    original = run_module.make_card
    monkeypatch.setattr(run_module, "make_optimizers", make_optimizers)
    monkeypatch.setattr(run_module, "make_card", make_card)
    return seen


def run(flat, out, lines=None, **options):
    recipe = {"batch": 8, "warmup": 5, **options.pop("recipe", {})}
    options.setdefault("if_exists", "overwrite")
    log = (lines if lines is not None else []).append
    return train("vanilla", flat / "digits", out, device="cpu", recipe=recipe, log=log, **options)


def test_a_held_learning_rate_falls_only_after_the_hold():
    factors = [journal.learning_rate_factor(1000, progress, 10, hold=0.6) for progress in (0.0, 0.3, 0.6, 0.8, 1.0)]
    assert factors == pytest.approx([1, 1, 1, 0.5, journal.MINIMUM_FACTOR])


def test_the_learning_rate_warms_up_and_falls_along_a_cosine_to_its_end(flat, tmp_path, recorded):
    run(flat, tmp_path / "w.safetensors", steps=100, recipe={"learning_rate": 2.0})
    rates = recorded["learning_rates"]
    assert len(rates) == 100
    cosine = [1 + math.cos(math.pi * step / 100) for step in range(100)]
    assert rates[:5] == pytest.approx([cosine[step] * (step + 1) / 5 for step in range(5)])
    assert rates[4:98] == pytest.approx(cosine[4:98])
    assert rates[50] == pytest.approx(1.0)  # half of the highest, half-way
    assert rates[99] == pytest.approx(2.0 * 1e-3)  # where it stops falling
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_every_optimizer_gets_the_learning_rate(flat, tmp_path, monkeypatch):
    seen = []
    for kind in (torch.optim.AdamW, run_module.make_optimizers.__globals__["Muon"]):

        def step(self, closure=None, original=kind.step):
            seen.append((type(self).__name__, self.param_groups[0]["lr"]))
            return original(self)

        monkeypatch.setattr(kind, "step", step)
    monkeypatch.setattr(TEXTBOOKS["conv"], "export", Objective.export)  # the other one takes long
    recipe = {"batch": 4, "warmup": 2, "learning_rate": 0.01}
    train("conv", flat / "digits", tmp_path / "w.safetensors", steps=4, device="cpu", recipe=recipe, log=lambda _: None)
    expected = [0.01 * min(1, (step + 1) / 2) * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    for name in ("AdamW", "Muon"):
        assert [rate for kind, rate in seen if kind == name] == pytest.approx(expected)


def test_gradients_reach_the_optimizer_with_the_norm_of_the_limit_at_most(flat, tmp_path, recorded):
    run(flat, tmp_path / "w.safetensors", steps=6, recipe={"clip": 1e9})
    free = recorded["norms"][:]
    limit = min(free) / 3
    recorded["norms"].clear()
    run(flat, tmp_path / "w.safetensors", steps=6, recipe={"clip": limit})
    assert len(recorded["norms"]) == 6
    assert recorded["norms"] == pytest.approx([limit] * 6, rel=1e-3)


def test_the_average_is_the_moving_average_of_the_weights_and_is_what_is_evaluated_and_written(
    flat, tmp_path, recorded, monkeypatch
):
    evaluated = []
    original = Vanilla.validate

    def validate(self, model):
        evaluated.append([p.detach().clone() for p in model.parameters()])
        return original(self, model)

    monkeypatch.setattr(Vanilla, "validate", validate)
    recorded["after"] = lambda step, parameters: [p.add_(torch.randn_like(p)) for p in parameters]  # clear changes
    run(flat, tmp_path / "w.safetensors", steps=6, recipe={"average": 0.3})
    first, *weights = recorded["weights"]
    assert len(weights) == 6
    average = first
    for keep, after in zip((1 / 10, 2 / 11, 3 / 12, 0.3, 0.3, 0.3), weights, strict=True):
        average = [keep * old + (1 - keep) * new for old, new in zip(average, after, strict=True)]
    for found in (list(recorded["loop"].average.parameters()), evaluated[-1]):
        for mine, theirs in zip(average, found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    written = load_file(tmp_path / "w.safetensors")
    for name, value in recorded["loop"].average.state_dict().items():
        assert torch.equal(written[name], value.half())


# -- values that are not finite ----------------------------------------------------------------------------------------


def spoil(value, at):
    """Sets a weight after a step."""

    def after(step, parameters):
        if step == at:
            parameters[0].view(-1)[0] = value

    return after


@pytest.mark.parametrize(("value", "at"), [(math.nan, 3), (math.inf, 3), (math.nan, 7)])
def test_weights_that_are_not_finite_are_never_written(flat, tmp_path, recorded, value, at):
    out = tmp_path / "w.safetensors"
    recorded["after"] = spoil(value, at)
    with pytest.raises(TrainingDiverged, match=r"w: vanilla: after step \d+ the weights are not finite .*; begin anew"):
        run(flat, out, steps=8)
    assert not out.exists()
    assert not out.with_name("w.safetensors.checkpoint").exists()


def test_a_run_that_diverges_keeps_its_last_good_checkpoint_and_what_it_would_overwrite(
    flat, tmp_path, recorded, monkeypatch
):
    out, checkpoint = tmp_path / "w.safetensors", tmp_path / "w.safetensors.checkpoint"
    run(flat, out, steps=2)
    before = out.read_bytes()
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", -1)  # after each step
    recorded["norms"].clear()
    recorded["after"] = spoil(math.nan, 5)
    lines = []
    with pytest.raises(
        TrainingDiverged, match=rf"--resume {checkpoint}, which is sound and holds step 5, with a lower"
    ):
        run(flat, out, lines, steps=8)
    assert any("checkpoint: is not written, as model/" in line for line in lines)
    assert out.read_bytes() == before
    with safe_open(checkpoint, "pt") as file:
        assert json.loads(file.metadata()["checkpoint"])["journal"]["step"] == 5
        assert all(torch.isfinite(file.get_tensor(key)).all() for key in file.keys())  # noqa: SIM118
    recorded["after"] = lambda step, parameters: None
    header = run(flat, out, resume=checkpoint, recipe={"learning_rate": 1e-4})
    assert header.card["steps"] == 8


def test_an_average_that_is_not_finite_is_not_written_either(flat, tmp_path, recorded, monkeypatch):
    original = loop.update_average

    def update_average(average, model, decay):
        original(average, model, decay)
        next(average.parameters()).data.view(-1)[0] = math.nan

    monkeypatch.setattr(loop, "update_average", update_average)
    with pytest.raises(TrainingDiverged, match="the average of the weights is not finite"):
        run(flat, tmp_path / "w.safetensors", steps=3)
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_half_precision_are_not_written_as_infinite(flat, tmp_path, recorded):
    recorded["after"] = spoil(1e6, 2)
    with pytest.raises(TrainingDiverged, match=r"w\.safetensors: is not written, .* not finite in half precision"):
        run(flat, tmp_path / "w.safetensors", steps=3)
    assert not (tmp_path / "w.safetensors").exists()


@pytest.fixture
def losing(monkeypatch):
    """A `vanilla` whose loss is not finite at the steps that the set holds."""
    original, steps, count = Vanilla.loss, set(), iter(range(10**6))

    def loss(self, *arguments):
        value, terms = original(self, *arguments)
        return value * (math.nan if next(count) in steps else 1), terms

    monkeypatch.setattr(Vanilla, "loss", loss)
    return steps


def test_a_step_whose_loss_is_not_finite_is_left_out(flat, tmp_path, recorded, losing):
    losing |= {2, 4}
    lines = []
    header = run(flat, tmp_path / "w.safetensors", lines, steps=6)
    assert len(recorded["norms"]) == 4
    assert all(torch.isfinite(value).all() for value in recorded["weights"][-1])
    left_out = [line for line in lines if "left out" in line]
    assert left_out == [f"step {n}: the loss or its gradient is not finite; the step is left out" for n in (2, 4)]
    assert all(value is None or math.isfinite(value) for value in header.card["curve"]["loss"])


def test_a_run_ends_where_no_step_can_be_taken_any_more(flat, tmp_path, recorded, losing, monkeypatch):
    monkeypatch.setattr(loop, "SKIPPED_STEPS", 4)
    losing |= {1, 2, 3, *range(5, 100)}  # three in a row do not end it
    lines = []
    with pytest.raises(TrainingDiverged, match="4 steps in a row gave a loss or a gradient that is not finite; begin"):
        run(flat, tmp_path / "w.safetensors", lines, steps=100)
    assert len(recorded["norms"]) == 2
    assert sum("left out" in line for line in lines) == 3 + 3
    assert not (tmp_path / "w.safetensors").exists()


def test_an_evaluation_that_is_not_finite_is_never_the_best(flat, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVALUATION_SHARE", 1e9)
    figures = iter([math.nan, 3.0, 2.0, math.nan, math.nan])
    monkeypatch.setattr(Vanilla, "validate", lambda self, model: {"bce": next(figures)})
    header = run(flat, tmp_path / "w.safetensors", steps=5, patience=9)
    assert header.card["held_out"] == {"bce": 2.0}
    assert header.card["kept"] == 3


@pytest.mark.parametrize("prefix", ["model/", "average/", "optimizer0/"])
def test_a_checkpoint_with_values_that_are_not_finite_is_refused(flat, tmp_path, prefix):
    out, checkpoint = tmp_path / "w.safetensors", tmp_path / "w.safetensors.checkpoint"
    run(flat, out, steps=2)
    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(checkpoint)
    name = next(key for key in sorted(tensors) if key.startswith(prefix) and tensors[key].dim())
    tensors[name].view(-1)[-1] = math.nan
    save_file(tensors, checkpoint, metadata)
    with pytest.raises(
        InvalidWeights, match=rf"w\.safetensors\.checkpoint: its run has diverged, {name} is not finite"
    ):
        run(flat, out, steps=3, resume=checkpoint)


def test_weights_that_are_not_finite_are_no_start(flat, tmp_path):
    weights = tmp_path / "w.safetensors"
    run(flat, weights, steps=1)
    header, tensors, _ = load_tensors(weights)
    tensors["encoder.0.weight"].view(-1)[0] = math.nan
    save_weights(weights, tensors, header)
    with pytest.raises(InvalidWeights, match=r"w\.safetensors: encoder\.0\.weight is not finite"):
        run(flat, tmp_path / "v.safetensors", steps=1, start=weights)


def test_a_checkpoint_of_another_version_is_refused_as_such(flat, tmp_path):
    out, checkpoint = tmp_path / "w.safetensors", tmp_path / "w.safetensors.checkpoint"
    run(flat, out, steps=1)
    with safe_open(checkpoint, "pt") as file:
        about = json.loads(file.metadata()["checkpoint"])
    save_file(load_file(checkpoint), checkpoint, {"checkpoint": json.dumps({**about, "format": 99})})
    with pytest.raises(InvalidWeights, match="is a checkpoint of another version of aeimg"):
        run(flat, out, steps=2, resume=checkpoint)


# -- plots -------------------------------------------------------------------------------------------------------------


def test_without_matplotlib_a_run_says_once_that_it_draws_no_curve(flat, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    lines = []
    run(flat, tmp_path / "w.safetensors", lines, steps=2)
    assert [line for line in lines if "curve" in line] == [
        "no loss curve is drawn, as matplotlib is not installed: pip install 'aeimg[plots]'"
    ]
    assert (tmp_path / "w.safetensors").exists()
    assert not (tmp_path / "w.png").exists()
    with pytest.raises(OutputError, match=r"matplotlib, which is not installed: pip install 'aeimg\[plots\]'"):
        plots.scatter(np.zeros((1, 2)), ["a"], title="x", labels=("x", "y"))


def test_the_curve_is_drawn_on_the_way(flat, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(loop, "EVALUATION_SHARE", 1e9)
    monkeypatch.setattr(loop.Loop, "draw_curve", lambda self: drawn.append(self.journal.step))
    run(flat, tmp_path / "w.safetensors", steps=4)
    assert drawn == [4]  # drawing takes longer than these steps do
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CURVES", -1)
    run(flat, tmp_path / "w.safetensors", steps=4)
    assert drawn == [4, 1, 2, 3, 4, 4]


def test_points_have_the_look_of_their_group_and_any_name_will_do(tmp_path):
    names = [f"_{n}$x^$" for n in range(12)]
    points = np.array([[n % 4, n // 4] for n in range(12)], dtype=float)
    picture = plots.scatter(points, names, title="$", labels=("$a^$", "b"))
    assert picture.size == plots.SCATTER_SIZE
    seen = {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in picture.getcolors(1 << 24)}
    assert set(plots.COLOURS) <= seen
    assert plots._natural("a2") < plots._natural("a10")
    same = plots.scatter(points, ["a"] * 12, title="$", labels=("$a^$", "b"))
    colours = {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in same.getcolors(1 << 24)}
    assert plots.COLOURS[0] in colours
    assert plots.COLOURS[1] not in colours


def test_the_smoothed_loss_has_no_lag():
    line = [(n, 2.0 * n) for n in range(30)]
    assert plots._smoothed(line, 9) == line
    spike = plots._smoothed([(n, float(n == 10)) for n in range(21)], 9)
    assert [round(value * 9) for _, value in spike[5:16]] == [0] + [1] * 9 + [0]
