"""Pictures and data that several tests share."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from aeimg import registry

# The machines that run this are slow and shared: how long an example takes says nothing.
settings.register_profile("aeimg", deadline=None)
settings.load_profile("aeimg")

DATA = "AEIMG_TEST_DATA"
"""The environment variable that names the folder of test images."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """All tests run in two processes, each with one thread, where pytest-xdist is installed.

    Tests that are named on the command line run in one process: two would take longer to begin. `-n` asks for another
    number. Coverage needs to know the number before this is called, so `--cov` needs `-n` beside it.
    """
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):
        return
    everything = config.args_source is not pytest.Config.ArgsSource.ARGS and not (option.keyword or option.markexpr)
    if option.numprocesses is None and everything and not (option.usepdb or getattr(option, "cov_source", None)):
        option.numprocesses = 2
    if option.numprocesses:
        if option.dist in ("no", "load"):
            option.dist = "worksteal"  # leaves the tests of a file together, as far as both have enough to do
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of training and test images, which are not part of the project: see CONTRIBUTING.md."""
    named = os.environ.get(DATA)
    if not named:
        pytest.skip(f"this test needs images that are not part of the project; name their folder in {DATA}")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"{DATA} names {folder}, which is no folder")
    return folder


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """A real photograph, uint8 `[300,451,3]`: odd sides on purpose."""
    from skimage import data as images

    return np.ascontiguousarray(images.chelsea())


@pytest.fixture(scope="session")
def small(photograph: np.ndarray) -> np.ndarray:
    """A corner of it, uint8 `[101,143,3]`."""
    return np.ascontiguousarray(photograph[90:191, 120:263])


@pytest.fixture(scope="session")
def drawn_curve() -> bytes:
    """The loss curve of a run of one step."""
    from aeimg import plots

    return plots.curve([(1, 0.5)], [(1, 2.0)], title="a curve", metric="mse", higher_is_better=False)


@pytest.fixture
def same_curve(drawn_curve: bytes, monkeypatch) -> None:
    """Every training run gets the same loss curve, as drawing takes longer than many runs of the tests do."""
    from aeimg.training import loop

    monkeypatch.setattr(loop, "plots", SimpleNamespace(curve=lambda *points, **options: drawn_curve))


@pytest.fixture
def png():
    """Encodes an array as PNG, or as any other format that Pillow writes."""

    def encode(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, kind, **options)
        return buffer.getvalue()

    return encode
