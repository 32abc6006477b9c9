"""Draws pages with text, plots and tables: the narrow kind of image on which `docs/training.md` fine-tunes the codec.

    python docs/pages.py pages/train 0 240
    python docs/pages.py pages/test 100000 100012

Each number is one page, the same on every machine that draws with the same version of Pillow.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said what its "
    "about than into them can only other time new some could these two may first then do any like my now over such "
    "our man me even most made after also did many off before must well back through years where much your way down "
    "should because long each just state those people"
).split()
SIDE = 512
"""Pixels of a page each way; it is drawn at twice that."""


class Page:
    """A page that is filled from its top."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.random = r = random.Random(number)
        paper = r.randint(236, 255)
        self.width = 2 * SIDE
        self.image = Image.new("RGB", (self.width, self.width), (paper, paper, paper - r.randint(0, 8)))
        self.draw = ImageDraw.Draw(self.image)
        self.ink = tuple(r.randint(0, 60) for _ in range(3))
        self.y, self.margin = r.randint(30, 80), r.randint(40, 110)

    def colour(self, low: int, high: int) -> tuple[int, ...]:
        return tuple(self.random.randint(low, high) for _ in range(3))

    def text(self) -> None:
        r = self.random
        font = ImageFont.load_default(r.choice((20, 22, 24, 28, 32)) if r.random() < 0.85 else r.choice((44, 56)))
        for _ in range(r.randint(2, 9)):
            line = ""
            while self.draw.textlength(line, font) < self.width - 2 * self.margin - 60:
                line += r.choice(WORDS) + r.choice((" ", " ", " ", ", ", ". "))
            self.draw.text((self.margin, self.y), line, self.ink, font)
            self.y += int(font.size * 1.35)  # type: ignore[union-attr]
            if self.y > self.width - 60:
                break
        self.y += r.randint(15, 50)

    def plot(self) -> None:
        r, top = self.random, self.y
        height, left, right, count = r.randint(180, 420), self.margin, self.width - self.margin, r.randint(20, 120)
        self.draw.rectangle((left, top, right, top + height), outline=self.ink, width=2)
        for curve in range(r.randint(1, 4)):
            colour = self.colour(0, 220)
            walk = np.cumsum(np.random.default_rng(self.number * 7 + curve).normal(size=count))
            walk = (walk - walk.min()) / (np.ptp(walk) + 1e-9)
            points = [
                (left + (right - left) * i / (count - 1), top + height - 10 - (height - 20) * float(value))
                for i, value in enumerate(walk)
            ]
            if r.random() < 0.6:
                self.draw.line(points, colour, r.choice((2, 3, 4)))
            else:
                for x, y in points:
                    self.draw.ellipse((x - 4, y - 4, x + 4, y + 4), colour)
        for i in range(1, 5):
            self.draw.line((left, top + height * i // 5, right, top + height * i // 5), (200, 200, 200), 1)
        self.y += height + r.randint(30, 60)

    def table(self) -> None:
        r = self.random
        rows, columns, font = r.randint(3, 8), r.randint(2, 6), ImageFont.load_default(20)
        width = (self.width - 2 * self.margin) // columns
        for row in range(rows):
            for column in range(columns):
                x = self.margin + column * width
                cell = (x, self.y, x + width, self.y + 36)
                if row == 0:
                    self.draw.rectangle(cell, fill=(215, 222, 235))
                self.draw.rectangle(cell, outline=self.ink)
                word = r.choice(WORDS) if column == 0 else f"{r.uniform(0, 1000):.2f}"
                self.draw.text((x + 6, self.y + 6), word, self.ink, font)
            self.y += 36
        self.y += 40

    def bars(self) -> None:
        r, height = self.random, 200
        count = r.randint(4, 12)
        width = (self.width - 2 * self.margin) / count
        for i in range(count):
            x = self.margin + i * width
            self.draw.rectangle(
                (x + 4, self.y + height - r.random() * height, x + width - 4, self.y + height),
                fill=self.colour(40, 220),
            )
        self.y += height + 50

    def scanned(self) -> Image.Image:
        """Filled, at half the size, with a little grain."""
        while self.y < self.width - 80:
            kind = self.random.random()
            (self.text if kind < 0.62 else self.plot if kind < 0.82 else self.table if kind < 0.94 else self.bars)()
        small = np.asarray(self.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)).astype(np.float32)
        grain = np.random.default_rng(self.number).normal(0, 1.2, (SIDE, SIDE, 1))
        return Image.fromarray((small + grain).clip(0, 255).round().astype(np.uint8))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(int(sys.argv[2]), int(sys.argv[3])):
        Page(number).scanned().save(folder / f"{number:06}.png")
