"""Type checkers accept right calls of the public API with the right types, and refuse wrong ones."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aeimg.tasks.options import OPTIONS, WORDS, FileOptions, RunOptions, names_of

FOLDER = Path(__file__).resolve().parent / "typing"
ROOT = Path(__file__).resolve().parents[1]
RIGHT, WRONG = FOLDER / "consumer.py", FOLDER / "wrong_calls.py"
CALLS = {n for n, line in enumerate(WRONG.read_text().splitlines(), 1) if line.startswith("aeimg.")}


def mypy() -> dict[Path, set[int]]:
    """The lines of both files in which mypy finds an error."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed: pip install 'aeimg[test]'")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(RIGHT), str(WRONG)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[Path, set[int]] = {RIGHT: set(), WRONG: set()}
    for name, line in re.findall(r"^(.*?):(\d+): error: ", done.stdout, re.M):
        if (path := (ROOT / name).resolve()) in found:
            found[path].add(int(line))
    return found


def pyright() -> dict[Path, set[int]]:
    """The lines of both files in which pyright finds an error."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed: pip install 'aeimg[test]'")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(RIGHT), str(WRONG)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
        report = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"pyright does not run here; without its extra nodejs it has to download node ({error!r})")
    assert report["summary"]["filesAnalyzed"] == 2
    found: dict[Path, set[int]] = {RIGHT: set(), WRONG: set()}
    for one in report["generalDiagnostics"]:
        if one["severity"] == "error":
            found[Path(one["file"]).resolve()].add(one["range"]["start"]["line"] + 1)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_type_checkers_accept_right_calls_and_refuse_every_wrong_one(checker):
    assert checker() == {RIGHT: set(), WRONG: CALLS}


@pytest.mark.parametrize("task", OPTIONS)
def test_type_checkers_know_every_option(task):
    of_the_call = {"model", "device", "dtype", "progress", "dry_run", "estimate"}
    of_the_overloads = {"kind"} if task == "decompress" else set()
    known = set(names_of(OPTIONS[task], RunOptions, FileOptions)) | of_the_call
    assert set(WORDS[task].__annotations__) | of_the_overloads == known
