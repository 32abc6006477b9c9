"""Training learns, resumes exactly, and what it writes runs."""

from __future__ import annotations

import io
import math
import os
import re
import signal
import subprocess
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aeimg import DataError, InvalidWeights, OutputError, UsageError, plots, process, registry, weights
from aeimg.metrics import psnr
from aeimg.training import card, checkpoints, denoise_objectives, journal, loop, train
from aeimg.training import run as run_module
from aeimg.training.compress_objective import CompressObjective
from aeimg.training.datasets import Photographs
from aeimg.training.degradations import add_white_noise
from aeimg.training.denoise_objectives import SHAPE, BlindObjective, DenoiseObjective
from aeimg.training.objective import AT_LEAST
from aeimg.training.run import OBJECTIVES

TINY = {
    "denoise": {"config": {"channels": (8, 16), "blocks": (1, 1), "blocks_up": (1,)},
                "recipe": {"crop": 32, "batch": 4, "late_crop": 32, "late_batch": 4, "warmup": 5,
                           "learning_rate": 3e-3}},
    "compress": {"config": {"codes": 32, "width8": 8, "width16": 16, "hyper": 4, "features": 8, "context": 8},
                 "recipe": {"crop": 64, "batch": 2, "late_crop": 64, "late_batch": 2, "warmup": 5}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def curves(request):
    """Runs get their own loss curves only where a test is marked with `usefixtures("own_curves")`."""
    if "own_curves" not in request.fixturenames:
        request.getfixturevalue("same_curve")


@pytest.fixture
def own_curves():
    """Every run gets its own loss curve, as it does for users."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    from skimage import data as images

    folder = tmp_path_factory.mktemp("photographs")
    astronaut = images.astronaut()
    for number in range(12):
        top, left = 90 * (number // 4), 90 * (number % 4)
        Image.fromarray(astronaut[top : top + 160, left : left + 160]).save(folder / f"{number}.png")
    return folder


def run(task, photographs, out, **options):
    lines = []
    tiny = TINY.get(task, {"recipe": {"batch": 8}})
    options.setdefault("if_exists", "overwrite")
    options["recipe"] = {**tiny["recipe"], **options.get("recipe", {})}
    options.setdefault("config", None if "start" in options or "resume" in options else tiny.get("config"))
    header = train(task, photographs, out, dtype="fp32", device="cpu", log=lines.append, **options)
    return header, lines


def test_a_denoiser_learns_and_its_card_says_how(photographs, tmp_path, small):
    header, _ = run("denoise", photographs, tmp_path / "mine.safetensors", steps=400)
    assert (header.label, header.task, header.card["steps"]) == ("mine-1", "denoise", 400)
    assert header.card["data"].startswith("12 images")
    noisy = (small / 255 + np.random.default_rng(0).normal(0, 25 / 255, small.shape)).astype(np.float32)
    clean = process(noisy, "denoise", model=tmp_path / "mine.safetensors", sigma=25)
    before, after = (psnr(np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8), small) for x in (noisy, clean))
    assert after > before + 3


@pytest.mark.usefixtures("few_crops")
def test_a_codec_trained_for_a_few_steps_codes_and_decodes(photographs, tmp_path, small):
    weights = tmp_path / "mine.safetensors"
    run("compress", photographs, weights, steps=6)
    latent = process(small, "compress", model=weights, quality=60)
    result = process(latent, "decompress", model=weights, kind="numpy")
    assert result.shape == small.shape
    assert psnr(result, small) > 20


@contextmanager
def interrupted(kind, at):
    """A run that ends in its loss number `at`."""
    original, seen = kind.loss, 0

    def loss(self, *arguments):
        nonlocal seen
        seen += 1
        if seen == at:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kind, "loss", loss)
        yield


def equal(*paths):
    a, b = (weights.load_tensors(path)[1] for path in paths)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def few_crops(monkeypatch):
    """A codec's linear shortcut and its tables are fitted to few crops, as that takes longer than these runs do."""
    for name, count in (("prepare", {"count": 100}), ("_fit_tables", {"crops": 40})):
        monkeypatch.setattr(CompressObjective, name, partialmethod(getattr(CompressObjective, name), **count))


@pytest.mark.usefixtures("few_crops")
@pytest.mark.parametrize("task", ["denoise", "compress", "vanilla", "stacked"])
def test_a_resumed_run_ends_where_an_undisturbed_one_does(photographs, tmp_path, monkeypatch, task):
    monkeypatch.setattr(loop, "EVALUATION_SHARE", 10.0)  # so that there are evaluations in so short a run
    whole, half, resumed = (tmp_path / f"{name}.safetensors" for name in ("whole", "half", "resumed"))
    undisturbed, _ = run(task, photographs, whole, steps=12)
    with interrupted(OBJECTIVES[task], 7):
        run(task, photographs, half, steps=12, name="given", version=3)
    header, lines = run(task, photographs, resumed, resume=tmp_path / "half.safetensors.checkpoint")
    assert (header.name, header.version) == ("given", 3)
    assert "for 12 steps" in lines[0]
    assert "at step 6" in lines[1]
    assert len(header.card["curve"]["step"]) > 5
    assert header.card["curve"] == undisturbed.card["curve"]
    assert equal(whole, resumed)
    again = tmp_path / "again.safetensors"  # one that is over writes its weights, and the curve that it tells of
    run(task, photographs, again, resume=tmp_path / "resumed.safetensors.checkpoint")
    assert equal(whole, again)
    assert again.with_suffix(".png").is_file()


def test_a_run_that_is_resumed_for_more_steps_is_evaluated_on_its_way(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVALUATION_SHARE", 10.0)
    out = tmp_path / "w.safetensors"
    run("vanilla", photographs, out, steps=10)
    header, _ = run("vanilla", photographs, out, steps=30, resume=tmp_path / "w.safetensors.checkpoint")
    assert len([step for step in header.card["curve"]["step"] if 10 < step < 30]) > 5
    assert None not in header.card["curve"]["loss"]


def test_the_same_seed_makes_the_same_weights_and_another_one_others(photographs, tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("one", "same", "other")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        run("denoise", photographs, path, steps=5, seed=seed)
    assert equal(*paths[:2])
    assert not equal(paths[0], paths[2])


@pytest.fixture
def plateau(monkeypatch):
    """The held-out figure rises until step 20, then falls. What the schedule says at each step is noted."""
    monkeypatch.setattr(loop, "EVALUATION_SHARE", 10.0)
    shares = {}
    kind = OBJECTIVES["denoise"]
    original = loop.Loop.train_step

    def train_step(self, batch):
        shares[batch.step] = self.objective.progress
        return original(self, batch)

    def validate(self, model):
        step = max(shares, default=0) + 1
        return {"psnr25": float(min(step, 40 - step))}

    monkeypatch.setattr(loop.Loop, "train_step", train_step)
    monkeypatch.setattr(kind, "validate", validate)
    return shares


def test_patience_ends_a_run_finishes_the_decay_and_keeps_the_best(photographs, tmp_path, plateau, monkeypatch):
    best = {}
    original = loop.Loop.evaluate

    def evaluate(self, progress):
        original(self, progress)
        best[self.journal.step] = {k: v.half() for k, v in self.average.state_dict().items()}

    monkeypatch.setattr(loop.Loop, "evaluate", evaluate)
    out = tmp_path / "w.safetensors"
    header, lines = run("denoise", photographs, out, steps=200, patience=3)
    # Evaluated every fifth step: the best is at 20, patience ends at 35, and 4 steps follow once batches allow.
    assert header.card["kept"] == 20
    assert header.card["held_out"] == {"psnr25": 20.0}
    assert header.card["steps"] == 35 + journal.BATCHES_AHEAD + 1 + 4
    assert any("no better for 3 evaluations" in line for line in lines)
    assert any("was 20 after step 20" in line and "best weights are kept" in line for line in lines)
    done = [plateau[step] for step in sorted(plateau)]
    assert done == sorted(done)
    assert done[-1] > 0.75
    assert max(np.diff(done[:37])) < 0.01
    tensors = weights.load_tensors(out)[1]
    assert all(torch.equal(tensors[name], best[20][name]) for name in best[20])


@pytest.mark.parametrize("at", [12, 33, 41])
def test_patience_outlives_an_interruption(photographs, tmp_path, plateau, at):
    whole, half, resumed = (tmp_path / f"{name}.safetensors" for name in ("whole", "half", "resumed"))
    undisturbed, _ = run("denoise", photographs, whole, steps=200, patience=3)
    plateau.clear()
    with interrupted(OBJECTIVES["denoise"], at):
        run("denoise", photographs, half, steps=200, patience=3)
    header, _ = run("denoise", photographs, resumed, resume=tmp_path / "half.safetensors.checkpoint")
    assert header.card["steps"] == undisturbed.card["steps"]
    assert header.card["curve"] == undisturbed.card["curve"]
    assert equal(whole, resumed)


def test_without_patience_a_run_goes_on_and_says_that_it_was_better_before(photographs, tmp_path, plateau):
    header, lines = run("denoise", photographs, tmp_path / "w.safetensors", steps=60)
    assert header.card["steps"] == 60
    assert "kept" not in header.card
    assert any("with patience, the best weights would be kept" in line for line in lines)


def test_ctrl_c_waits_for_the_end_of_the_step(photographs, tmp_path, monkeypatch):
    original = loop.Loop.train_step
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background
    ended = []

    def train_step(self, batch):
        if batch.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        result = original(self, batch)
        ended.append(batch.step)
        return result

    monkeypatch.setattr(loop.Loop, "train_step", train_step)
    with pytest.raises(KeyboardInterrupt):
        run("denoise", photographs, tmp_path / "w.safetensors", steps=20)
    assert ended == [0, 1, 2, 3]
    _, lines = run("denoise", photographs, tmp_path / "w.safetensors", resume=tmp_path / "w.safetensors.checkpoint")
    assert "at step 4" in lines[1]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_takes_its_length_from_the_recipe_where_nothing_is_said(photographs, tmp_path):
    header, lines = run("vanilla", photographs, tmp_path / "w.safetensors", recipe={"steps": 4})
    assert lines[0].startswith("trains for 4 steps, as neither minutes nor steps were given")
    assert header.card["steps"] == 4
    recipes = {task: kind.recipe for task, kind in OBJECTIVES.items()}
    assert all(recipe.minutes or recipe.steps for recipe in recipes.values())
    assert recipes["compress"].minutes == 60
    assert recipes["deep2d"].steps < recipes["vanilla"].steps == 12_000


def test_the_page_states_how_large_images_must_be_and_how_long_runs_take():
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    for task in ("compress", "denoise", "upscale", "colorize"):
        recipe = OBJECTIVES[task].recipe
        (side,) = re.findall(rf"^\| `{task}` \|.*\| {AT_LEAST} images,.* (\d+) pixels", page, re.M)
        assert (int(side), recipe.minutes) == (min(recipe.crop, recipe.late_crop), 60)
    assert "`denoise`, `compress`, `upscale` and `colorize`\ntake 60 minutes" in page


def test_weights_are_fine_tuned_with_their_own_config_at_a_third_of_the_learning_rate(photographs, tmp_path):
    out = tmp_path / "w.safetensors"
    run("denoise", photographs, tmp_path / "mine.safetensors", steps=3)
    options = {"steps": 3, "if_exists": "overwrite", "dtype": "fp32", "device": "cpu", "log": lambda line: None}
    small = {"crop": 32, "batch": 4, "late_crop": 32, "late_batch": 4}
    header = train("denoise", photographs, out, start=tmp_path / "mine.safetensors", recipe=small, **options)
    assert header.config["channels"] == (8, 16)
    assert header.card["recipe"]["learning_rate"] == pytest.approx(DenoiseObjective.recipe.learning_rate / 3)
    assert header.card["curve"]["step"][0] == 0
    fast = {**small, "learning_rate": 1e-4}
    header = train("denoise", photographs, out, start=tmp_path / "mine.safetensors", recipe=fast, **options)
    assert header.card["recipe"]["learning_rate"] == 1e-4
    with pytest.raises(UsageError, match=r"channels \[8, 16\], which can't become \(8, 32\)"):
        train("denoise", photographs, out, start=tmp_path / "mine.safetensors", config={"channels": (8, 32)}, **options)
    with pytest.raises(UsageError, match="would overwrite the weights"):
        train("denoise", photographs, out, start=out, **options)
    with pytest.raises(UsageError, match="either resume or start"):
        train("denoise", photographs, out, start=out, resume=out, **options)
    with pytest.raises(InvalidWeights, match="nowhere.safetensors"):
        train("denoise", photographs, out, start=tmp_path / "nowhere.safetensors", **options)


def test_a_denoiser_whose_config_gives_no_shape_has_the_default_one(photographs):
    source = DenoiseObjective.source(photographs, DenoiseObjective.recipe, {})
    config = DenoiseObjective(source, {}, DenoiseObjective.recipe).model.config
    assert {key: tuple(getattr(config, key)) for key in SHAPE} == SHAPE


@pytest.mark.usefixtures("few_crops")
@pytest.mark.parametrize("model", ["aeimg-denoise", "aeimg-denoise-blind", "aeimg-codec"])
def test_what_ships_can_be_fine_tuned(photographs, tmp_path, model):
    out = tmp_path / "w.safetensors"
    task = registry.BUILTINS[model][0]
    recipe = {"crop": 64, "batch": 1, "late_crop": 64, "late_batch": 1}
    header = train(task, photographs, out, start=model, steps=1, recipe=recipe, device="cpu", log=lambda line: None)
    theirs = weights.read_header(weights.find_weights(registry.BUILTINS[model][1]))
    assert header.card["start"].startswith(theirs.label)
    mine = weights.read_header(out).config
    assert {key: mine[key] for key in theirs.config} == theirs.config
    figures = {"aeimg-denoise": "psnr25", "aeimg-denoise-blind": "camera", "aeimg-codec": "loss"}
    assert figures[model] in header.card["held_out"]


@pytest.mark.usefixtures("own_curves")
def test_the_loss_curve_is_drawn_beside_the_weights_and_over_nothing_else(photographs, tmp_path):
    run("denoise", photographs, tmp_path / "w.safetensors", steps=30)
    with Image.open(tmp_path / "w.png") as image:
        assert image.size == plots.CURVE_SIZE
        colours = {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in image.convert("RGB").getcolors(1 << 24)}
    assert {plots.LOSS, plots.HELD_OUT, plots.INK} <= colours
    run("denoise", photographs, tmp_path / "w.safetensors", steps=3)
    Image.new("RGB", (4, 4)).save(tmp_path / "w.png")
    with pytest.raises(UsageError, match=r"w\.png: would be overwritten by the loss curve.*--curve"):
        run("denoise", photographs, tmp_path / "w.safetensors", steps=3)
    run("denoise", photographs, tmp_path / "w.safetensors", steps=3, curve=tmp_path / "c.png")
    assert plots.curve_lies_at(tmp_path / "c.png")
    assert not plots.curve_lies_at(tmp_path / "w.png")


@pytest.mark.parametrize(
    ("losses", "evaluations"),
    [([], []), ([], [(0, 24.0)]), ([(1, 0.5)], [(1, 2.0), (2, 2.0)]), ([(5, math.nan), (9, math.inf)], [(9, math.nan)]),
     ([(n, 1e6 / n**3) for n in range(1, 10**4, 50)], [(n, -n) for n in range(99)])],
)  # fmt: skip
def test_any_run_can_be_drawn(losses, evaluations):
    picture = plots.curve(losses, evaluations, title="$x^$", metric="psnr", higher_is_better=True, last_phase=3)
    assert Image.open(io.BytesIO(picture)).size == plots.CURVE_SIZE


def test_cards_stay_small(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVALUATION_SHARE", 1e9)
    monkeypatch.setattr(journal, "EVALUATIONS", 1000)
    header, _ = run("vanilla", photographs, tmp_path / "w.safetensors", steps=120)
    steps = header.card["curve"]["step"]
    assert len(steps) <= card.CURVE_POINTS
    assert (steps[0], steps[-1]) == (1, 120)


def test_wrong_calls_and_too_little_data_are_refused_by_name(photographs, tmp_path):
    out = tmp_path / "w.safetensors"
    with pytest.raises(UsageError, match="unknown task"):
        train("sharpen", photographs, out, steps=1)
    with pytest.raises(DataError, match="empty: 0 usable images, at least 10.*both sides of 96 pixels"):
        (tmp_path / "empty").mkdir()
        train("denoise", tmp_path / "empty", out, steps=1)
    with pytest.raises(UsageError, match="no such file or folder"):
        train("denoise", tmp_path / "nowhere", out, steps=1)
    (tmp_path / "no.checkpoint").write_bytes(b"nothing")
    with pytest.raises(InvalidWeights, match=r"no\.checkpoint: is not a checkpoint"):
        run("denoise", photographs, out, steps=1, resume=tmp_path / "no.checkpoint")
    (tmp_path / "w.safetensors.checkpoint").write_bytes((tmp_path / "no.checkpoint").read_bytes())
    with pytest.raises(UsageError, match=r"w\.safetensors\.checkpoint: is there already, and nothing"):
        run("denoise", photographs, out, steps=1)
    (tmp_path / "w.safetensors.checkpoint").unlink()
    run("denoise", photographs, out, steps=1)
    with pytest.raises(InvalidWeights, match=r"nowhere\.checkpoint: is not a checkpoint"):
        run("denoise", photographs, out, steps=1, resume=tmp_path / "nowhere.checkpoint")
    run("denoise", photographs, out, steps=1)
    with pytest.raises(UsageError, match="was begun with task denoise, not compress"):
        run("compress", photographs, out, steps=1, resume=tmp_path / "w.safetensors.checkpoint")


def test_labels_are_for_idx_files(photographs, tmp_path):
    for task in ("vanilla", "denoise"):
        with pytest.raises(UsageError, match=f"{photographs.name}: labels are for .*leave --labels out"):
            run(task, photographs, tmp_path / "w.safetensors", steps=1, recipe={"labels": (1, 5)})


def test_weights_and_checkpoints_of_other_runs_are_not_written_over_unasked(photographs, tmp_path):
    out, checkpoint = tmp_path / "w.safetensors", tmp_path / "w.safetensors.checkpoint"
    run("vanilla", photographs, out, steps=2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=r"w\.safetensors: is there already \(the weights w-1\); give another name"):
        run("vanilla", photographs, out, steps=3, if_exists="error")
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    out.rename(tmp_path / "moved.safetensors")
    with pytest.raises(UsageError, match=r"checkpoint: is there .* after 2 steps\); resume it by --resume"):
        run("vanilla", photographs, out, steps=3, if_exists="error")
    with pytest.raises(UsageError, match=r"moved\.safetensors: is there already"):  # its checkpoint is not that one
        run("vanilla", photographs, tmp_path / "moved.safetensors", resume=checkpoint, steps=3, if_exists="error")
    for steps in (3, 4):
        header, _ = run("vanilla", photographs, out, resume=checkpoint, steps=steps, if_exists="error")
        assert header.card["steps"] == steps


def test_what_is_no_output_of_training_is_never_written_over(photographs, tmp_path):
    (tmp_path / "photo.png").write_bytes((photographs / "0.png").read_bytes())
    (tmp_path / "w.safetensors").write_bytes(b"foreign")
    (tmp_path / "folder.safetensors").mkdir()
    cases = [
        ({"out": "w.safetensors"}, r"w\.safetensors: is there already, and nothing that aeimg train"),
        ({"checkpoint": "photo.png"}, r"photo\.png: is there already, and nothing that aeimg train"),
        ({"out": "folder.safetensors"}, "is a folder"),
        ({"curve": "folder.safetensors"}, "is a folder"),
        ({"checkpoint": "new.safetensors"}, "a name each"),
    ]
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    for names, reason in cases:
        paths = {key: tmp_path / name for key, name in {"out": "new.safetensors", **names}.items()}
        with pytest.raises(UsageError, match=reason):
            run("vanilla", photographs, paths.pop("out"), steps=1, **paths)
    assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}


def test_where_nothing_can_be_written_a_run_does_not_begin(photographs, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for names in ({"out": "file/w.safetensors"}, {"curve": "file/c.png"}, {"checkpoint": "file/w.checkpoint"}):
        paths = {key: tmp_path / name for key, name in {"out": "w.safetensors", **names}.items()}
        with pytest.raises(OutputError, match="can't be written"):
            run("vanilla", photographs, paths.pop("out"), steps=1, **paths)
    run("vanilla", photographs, tmp_path / "w.safetensors", steps=1, curve=tmp_path / "new" / "folder" / "c.png")
    assert plots.curve_lies_at(tmp_path / "new" / "folder" / "c.png")


def test_a_full_disk_does_not_end_a_run(photographs, tmp_path, monkeypatch):
    def full(path, data):
        raise OutputError(f"{path}: can't be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_atomic", full)
        patch.setattr(checkpoints, "write_atomic", full)
        _, lines = run("vanilla", photographs, tmp_path / "w.safetensors", steps=3)
    assert (tmp_path / "w.safetensors").exists()
    assert any("w.safetensors.checkpoint: can't be written" in line for line in lines)
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="full; once there is room, --resume .*ckpt"):
        patch.setattr(run_module, "save_weights", lambda *_: (_ for _ in ()).throw(OutputError("full")))
        run("vanilla", photographs, tmp_path / "v.safetensors", steps=3, checkpoint=tmp_path / "v.ckpt")
    header, _ = run("vanilla", photographs, tmp_path / "v.safetensors", resume=tmp_path / "v.ckpt")
    assert header.card["steps"] == 3


@pytest.fixture
def damaged(photographs, tmp_path):
    """Copies of the photographs, those with these numbers cut in the middle."""

    def copy(*numbers):
        for path in photographs.iterdir():
            data = path.read_bytes()
            (tmp_path / path.name).write_bytes(data[: len(data) // 2] if int(path.stem) in numbers else data)
        return tmp_path

    return copy


def test_an_image_that_turns_out_damaged_is_named_and_left_out(damaged, tmp_path, caplog):
    out = tmp_path / "out" / "w.safetensors"
    header, _ = run("denoise", damaged(2, 7), out, steps=20)
    assert header.card["steps"] == 20
    said = [record.getMessage() for record in caplog.records]
    assert sorted(line for line in said if "left out" in line) == [
        f"left out: {tmp_path / name}: damaged or incomplete (image file is truncated)" for name in ("2.png", "7.png")
    ]
    with pytest.raises(DataError, match=r"\d+\.png: damaged.*without it 9 images are left, at least 10 are needed"):
        run("denoise", damaged(2, 7, 8), out, steps=20)


def test_damaged_images_do_not_disturb_a_resumption_and_are_never_held_out(damaged, tmp_path):
    whole, half, resumed = (tmp_path / "out" / f"{name}.safetensors" for name in ("whole", "half", "resumed"))
    folder = damaged(2, 5)  # the fifth would be held out
    undisturbed, _ = run("denoise", folder, whole, steps=20)
    with interrupted(OBJECTIVES["denoise"], 11):
        run("denoise", folder, half, steps=20)
    run("denoise", folder, resumed, resume=half.with_name("half.safetensors.checkpoint"))
    assert equal(whole, resumed)
    assert undisturbed.card["held_out"]["psnr25"] > 0


def test_a_run_that_goes_on_with_other_images_says_so(damaged, tmp_path):
    out = tmp_path / "out" / "w.safetensors"
    folder = damaged()
    run("vanilla", folder, out, steps=2)
    _, lines = run("vanilla", folder, out, steps=3, resume=f"{out}.checkpoint")
    assert not any("other images" in line for line in lines)
    (folder / "3.png").unlink()
    _, lines = run("vanilla", folder, out, steps=4, resume=f"{out}.checkpoint")
    assert any("begun with other images" in line for line in lines)


def test_what_is_left_out_for_its_size_or_format_is_named(damaged, tmp_path):
    folder = damaged()
    for number in range(5):
        Image.new("RGB", (31, 99)).save(folder / f"small{number}.png")
    (folder / "text.png").write_bytes(b"hello")
    _, lines = run("denoise", folder, tmp_path / "out" / "w.safetensors", steps=1)
    (small,) = (line for line in lines if "smaller than 32 pixels" in line)
    assert small.endswith(f"{folder / 'small2.png'} and 2 more")
    assert f"left out, unreadable or of several frames: {folder / 'text.png'}" in lines


def test_a_loss_curve_is_a_png(photographs, tmp_path):
    with pytest.raises(UsageError, match=r"c\.jpg: loss curves are PNG"):
        run("vanilla", photographs, tmp_path / "w.safetensors", steps=1, curve=tmp_path / "c.jpg")


def test_where_few_images_are_large_the_last_phase_keeps_to_small_crops(photographs, tmp_path):
    header, lines = run("denoise", photographs, tmp_path / "w.safetensors", steps=5, recipe={"late_crop": 192})
    assert any("0 images are large enough for the last phase's crops of 192" in line for line in lines)
    assert header.card["recipe"]["late_crop"] == 32


def test_crops_are_the_same_for_the_same_seed_and_turn_every_way(photographs, tmp_path):
    images = Photographs(photographs, min_side=32)
    a, b = (images.crops(np.random.default_rng(5), 6, 32) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == (6, 3, 32, 32)
    picture = np.asarray(Image.open(photographs / "0.png"))[:32, :32]
    (tmp_path / "one").mkdir()
    Image.fromarray(picture).save(tmp_path / "one" / "0.png")
    ways = {np.rot90(side, turns).tobytes(): 0 for side in (picture, picture[:, ::-1]) for turns in range(4)}
    assert len(ways) == 8
    for crop in Photographs(tmp_path / "one", min_side=32).crops(np.random.default_rng(0), 400, 32):
        ways[crop.permute(1, 2, 0).numpy().tobytes()] += 1  # a KeyError where it is the picture in no way
    assert min(ways.values()) > 25


def test_noise_has_the_level_that_was_asked_for():
    clean = torch.full((2, 3, 128, 128), 0.5)
    noisy = add_white_noise(clean, torch.tensor([10.0, 50.0]), torch.Generator().manual_seed(0))
    measured = (noisy - clean).flatten(1).std(1) * 255
    torch.testing.assert_close(measured, torch.tensor([10.0, 50.0]), rtol=0.02, atol=0)


@pytest.fixture
def taken_twice(tmp_path, photographs):
    rng = np.random.default_rng(0)
    for kind, sigma in (("clean", 0), ("noisy", 20)):
        (tmp_path / "twice" / kind).mkdir(parents=True)
        for path in photographs.iterdir():
            pixels = np.asarray(Image.open(path))
            noisy = np.clip(np.rint(pixels + rng.normal(0, sigma, pixels.shape)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(tmp_path / "twice" / kind / path.name)
    return tmp_path / "twice"


def test_a_blind_denoiser_learns_without_a_level_and_from_pairs(photographs, taken_twice, tmp_path, small):
    weights = tmp_path / "blind.safetensors"
    header, _ = run("denoise", photographs, weights, steps=300, pairs=taken_twice)
    assert header.config["assumed_sigma"] is not None
    assert header.card["data"].endswith("12 pairs of twice/")
    assert header.card["held_out"]["pairs"] > 1
    noisy = np.clip(np.rint(small + np.random.default_rng(0).normal(0, 20, small.shape)), 0, 255).astype(np.uint8)
    clean = process(noisy, "denoise", model=weights)
    assert psnr(clean, small) > psnr(noisy, small) + 2
    np.testing.assert_array_equal(process(noisy, "denoise", model=weights, sigma=3), clean)


def test_pairs_alone_make_a_blind_denoiser(taken_twice, tmp_path, small):
    header, _ = run("denoise", taken_twice, tmp_path / "w.safetensors", steps=300)
    assert header.config["assumed_sigma"] is not None
    assert header.card["data"].startswith("12 images")
    assert header.card["held_out"]["psnr"] > header.card["held_out"]["noisy"] + 1
    with pytest.raises(UsageError, match="twice: holds noisy/ and clean/ itself"):
        run("denoise", taken_twice, tmp_path / "w.safetensors", steps=1, pairs=taken_twice)


def test_too_few_or_too_small_pairs_are_refused_by_name(taken_twice, photographs, tmp_path):
    out = tmp_path / "w.safetensors"
    with pytest.raises(DataError, match=r"clean: 0 usable images, at least 10.*of 200 pixels.*12 were smaller"):
        run("denoise", taken_twice, out, steps=1, recipe={"crop": 200, "late_crop": 200})
    with pytest.raises(DataError, match=r"two folders in it, noisy/ and clean/"):
        run("denoise", photographs, out, steps=1, pairs=photographs)
    for number in range(3):
        (taken_twice / "clean" / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"clean: 9 usable images, at least 10"):
        run("denoise", taken_twice, out, steps=1)
    with pytest.raises(DataError, match=r"clean: 9 usable images, at least 10"):
        run("denoise", photographs, out, steps=1, pairs=taken_twice)


def test_pictures_without_a_partner_are_named(taken_twice, tmp_path):
    out = tmp_path / "w.safetensors"
    (taken_twice / "clean" / "3.png").unlink()
    _, lines = run("denoise", taken_twice, out, steps=1)
    assert f"left out, without a partner in {taken_twice / 'clean'}: {taken_twice / 'noisy' / '3.png'}" in lines
    (taken_twice / "noisy" / "4.png").unlink()
    with pytest.raises(DataError, match=r"clean/4\.png: has no partner .*noisy/4\.png; .* files of equal names"):
        run("denoise", taken_twice, out, steps=1)


def test_folders_that_are_nearly_pairs_are_not_taken_for_clean_images_without_a_word(
    taken_twice, photographs, tmp_path
):
    (taken_twice / "noisy").rename(taken_twice / "Noise")
    _, lines = run("denoise", taken_twice, tmp_path / "w.safetensors", steps=1)
    assert any("holds no pairs" in line for line in lines)
    _, lines = run("denoise", photographs, tmp_path / "w.safetensors", steps=1)
    assert not any("holds no pairs" in line for line in lines)


def test_a_card_names_no_commit_of_the_repository_that_a_package_was_installed_in(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    (tmp_path / "site" / "aeimg" / "training").mkdir(parents=True)
    monkeypatch.setattr(card, "__file__", str(tmp_path / "site" / "aeimg" / "training" / "card.py"))
    assert card.commit() == "unknown"


def test_a_blind_denoiser_stays_blind(photographs, tmp_path):
    run("denoise", photographs, tmp_path / "blind.safetensors", steps=3, blind=True)
    header, _ = run("denoise", photographs, tmp_path / "w.safetensors", steps=3, start=tmp_path / "blind.safetensors")
    assert header.config["assumed_sigma"] is not None
    assert "camera" in header.card["held_out"]
    with interrupted(BlindObjective, 2):
        run("denoise", photographs, tmp_path / "w.safetensors", steps=3, blind=True)
    header, _ = run("denoise", photographs, tmp_path / "w.safetensors", resume=tmp_path / "w.safetensors.checkpoint")
    assert "camera" in header.card["held_out"]


def test_a_blind_denoiser_may_start_from_one_with_a_level(photographs, tmp_path):
    run("denoise", photographs, tmp_path / "white.safetensors", steps=3)
    header, _ = run(
        "denoise",
        photographs,
        tmp_path / "blind.safetensors",
        steps=3,
        blind=True,
        start=tmp_path / "white.safetensors",
    )
    assert header.card["start"].startswith("white-1")
    with pytest.raises(UsageError, match="another network"):
        run("compress", photographs, tmp_path / "c.safetensors", steps=1, start=tmp_path / "white.safetensors")
    with pytest.raises(UsageError, match="for the task denoise"):
        run("compress", photographs, tmp_path / "c.safetensors", steps=1, blind=True)


@pytest.mark.parametrize("jpeg", [False, True])
def test_a_blind_run_that_began_with_a_level_resumes_to_the_same_bits(photographs, tmp_path, monkeypatch, jpeg):
    run("denoise", photographs, tmp_path / "white.safetensors", steps=2)
    options = {"blind": True, "recipe": {"jpeg": jpeg}}
    start = tmp_path / "white.safetensors"
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    run("denoise", photographs, whole, steps=6, start=start, **options)

    from aeimg.training.loop import Loop

    step = Loop.train_step

    def interrupted(self, batch):
        if batch.step == 3:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Loop, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("denoise", photographs, half, steps=6, start=start, **options)
    monkeypatch.setattr(Loop, "train_step", step)
    header, _ = run("denoise", photographs, half, steps=6, resume=tmp_path / "half.safetensors.checkpoint")
    assert header.card["recipe"]["jpeg"] is jpeg
    (_, expected, _), (_, found, _) = (weights.load_tensors(path) for path in (whole, half))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_option_jpeg_trains_a_blind_denoiser_on_noise_saved_as_jpeg(photographs, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from aeimg.cli import main

    saved = []
    original = denoise_objectives.saved_as_jpeg

    def saved_as_jpeg(x, rng, **options):
        saved.append((len(x), options))
        return original(x, rng, **options)

    monkeypatch.setattr(denoise_objectives, "saved_as_jpeg", saved_as_jpeg)
    monkeypatch.setattr(denoise_objectives, "photographed", None)  # what it must not call
    out = tmp_path / "w.safetensors"
    run("denoise", photographs, tmp_path / "white.safetensors", steps=1)
    words = ["train", "denoise", photographs, "-o", out, "--jpeg", "--steps", 2, "--device", "cpu"]
    done = CliRunner().invoke(main, [*map(str, words), "--from", str(tmp_path / "white.safetensors")])
    assert done.exit_code == 0, done.output
    header = weights.read_header(out)
    assert header.card["recipe"]["jpeg"] is True
    assert header.config["assumed_sigma"] is not None
    assert set(header.card["held_out"]) == {"jpeg", "camera", "clean"}
    assert header.card["curve"]["jpeg"][-1] == header.card["held_out"]["jpeg"]
    assert saved.count((16, {})) >= 2  # a batch for each step
    assert (1, {"clean": 0}) in saved  # and the held-out images
