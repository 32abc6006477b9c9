"""The house keeps its order: modules import only from those before them, and start-up stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import aeimg

ORDER = [
    "errors", "paths", "manifest", "images", "tiles", "metrics", "plots", "container", "entropy", "models", "noise",
    "contract", "weights", "devices", "hyperprior_codec", "patch_codec", "spandrel_adapter", "registry", "stream",
    "tasks", "engine", "exports", "explore", "distributed", "data", "optim", "objectives", "families", "train", "bench",
    "report",
    "cli", "__main__",
]  # fmt: skip
PACKAGE = Path(aeimg.__file__).parent


def imported(path: Path) -> set[str]:
    """The modules of aeimg that a file imports when it is itself imported (not inside functions)."""
    depth = len(path.relative_to(PACKAGE).parts)
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level == depth:
                names |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
            else:
                names.add(path.parent.name)
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_modules_before_it(path):
    top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if top == "__init__":
        return
    assert top in ORDER, "a new module needs a place in the order"
    for name in imported(path) - {top, "__version__"}:
        assert ORDER.index(name) < ORDER.index(top), f"{top} imports {name}"


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
