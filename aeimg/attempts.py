"""What the actors of a Ray cluster have begun. The module imports next to nothing, because an actor of its own runs it:
one that imported torch would take seconds, and half a gigabyte."""

from __future__ import annotations

from collections import Counter


class Attempts:
    """An actor that takes no CPU, and knows what the others have begun."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.ended: dict[int, bytes] = {}
        self.signs = 0
        self.loading: dict[int, float] = {}

    def loaded(self, process: int, seconds: float) -> None:
        """Takes note that an actor has loaded its model, after so many CPU seconds of its process."""
        self.signs += 1
        self.loading[process] = seconds

    def loads(self) -> dict[int, float]:
        """Returns the CPU seconds that each process took until its actor had loaded the model."""
        return self.loading

    def begin(self, what: str) -> int:
        """Takes note that a block or a file is begun. Returns how often it was by now."""
        self.signs += 1
        self.begun[what] += 1
        return self.begun[what]

    def end(self, number: int, row: bytes) -> None:
        """Takes note of what became of a file of a block that is done again."""
        self.signs += 1
        self.ended[number] = row

    def known(self, number: int) -> bytes | None:
        """Returns what became of such a file, if it is done."""
        return self.ended.get(number)

    def beat(self) -> None:
        """Takes note that an actor has done something."""
        self.signs += 1

    def state(self) -> tuple[int, int, list[str]]:
        """Returns how many signs of life there were, how much was begun, and what was begun again."""
        again = [what for what, times in self.begun.items() if times > 1]
        return self.signs, len(self.begun), again
