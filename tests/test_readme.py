"""What the README and the pages say is true: their commands parse, their code runs, their figures were measured."""

from __future__ import annotations

import json
import re
import shlex
import struct
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

import aeimg
from aeimg.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACEHOLDERS = {"TASK": "denoise", "NAME": "vanilla"}
"""What stands for a choice on a page, and one that can be chosen. Other words in capitals may be anything."""
SHELLS = ("bash", "console", "sh", "shell")


def command_lines(text: str) -> list[str]:
    """The calls of aeimg in the code of a page, without comments, pipes and redirections."""
    text = re.sub(r"\\\n\s*", " ", text)  # a line that goes on on the next one
    fenced = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
    code = re.findall(r"^    (.*)$", fenced.sub("", text), re.M)
    code += [line for kind, block in fenced.findall(text) if kind in SHELLS for line in block.splitlines()]
    lines: list[str] = []
    for line in filter(re.compile(r"(.*(&&|\|) )?aeimg ").match, code):
        words = shlex.split(line, comments=True)
        for operator in ("&&", "|"):
            words = [word if word != operator else ";" for word in words]
        for part in " ".join(map(shlex.quote, words)).split("';'"):
            if (call := shlex.split(part))[:1] == ["aeimg"]:
                end = call.index(">") if ">" in call else len(call)
                lines.append(shlex.join(call[:end]))
    return lines


def parse(line: str) -> click.Context:
    """Parses a call as the command line does, without running it. Raises `click.UsageError`."""
    name, *words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)[1:]]
    if name not in main.commands:
        raise click.UsageError(f"no such command {name!r}")
    command = main.commands[name]
    if isinstance(command, click.Group):  # the tasks of `run`
        name, *words = words
        if name == "levels":  # that of docs/plugins.md, which test_tasks installs and runs
            name, words = "denoise", words[:2]
        found = command.get_command(click.Context(command), name)
        if found is None:
            raise click.UsageError(f"no such task {name!r}")
        command = found
    return command.make_context(name, words)


def test_the_two_commands_stand_there_word_for_word():
    assert "\n    pip install '.[demo]' && aeimg demo demo/\n" in README
    assert "\n    pip install '.[test]' && pytest\n" in README


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in command_lines(page.read_text("utf-8"))}))
def test_every_command_line_parses(line):
    assert parse(line).params


class Step(NamedTuple):
    """A command of README as a shell would run it."""

    words: list[str]
    """What follows `aeimg`."""
    taken: str | None
    """The file that is its standard input."""
    given: str | None
    """The file that gets its standard output."""


