"""Every example runs from end to end, and does what its text says."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example as `python examples/NAME ARGUMENTS` does, and gives back the lines that it prints."""

    def run(name: str, *arguments: Path) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_denoise_arrays(run):
    *figures, frames = run("denoise_arrays.py")
    noisy, known, estimated = (float(line.split()[-2]) for line in figures)
    assert known > noisy + 8
    assert estimated > noisy + 8
    assert frames == "4 frames of shape (64, 256, 3)"


def test_compress_folder(run, tmp_path):
    lines = run("compress_folder.py", tmp_path)
    assert len(lines) == 3
    assert lines[0].startswith("2 compressed: ")
    for name in ("cat", "coffee"):
        before, after = (tmp_path / folder / f"{name}.png" for folder in ("pictures", "back"))
        assert Image.open(before).size == Image.open(after).size
        assert (tmp_path / "latents" / f"{name}.aei").stat().st_size < before.stat().st_size / 10


def test_latent_loader(run, tmp_path):
    lines = run("latent_loader.py", tmp_path)
    assert len(list((tmp_path / "crops").glob("*.aei"))) == 8
    assert [line.split(", loss")[0] for line in lines] == ["a batch of shape (4, 3, 96, 96)"] * 2


def test_web_shards(run, tmp_path):
    pytest.importorskip("webdataset", reason="webdataset is not installed: pip install 'aeimg[test]'")
    assert run("web_shards.py", tmp_path) == ["a batch of shape (4, 3, 96, 96), labels [0, 1, 2, 3]"] * 1 + [
        "a batch of shape (4, 3, 96, 96), labels [4, 5, 6, 7]"
    ]


def test_hugging_face(run, tmp_path):
    pytest.importorskip("datasets", reason="datasets is not installed: pip install 'aeimg[test]'")
    lines = run("hugging_face.py", tmp_path)
    assert lines[0] == "8 rows; the first: label 0, RGB (96, 96)"
    assert lines[1] == "a batch of shape (4, 3, 96, 96)"


def test_web_service(run):
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'aeimg[test]'")
    pytest.importorskip("httpx", reason="httpx is not installed: pip install 'aeimg[test]'")
    assert run("web_service.py") == ["denoise: 200, PNG (128, 96)", "no picture: 422", "model loads: 1"]


def test_read_with_imageio(run, tmp_path):
    pytest.importorskip("imageio", reason="imageio is not installed: pip install 'aeimg[test]'")
    assert run("read_with_imageio.py", tmp_path) == ["(96, 128, 3) uint8", "the same pixels from Pillow"]


def test_own_model(run):
    picture, array = run("own_model.py")
    words = picture.split()
    assert words[0] == "RGB"
    before, after = float(words[words.index("before,") - 1]), float(words[words.index("after") - 1])
    assert after < before / 2
    assert array == "uint16 array of shape (96, 128)"


def test_every_example_is_tested_and_listed():
    names = {path.name for path in EXAMPLES.glob("*.py")}
    tested = {f"{name.removeprefix('test_')}.py" for name in globals() if name.startswith("test_")}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert names == tested - {"every_example_is_tested_and_listed.py"}
    assert all(f"[{name}]({name})" in listed for name in names)
