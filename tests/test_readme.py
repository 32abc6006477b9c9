"""What the README and the pages say is true: their commands parse, their code runs, their figures were measured."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

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
    return main.commands[name].make_context(name, words)


def test_the_two_commands_stand_there_word_for_word():
    assert "\n    pip install '.[demo]' && aeimg demo demo/\n" in README
    assert "\n    pip install '.[test]' && pytest\n" in README


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in command_lines(page.read_text("utf-8"))}))
def test_every_command_line_parses(line):
    assert parse(line).params


def test_the_readme_shows_every_command():
    commands = {shlex.split(line)[1] for line in command_lines(README)}
    elsewhere = {"sample", "interpolate", "arithmetic"}  # of the small autoencoders, on their page
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
    assert set(shown) == {name for name in aeimg.__all__ if name not in errors and name != "__version__"} | {"errors"}


def run_blocks(page: Path, small) -> dict[str, object]:
    """Runs the Python blocks of a page one after another, in a folder with one picture, `in/a.png`."""
    from PIL import Image

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


def test_the_measured_weights_are_those_that_ship():
    import torch

    from aeimg import registry

    def shipped(task, *names):
        models = [registry.get(name, task, torch.device("cpu")) for name in names]
        return {model.label: model.digest.hex() for model in models}

    denoisers = shipped("denoise", *registry.CHOICES)
    for name, models in (("compress", shipped("compress", None)), ("denoise", denoisers), ("pairs", denoisers)):
        assert json.loads((ROOT / "docs" / f"bench-{name}.json").read_text())["models"] == models


def test_the_version_is_that_of_the_changelog_and_of_the_citation():
    assert f"## {aeimg.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {aeimg.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