def steps(text: str) -> list[Step]:
    """The calls of aeimg in the indented code of a page, in order."""
    found = []
    for line in re.findall(r"^    (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M):
        for part in re.split(r" && ", line):
            words = shlex.split(part, comments=True)
            taken = given = None
            if words[:1] == ["cat"] and words[2:4] == ["|", "aeimg"]:
                taken, words = words[1], words[3:]
            if words[-2:-1] == [">"]:
                given, words = words[-1], words[:-2]
            if words[:1] == ["aeimg"]:
                found.append(Step(words[1:], taken, given))
    return found


def drawn(number: int, width: int = 96, height: int = 80) -> Image.Image:
    """A picture of a few soft shapes and some noise."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (width, height), tuple(map(int, rng.integers(60, 200, 3))))
    for _ in range(12):
        x, y, side = (int(value) for value in rng.integers(0, width, 3))
        ImageDraw.Draw(image).ellipse((x, y, x + side, y + side), fill=tuple(map(int, rng.integers(0, 256, 3))))
    noise = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def draw_what_the_readme_names() -> None:
    """Makes the folders and files that README takes for granted, in the current folder."""
    for folder, count in (("in", 2), ("renders", 1), ("scans/1", 1), ("my_scans", 10), ("photos", 10)):
        Path(folder).mkdir(parents=True)
        for number in range(count):
            suffix = "tif" if folder.startswith("scans") else "png"
            drawn(number).save(Path(folder) / f"{'abcdefghij'[number]}.{suffix}")
    for folder in ("my_pairs", "taken_twice"):
        for kind in ("noisy", "clean"):
            Path(folder, kind).mkdir(parents=True)
            for number in range(10):
                drawn(number + 20).save(Path(folder, kind, f"camera_{number}.png"))
    drawn(50).save("noisy.jpg")
    Path("more.txt").write_text("in/a.png\n")
    Path("digits").mkdir()
    images = np.stack([np.asarray(drawn(number, 28, 28).convert("L")) for number in range(60)])
    Path("digits/t-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, *images.shape) + images.tobytes())
    Path("digits/t-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 60) + bytes(n % 10 for n in range(60)))


def shorten_training(monkeypatch) -> None:
    """One step of a few small crops, and tables from a few crops."""
    from aeimg.training.compress_objective import CompressObjective
    from aeimg.training.run import OBJECTIVES

    monkeypatch.setenv("AEIMG_TRAIN_STEPS", "1")
    for objective in OBJECTIVES.values():
        if objective.task in ("denoise", "compress", "upscale", "colorize") and objective.recipe.crop > 64:
            short = replace(objective.recipe, crop=64, late_crop=64, batch=2, late_batch=2)
            monkeypatch.setattr(objective, "recipe", short)
    for name, count in (("prepare", {"count": 50}), ("_fit_tables", {"crops": 5})):
        monkeypatch.setattr(CompressObjective, name, partialmethod(getattr(CompressObjective, name), **count))


@pytest.mark.slow
@pytest.mark.usefixtures("same_curve")
def test_the_commands_run_one_after_another_in_the_order_in_which_they_stand(tmp_path, monkeypatch):
    from aeimg import bench, report

    monkeypatch.chdir(tmp_path)
    shorten_training(monkeypatch)
    measured = partial(bench.bench_compress, qualities=(10, 40, 70, 95))
    monkeypatch.setattr(bench, "bench_compress", lambda data, **options: measured(data, **{**options, "limit": 2}))
    monkeypatch.setattr(bench, "bench_denoise", partial(bench.bench_denoise, side=64, sigmas=(25,)))
    monkeypatch.setattr(report, "_photographs", lambda: [(name, np.asarray(drawn(9))) for name in "ab"])
    draw_what_the_readme_names()
    commands = steps(README)
    assert len(commands) > 20
    for words, taken, given in commands:
        done = CliRunner().invoke(main, words, input=Path(taken).read_bytes() if taken else None)
        assert done.exit_code == 0, f"aeimg {shlex.join(words)}: {done.output} {done.exception!r}"
        assert "; passed over" not in done.stderr
        if given:
            Path(given).write_bytes(done.stdout_bytes)
    assert Image.open("clean.jpg").size == (96, 80)
    assert Image.open("back/a.png").size == Image.open("out/a.png").size == Image.open("webp/a.webp").size
    assert len(list(Path().glob("*.safetensors"))) == 8  # seven models, and the features


def test_the_steps_of_a_page_are_found():
    page = "    cat a.jpg | aeimg denoise - - > b.jpg   # c\n    pip install x && aeimg demo demo/\n"
    page += "```python\n    aeimg 1\n```\n"
    assert steps(page) == [
        Step(["denoise", "-", "-"], "a.jpg", "b.jpg"),
        Step(["demo", "demo/"], None, None),
    ]


def test_the_readme_shows_every_command():
    commands = {shlex.split(line)[1] for line in command_lines(README)}
    elsewhere = {"sample", "interpolate", "arithmetic"}  # of the small autoencoders, on their page
    elsewhere |= {"run"}  # of plug-ins, on their page
    assert commands == set(main.commands) - elsewhere


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("aeimg polish in/ out/", "no such command 'polish'"),
        ("aeimg denoise in/ out/ --sharpen 3", "No such option"),
        ("aeimg denoise out/", "Missing argument"),
        ("aeimg info", "Missing argument"),
        ("aeimg interpolate a.png b.png c.png out/", "unexpected extra argument"),
        ("aeimg compress in/ out/ --quality 101", "not in the range"),
        ("aeimg compress in/ out/ --quality", "requires an argument"),
        ("aeimg train polish in/ -o a.safetensors", "is not one of"),
        ("aeimg train denoise in/", "Missing option"),
        ("aeimg denoise in/ out/ --dry-run 5 --if-exists ask", "is not one of"),
    ],
)
def test_a_wrong_line_does_not_parse(line, fault):
    with pytest.raises(click.UsageError) as caught:
        parse(line)
    assert fault in caught.value.format_message()


def test_command_lines_are_found():
    indented = "    cat a | aeimg denoise - - > b  # c\n    pip install '.[demo]' && aeimg demo demo/\n"
    fenced = "```bash\naeimg compress 'a b/*' c\n```\n"
    found = ["aeimg denoise - -", "aeimg demo demo/", "aeimg compress 'a b/*' c"]
    assert command_lines(indented + fenced) == found
    assert command_lines("    pip install aeimg\naeimg can't\n```python\naeimg = 1\n    aeimg if x\n```\n") == []


def test_every_link_to_a_file_leads_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / folder / "README.md" for folder in ("examples", "weights"))]:
        # (Those of docs/ are checked by `mkdocs build --strict`.)
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_reference_holds_everything_public():
    shown = re.findall(r"^::: aeimg\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    errors = {name for name in aeimg.__all__ if hasattr(aeimg.errors, name)}
    modules = {"errors", "pillow"}
    assert set(shown) == {name for name in aeimg.__all__ if name not in errors and name != "__version__"} | modules


def run_blocks(page: Path, small) -> dict[str, object]:
    """Runs the Python blocks of a page one after another, in a folder with one picture, `in/a.png`."""
    Path("in").mkdir()
    Image.fromarray(small).save("in/a.png")
    names: dict[str, object] = {"image": Image.fromarray(small), "images": [small, small]}
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    return names


def test_the_python_lines_run(small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(ROOT / "README.md", small)
    assert names["back"].size == (143, 101)
    assert names["summary"].done == 1


def test_the_python_lines_of_the_guide_run(small, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(ROOT / "docs" / "guide" / "python.md", small)
    assert names["array"].shape == (101, 143, 3)
    assert names["tensor"].shape == (3, 101, 143)
    assert names["codes"].ndim == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["(101, 143, 3)"] * 2
    assert printed[2].startswith("failed: ")
    assert printed[3] == "1 done, 0 skipped, 0 failed"
    assert len(printed) == 5


def figure(pattern: str) -> float:
    found = re.search(pattern.replace(" ", r"\s+"), README)
    assert found, pattern
    return float(found[1])


def test_the_figures_are_those_that_were_measured():
    denoise = json.loads((ROOT / "docs" / "bench-denoise.json").read_text(encoding="utf-8"))
    for sigma in ("15", "25", "50"):
        row = [denoise["sigmas"][sigma][key] for key in ("noisy", "known", "auto", "grey")]
        found = re.search(rf"\| sigma {sigma}" + r" \| ([\d.]+)" * 4 + r" \|", README)
        assert found, sigma
        assert [float(value) for value in found.groups()] == pytest.approx(row, abs=0.0051)
    jpeg = [figure(rf"\| sigma 25, then JPEG 75 \|{skipped} ([\d.]+) \|") for skipped in ("", r" [\d.]+ \| \|")]
    assert jpeg == pytest.approx([denoise["jpeg75"][key] for key in ("noisy", "auto")], abs=0.0051)
    pairs = json.loads((ROOT / "docs" / "bench-pairs.json").read_text(encoding="utf-8"))["cameras"]["NikonD800"]
    assert figure(r"rise by ([\d.]+) dB") == pytest.approx(pairs["gain"], abs=0.0051)
    for figures in (("noisy", r"from ([\d.]+) to [\d.]+ dB"), ("auto", r"from [\d.]+ to ([\d.]+) dB")):
        assert figure(figures[1]) == pytest.approx(pairs[figures[0]], abs=0.0051)
    for figures in (("noisy_ssim", r"SSIM from ([\d.]+) to"), ("auto_ssim", r"SSIM from [\d.]+ to ([\d.]+) \(")):
        assert figure(figures[1]) == pytest.approx(pairs[figures[0]], abs=0.00051)
    assert figure(r"Clean images come back at ([\d.]+) dB") == pytest.approx(denoise["clean"]["psnr"], abs=0.051)
    assert figure(r"shift by ([\d.]+) of 255") == pytest.approx(denoise["clean"]["shift"], abs=0.0051)


def test_the_bd_rates_are_those_that_were_measured():
    compress = json.loads((ROOT / "docs" / "bench-compress.json").read_text(encoding="utf-8"))
    ours = compress["codecs"]["aeimg"]["bd_rate"]
    names = {"avif": "AVIF", "avif444": "AVIF, 4:4:4", "jxl": "JPEG XL", "webp": "WebP", "jpeg": "JPEG"}
    for anchor, name in names.items():
        found = re.search(rf"\| {name} \|" + r" ([+-][\d.]+)% \|" * 4, README)
        assert found, name
        measured = [ours[metric][anchor] for metric in ("ssimulacra2", "ms_ssim", "butteraugli", "psnr")]
        assert [float(value) for value in found.groups()] == pytest.approx(measured, abs=0.051)


def test_the_guide_says_what_each_quality_gives():
    compress = json.loads((ROOT / "docs" / "bench-compress.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "guide" / "compress.md").read_text(encoding="utf-8")
    for point in compress["codecs"]["aeimg"]["points"]:
        row = (f"{point['bpp']:.2f}", f"{point['ssimulacra2']:.0f}", f"{point['psnr']:.1f} dB")
        assert f"| {point['quality']} | {' | '.join(row)} |" in text, point["quality"]


def test_the_speeds_are_those_that_were_measured():
    compress = json.loads((ROOT / "docs" / "bench-compress.json").read_text(encoding="utf-8"))["codecs"]
    denoise = json.loads((ROOT / "docs" / "bench-denoise.json").read_text(encoding="utf-8"))
    times = compress["aeimg"]["encode"] / compress["avif"]["encode"]
    assert figure(r"encoded ([\d.]+) times as fast as AVIF") == pytest.approx(times, abs=0.051)
    assert figure(r"decoded at ([\d.]+) megapixels") == pytest.approx(compress["aeimg"]["decode"], abs=0.051)
    speeds = denoise["one_thread_mps"]
    assert figure(r"One thread denoised ([\d.]+) megapixels") == pytest.approx(speeds["fp32"], abs=0.051)
    assert figure(r"([\d.]+) times as many as DnCNN") == pytest.approx(denoise["times_dncnn"], abs=0.51)
    assert figure(r"and ([\d.]+) in the precision that `--dtype auto`") == pytest.approx(speeds["auto"], abs=0.051)


def test_the_guide_says_how_often_notes_are_wrong():
    checks = json.loads((ROOT / "docs" / "bench-checks.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "guide" / "denoise.md").read_text(encoding="utf-8")
    held_out, well = checks["held_out"], [row for row in checks["held_out"]["cases"].values() if row["well"]]
    notes = {"some detail may be gone": "detail", "some noise may be left": "noise", "the colours may have": "colours"}
    for note, kind in notes.items():
        found = re.search(rf"\| {note}[^|]*\|[^|]* (\d) of 255[^|]*\| ([\d.]+)% \| ([\d.]+)% \|", text)
        assert found, note
        assert float(found[1]) == checks["bounds"][kind]
        rates = [held_out["rates"][kind][name] for name in ("false", "missed")]
        assert [float(value) for value in found.groups()[1:]] == pytest.approx(rates, abs=0.051)
        assert rates[0] <= 5
    unasked = re.search(r"Of (\d+) results that\s`aeimg denoise` made unasked, ([\d.]+)% got", text)
    assert unasked and int(unasked[1]) == sum(row["results"] for row in well)
    assert float(unasked[2]) == pytest.approx(held_out["rates"]["any"], abs=0.051)
    assert held_out["rates"]["any"] <= 5
    jpeg = held_out["cases"]["sigma 25, then JPEG 75"]
    assert f"Most false alarms, {jpeg['detail']['false']} of {jpeg['results']} results" in text


def test_the_measured_weights_are_those_that_ship():
    import torch

    from aeimg import registry

    def shipped(task, *names):
        models = [registry.get(name, task, torch.device("cpu")) for name in names]
        return {model.label: model.digest.hex() for model in models}

    denoisers = shipped("denoise", *registry.CHOICES)
    measured = {"compress": shipped("compress", None), **dict.fromkeys(("denoise", "pairs", "checks"), denoisers)}
    for name, models in measured.items():
        assert json.loads((ROOT / "docs" / f"bench-{name}.json").read_text())["models"] == models


def test_the_version_is_that_of_the_changelog_and_of_the_citation():
    assert f"## {aeimg.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {aeimg.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
