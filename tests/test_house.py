"""The house keeps its order: modules import only from those before them, functions stay short, start-up stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aeimg

PACKAGE = Path(aeimg.__file__).parent
PAGE = (Path(__file__).resolve().parents[1] / "docs" / "architecture.md").read_text()
ORDER = [
    name
    for row in re.findall(r"^\| \d+ \| ([^|]*) \|", PAGE, re.M)
    for name in re.findall(r"`(\w+)`", row)
]  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def named(path: Path) -> str:
    """The name of a module, or of the package that it belongs to, in the table of the page."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The modules of aeimg that a file imports anywhere (in functions, for type checkers) or names in a string."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            dotted = node.module.split(".") if node.module else []
            if node.level == depth:
                yield from dotted[:1] or [alias.name for alias in node.names]
            elif not node.level and dotted[:1] == ["aeimg"]:
                yield from dotted[1:2] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("aeimg."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"^aeimg\.(\w+)(?:\.\w+)*$", node.value)


def misplaced(path: Path) -> list[str]:
    top = named(path)
    if top == "__init__":
        return []
    if top not in ORDER:
        return [f"{top} has no place in docs/architecture.md"]
    names = {name for name in imported(path) if name in ORDER} - {top}
    return [f"{top} imports {name}" for name in sorted(names) if ORDER.index(name) > ORDER.index(top)]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_modules_before_it(path):
    assert misplaced(path) == []


def test_the_page_names_each_module_once():
    assert len(ORDER) == len(set(ORDER)) > 30
    assert {named(path) for path in MODULES} - set(ORDER) == {"__init__"}


@pytest.mark.parametrize(
    "code",
    ["from .engine import process", "def f():\n    from . import engine", "import aeimg.engine", "x = 'aeimg.engine'",
     "if TYPE_CHECKING:\n    from .engine import Summary", "from aeimg import engine", "x = 'aeimg.models.unet'"],
)  # fmt: skip
def test_every_kind_of_import_is_seen(code, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "images.py").write_text(code)
    (found,) = misplaced(tmp_path / "images.py")
    assert found in ("images imports engine", "images imports models")


# -- short functions -------------------------------------------------------------------------------------------------

LINES, PARAMETERS = 60, 7
DOORS = {
    "distributed.process",
    "engine.process",
    "comparison.compare",
    "explore.features",
    "explore.sample",
    "explore.score",
    "explore.plot_latents",
    "bench.compress.bench_compress",
    "bench.denoise.bench_denoise",
    "training.run.train",
}
"""Public functions whose docstrings explain every parameter."""


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not any(
            "overload" in ast.unparse(decorator) for decorator in node.decorator_list
        ):
            yield f"{'.'.join(path.relative_to(PACKAGE).with_suffix('').parts)}.{node.name}", node


def parameters(node: ast.FunctionDef) -> list[str]:
    names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_are_short_and_take_few_parameters(path):
    for name, node in functions(path):
        taken = parameters(node)
        if name in DOORS:
            explained = ast.get_docstring(node) or ""
            assert [one for one in taken if not re.search(rf"\b{one}\b", explained)] == [], name
            continue
        assert len(taken) <= PARAMETERS, f"{name} takes {len(taken)} parameters"
        assert node.end_lineno - node.lineno < LINES, f"{name} has {node.end_lineno - node.lineno + 1} lines"


# -- the public face -------------------------------------------------------------------------------------------------


def test_help_does_not_wait_for_torch_numpy_or_pillow():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom aeimg.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "assert CliRunner().invoke(main, ['--version']).exit_code == 0\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'constriction'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_public_is_there_and_sorted():
    assert aeimg.__all__ == sorted(aeimg.__all__)
    assert all(hasattr(aeimg, name) for name in aeimg.__all__)


def test_every_error_is_in_the_tree_that_the_docstring_draws():
    from aeimg import errors

    names = [name for name, value in vars(errors).items() if isinstance(value, type)]
    assert names
    assert all(name in errors.__doc__ for name in names)
    assert all(issubclass(getattr(errors, name), errors.AeimgError) for name in names)
