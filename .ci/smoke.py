"""Installs the wheel in a fresh virtual environment and uses it there, out of reach of the checkout.

    python .ci/smoke.py dist/

The one wheel in the folder must hold what the checkout holds: every file of the package, every weights file and all
licences.
Only the standard library is needed to run this file; the interpreter that runs it is the one that is tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

DRAW = """
import sys
from PIL import Image
size = (203, 141)
ramp, waves = Image.linear_gradient("L").resize(size), Image.effect_mandelbrot(size, (-3, -2.5, 2, 2.5), 100)
Image.merge("RGB", (ramp, waves, ramp.rotate(180))).save(sys.argv[1])
"""

COMPARE = """
import sys
import aeimg
from PIL import Image, ImageChops, ImageStat
before, after = (Image.open(path).convert("RGB") for path in sys.argv[1:3])
assert before.size == after.size, (before.size, after.size)
error = max(ImageStat.Stat(ImageChops.difference(before, after)).rms)
assert 0 < error < 16, error
assert aeimg.process(before, "denoise", sigma=10).size == before.size
print(f"the pictures are equal in size, {before.size}, and differ by {error:.1f} of 255; by {aeimg.__file__}")
"""


def missing(wheel: Path) -> list[str]:
    """What the checkout holds and the wheel lacks, or the other way round."""
    names = set(zipfile.ZipFile(wheel).namelist())
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "aeimg").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.name != "py.typed"}  # fmt: skip
    here |= {f"aeimg/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "weights").iterdir() if path.is_file()}
    there = {name for name in names if name.startswith("aeimg/") and not name.endswith("py.typed")}
    faults = sorted(here ^ there)
    names_of = ("LICENSE", "weights/LICENSE", "aeimg/pages/img-comparison-slider.LICENSE")
    licences = {f"/licenses/{name}" for name in names_of}
    faults += sorted(end for end in licences if not any(name.endswith(f".dist-info{end}") for name in names))
    return faults if "aeimg/py.typed" in names else [*faults, "aeimg/py.typed"]


def use(wheel: Path, folder: Path) -> None:
    """Installs `wheel` into an environment in `folder`, and goes once through what the README promises."""
    environment = folder / "environment"
    builder = venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt")
    builder.create(environment)
    python = builder.ensure_directories(environment).env_exe
    scripts = Path(python).parent
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AEIMG_"))}

    def run(*command: str | Path) -> str:
        print("$", *(str(word).strip().partition("\n")[0] for word in command), flush=True)
        done = subprocess.run(command, cwd=folder, env=clean, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout

    run(python, "-m", "pip", "install", "--quiet", wheel)
    aeimg = scripts / "aeimg"
    print(run(aeimg, "--version").strip())
    listed = [line.split()[0] for line in run(aeimg, "models").splitlines()]
    for name in ("aeimg-codec", "aeimg-denoise"):
        assert name in listed, f"`aeimg models` does not list {name}"
    run(python, "-c", DRAW, "picture.png")
    run(aeimg, "compress", "picture.png", "latents")
    assert "aeimg-codec" in run(aeimg, "info", "latents/picture.aei"), "the picture was stored, not coded"
    run(aeimg, "decompress", "latents", "back")
    print(run(python, "-c", COMPARE, "picture.png", "back/picture.png").strip())


def main() -> None:
    (wheel,) = Path(sys.argv[1]).resolve().glob("*.whl")
    faults = missing(wheel)
    if faults:
        sys.exit(f"{wheel.name} and the checkout differ in: {', '.join(faults)}")
    with tempfile.TemporaryDirectory() as folder:
        use(wheel, Path(folder))


if __name__ == "__main__":
    main()
