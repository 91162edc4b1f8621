"""Recipes and sweeps by name: the YAML files of ``recipes/`` in the working directory, and those that ship with the package.

A file of the working directory hides one of the package with the same name. Leaves out reading them (``mathtune.recipe_file``,
``mathtune.sweep``).
"""

import re
from pathlib import Path

from mathtune.errors import RecipeError

FOLDER = Path("recipes")
SHIPPED = Path(__file__).parents[1] / "recipes"
SWEEP = re.compile(r"^grid:", re.MULTILINE)


def recipe_files() -> dict[str, Path]:
    """The recipes by name."""
    return {name: path for name, path in _files().items() if not _is_sweep(path)}


def sweep_files() -> dict[str, Path]:
    """The sweeps by name."""
    return {name: path for name, path in _files().items() if _is_sweep(path)}


def named_file(files: dict[str, Path], name: str) -> Path:
    """The file of a name.

    Raises:
        RecipeError: there is none.
    """
    if name not in files:
        raise RecipeError(f"there is no {name}.yaml", where=str(FOLDER.absolute()), remedy=f"there are: {', '.join(files)}")
    return files[name]


def _files() -> dict[str, Path]:
    return {path.stem: path for folder in (SHIPPED, FOLDER) for path in sorted(folder.glob("*.yaml"))}


def _is_sweep(path: Path) -> bool:
    return SWEEP.search(path.read_text(errors="replace")) is not None
