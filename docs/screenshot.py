"""Makes the screenshot of a report for the README: the table of a run, and one of its pictures in the viewer.

    python docs/screenshot.py docs/report.jpg

The pictures are photographs that come with scikit-image, with noise of several kinds. This needs Chromium and
`pip install '.[test]'`; nothing is downloaded.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from skimage import data

import aeimg

WIDTH = 1240
"""Pixels of the window."""
PICTURES = {"coffee.png": 40, "astronaut.png": 25, "rocket.jpg": 12, "chelsea.png": 0}
"""The photographs, by the names of their files, and the level of the noise that each gets, in 8-bit units."""
SHOWN = "astronaut.png"
"""The one that is opened."""


def write_pictures(folder: Path) -> None:
    """Writes the photographs with noise."""
    folder.mkdir()
    for number, (name, sigma) in enumerate(PICTURES.items()):
        clean = getattr(data, Path(name).stem)()[..., :3]
        noise = np.random.default_rng(number).normal(0, sigma, clean.shape)
        Image.fromarray(np.clip(np.rint(clean + noise), 0, 255).astype(np.uint8)).save(folder / name, quality=75)


def taken(browser: Browser, page_file: Path) -> list[Image.Image]:
    """Returns pictures of the table and of the viewer."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 780})
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    table = page.screenshot(full_page=True)
    page.click(f"#rows .open >> text={SHOWN}")
    page.wait_for_function("document.getElementById('first').complete && document.getElementById('second').complete")
    return [Image.open(io.BytesIO(one)).convert("RGB") for one in (table, page.screenshot())]


def main(target: Path) -> None:
    """Makes a run and writes the screenshot of its report."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("this needs Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        write_pictures(Path(folder, "in"))
        home = os.getcwd()
        os.chdir(folder)  # so that the page names the folder as a user sees it
        aeimg.process("in", "denoise", out="out", report="report.html")
        os.chdir(home)
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])  # which root can't have
        shots = taken(browser, Path(folder, "report.html"))
        browser.close()
    sheet = Image.new("RGB", (WIDTH, sum(shot.height for shot in shots) + 20), "#888888")
    top = 0
    for shot in shots:
        sheet.paste(shot, (0, top))
        top += shot.height + 20
    sheet.save(target, quality=85, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
