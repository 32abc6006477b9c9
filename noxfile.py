"""Every check of aeimg, each defined once.

    nox                      # what .ci/run checks, each session in an environment of its own
    nox -s lint types        # some of it
    nox --no-venv -s lint    # in the environment that is active, as .ci/run and pre-commit do it
    nox -P 3.13 -s tests     # the tests with another Python
    nox -s oldest            # the tests with the oldest torch that pyproject.toml promises

The settings of the tools, and the floor of the coverage, are in `pyproject.toml`.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")["project"]
OLDEST = ("torch", "torchvision")
"""The dependencies whose oldest promised versions are tested."""

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests", "wheel", "docs"]


def install(session: nox.Session, *packages: str) -> None:
    """Installs into the session's own environment; with `--no-venv`, the active one holds the packages already."""
    if session.virtualenv.is_sandboxed:
        session.install(*packages)


def required(extra: str, *names: str) -> list[str]:
    """What an extra of `pyproject.toml` asks for; with `names`, only of these packages."""
    found: list[str] = PROJECT["optional-dependencies"][extra]
    return [one for one in found if not names or re.split(r"[\[<>=]", one)[0] in names]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, spelling, and the files that other programs read."""
    install(session, *required("dev", "ruff", "codespell", "check-jsonschema"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    for schema, file in {
        "vendor.github-workflows": ".github/workflows/ci.yml",
        "vendor.citation-file-format": "CITATION.cff",
    }.items():
        session.run("check-jsonschema", "--builtin-schema", schema, file)


@nox.session
def types(session: nox.Session) -> None:
    """Types, strictly."""
    install(session, "-e", ".[dev]")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, and how much of the code they run."""
    install(session, ".[test]")
    session.run("pytest", "--cov", "-n", "2", *session.posargs)


@nox.session(python="3.11")  # newer ones may lack a wheel of it
def oldest(session: nox.Session) -> None:
    """All tests, with the oldest torch and torchvision that `pyproject.toml` promises."""
    found = [re.fullmatch(r"([\w-]+)>=([\d.]+)", one) for one in PROJECT["dependencies"]]
    pins = [f"{one[1]}=={one[2]}.*" for one in found if one is not None and one[1] in OLDEST]
    session.install(".[test]", *pins)
    session.run("pytest", *session.posargs)


@nox.session
def ray(session: nox.Session) -> None:
    """The tests of runs on a Ray cluster, which takes 510 MB and minutes: `nox` alone does not run them."""
    install(session, ".[test,ray]")
    session.run("pytest", "-m", "ray", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the source distribution, the wheel from that, and use the wheel in an environment of its own."""
    install(session, *required("dev", "build"))
    python = session.posargs[0] if session.posargs else "python"
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--outdir", folder)
        session.run(python, ".ci/smoke.py", folder, external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """The site. A page, a link or a name that is missing is an error, and so is anything loaded from elsewhere."""
    install(session, *required("docs"))
    # Not with --quiet, which hides warnings from --strict.
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})
    loaded = re.compile(r'<(?:script|img|iframe|link rel="(?:stylesheet|preconnect|icon)")[^>]*"https?://[^"]*"')
    for page in sorted((ROOT / "site").rglob("*.html")):
        for tag in loaded.findall(page.read_text(encoding="utf-8")):
            session.error(f"{page.relative_to(ROOT)} loads something from elsewhere: {tag}")
