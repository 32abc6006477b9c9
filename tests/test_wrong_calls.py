"""Calls that can't be meant are refused before any work, in a sentence that says what to do, with the flags' names."""

from __future__ import annotations

import os
import shlex

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import aeimg
from aeimg import registry
from aeimg.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: two pictures in `in/`, and files that are somebody's. No model can be loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number, name in enumerate("ab"):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 96, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    for name, text in (("page.html", "mine"), ("notes.txt", "mine"), ("mine.json", "[]")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(registry, "load_model", lambda *_: pytest.fail("a model was loaded for a wrong call"))
    return tmp_path


WRONG = {
    # reports
    "denoise in/ out/ --report missing/r.html": "there is no folder missing for the report; make it, or name another",
    "denoise in/ out/ --report r.txt": "does not end in .html",
    "denoise in/ out/ --report page.html": "was not written by an earlier run; choose another name",
    "denoise in/ out/ --report r.html --dry-run": "leave out --dry-run or report",
    "denoise in/ out/ --report r.html --report-size much": "--report-size must be a number of bytes, or like 20M",
    "denoise in/ out/ --report r.html --report-size 0": "--report-size must be a number of bytes, or like 20M",
    "denoise in/ out/ --report-size 5M": "--report-size is for --report",
    "denoise in/ out/ --report r.html --json r.html": "two options name this file; give each a file of its own",
    "denoise in/a.png - --report r.html": "--report is for files, and standard output is none",
    # comparisons
    "denoise in/ --compare sharpness=1,2": "these can: 'model', 'sigma', 'strength', 'chroma_strength'",
    "denoise in/ --compare residual=a": "the option 'residual' of denoise can't be compared",
    "compress in/ --compare measure=yes": "the option 'measure' of compress can't be compared",
    "denoise in/ --compare strength": "takes an option and its values, like quality=30,50,70, not 'strength'",
    "denoise in/ --compare strength=": "takes an option and its values, like quality=30,50,70, not 'strength='",
    "denoise in/ --compare strength=a,b": "strength: 'a' is not a number",
    "denoise in/ --compare strength=0.5,,1": "strength: '' is not a number",
    "denoise in/ --compare strength=0.5,7": "strength must lie in 0..1, not 7.0",
    "compress in/ --compare quality=30,5.5": "quality: '5.5' is not a whole number",
    "compress in/ --compare quality=30,101": "quality must be a whole number of 1..100, not 101",
    "compress in/ --compare quality=30 --target-bpp 0.5": "quality and --target-bpp contradict each other: give one",
    "denoise in/ --compare strength=0.5 --compare strength=1": "names strength twice; give all of its values at once",
    "denoise in/ --compare strength=0.5,1 --strength 0.3": "strength is compared, so it can't be set as well",
    "denoise in/ --compare strength=0.5,1 --dry-run": "a comparison keeps no results anyway: leave out --dry-run",
    "denoise in/ --compare strength=0.5,1 --if-exists skip": "keeps no results anyway: leave out --if-exists",
    "denoise in/ --compare strength=0.5,1 --watch": "a comparison keeps no results anyway: leave out watch",
    "denoise in/ --compare strength=0.5,1 --engine ray": "--compare runs in this process: leave out --engine",
    "denoise in/ --compare strength=0.5,1 --workers 2": "--compare runs in this process: leave out --workers",
    "denoise in/ --compare strength=0.5,1 --report missing/r.html": "there is no folder missing for the report",
    "denoise in/ --compare strength=0.5,1 --json mine.json": "was not written by an earlier run",
    "denoise in/ --compare strength=0.5,1 --json r.html --report r.html": "two options name this file",
    "denoise in/ out/ --compare strength=0.5,1": "with --compare, every name is a source: leave out OUT",
    "denoise --compare strength=0.5,1": "name the pictures to compare, as in: aeimg denoise in/ --compare",
    "denoise - --compare strength=0.5,1": "--compare is for files and folders, not for standard input",
    "denoise in/ out/ --sample 3": "--sample is for --compare",
    "upscale in/ --compare strength=0.5,1": "these can: 'model', 'scale'",
    # one option twice
    "compress in/ out/ --quality 3 --quality 5": "--quality is given 2 times; give it once, or compare its values with "
    "--compare quality=A,B",
    "denoise in/ out/ --strength 1 --strength 1": "--compare strength=A,B",
    "denoise in/ out/ --jobs 1 -j 2": "--jobs is given 2 times; give it once",
    # tables and plots
    "info in/": "holds no latent files (.aei) and no weights files (.safetensors)",
    "info in/a.png": "in/a.png: neither a latent file (.aei) nor a weights file (.safetensors)",
    "info in/ --sort size": "'size' is not one of",
    "plot notes.txt rd.svg": "notes.txt",
    "plot mine.json rd.svg": "mine.json",
    "plot mine.json missing/rd.svg": "there is no folder missing for the plot",
    # measurements
    "bench denoise in/ --plot missing/rd.svg": "there is no folder missing for the plot; make it, or name another one",
    "bench denoise in/ --plot rd.pdf": "plots are SVG or PNG files, so name it .svg or .png",
    "bench engine in/ --plot rd.svg": "there is no plot of engine; compress and denoise have one",
    "bench denoise in/ --report r.txt": "does not end in .html",
    "bench denoise in/ --report page.html": "was not written by an earlier run",
    "bench denoise in/ --report missing/r.html": "there is no folder missing for the report",
    "bench denoise in/ --json mine.json": "was not written by an earlier run",
    "bench denoise in/ --json a.svg --plot a.svg": "two options name this file",
    "bench denoise in/ --effort 3": "--effort is an option of compress",
    "bench denoise in/ --also in/": "--also is an option of checks",
    "bench checks in/ --model aeimg-denoise": "--model is not an option of checks",
    "bench anomaly in/ --model vanilla": "--model is not an option of anomaly",
    "bench checks nowhere/": "nowhere: no such file or folder",
}


INPUTS = ("info in/", "info in/a.png", "plot notes.txt rd.svg", "plot mine.json rd.svg")
"""The calls that are right in themselves, and about something that holds nothing of the kind."""


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_call_is_refused_at_once_and_in_words(line, folder):
    before = sorted(os.listdir(folder))
    done = CliRunner().invoke(main, shlex.split(line), prog_name="aeimg")
    assert done.exit_code == (1 if line in INPUTS else 2), done.output
    assert isinstance(done.exception, SystemExit)
    assert WRONG[line] in " ".join(done.stderr.split())
    assert sorted(os.listdir(folder)) == before
    assert (folder / "page.html").read_text() == "mine"


def test_a_report_may_lie_in_the_folder_that_the_run_makes(folder, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(
        main, ["denoise", "in/", "out/new", "--strength", "0", "--report", "out/new/pages/r.html"]
    )
    assert done.exit_code == 0, done.output
    assert (folder / "out/new/pages/r.html").is_file()
    with pytest.raises(aeimg.UsageError, match="there is no folder"):
        aeimg.process(folder / "in", "denoise", out=folder / "out/new", report=folder / "out/pages/r.html")


def test_options_of_the_environment_are_for_many_calls_and_refuse_none(folder, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    environment = {"AEIMG_DENOISE_REPORT_SIZE": "5M", "AEIMG_DENOISE_SAMPLE": "3"}
    done = CliRunner().invoke(main, ["denoise", "in/", "out/", "--strength", "0"], env=environment)
    assert done.exit_code == 0, done.output
