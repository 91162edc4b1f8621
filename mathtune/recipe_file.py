"""Reads a recipe from YAML with ``key=value`` overrides, and reports every mistake at once with its path."""

import difflib
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mathtune.errors import RecipeError
from mathtune.recipe import Recipe


def load_recipe(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe in a YAML file.

    Args:
        path: the file.
        overrides: ``"sft.learning_rate=1e-4"``; the value is read as YAML.

    Raises:
        RecipeError: the file is missing or not YAML, or the recipe is wrong; lists every mistake.
    """
    path = Path(path)
    try:
        values = yaml.load(path.read_text(), Loader=_Loader)
    except OSError as error:
        raise RecipeError(f"cannot read the recipe: {error.strerror}",
                          where=str(path), remedy="see recipes/ for those that ship") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"not YAML: {error}", where=str(path)) from error
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping of keys to values", where=str(path))
    for override in overrides:
        apply_override(values, override)
    return parse_recipe(values, where=str(path))


def parse_recipe(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """The recipe that plain values describe; every mistake is reported at once."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        mistakes = [_describe(mistake) for mistake in error.errors()]
        raise RecipeError("\n".join([_plural(len(mistakes)), *(f"  {line}" for line in mistakes)]), where=where) from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every default written out; ``load_recipe`` reads it back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-4 for a string and yes for a boolean; a recipe means 1e-4 as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def apply_override(values: dict[str, Any], override: str) -> None:
    """Sets ``section.key=value`` in a recipe's plain values; the value is read as YAML.

    Raises:
        RecipeError: it is not of this form, or ``section`` is no section.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override!r} is not key=value", where="command line", remedy="for example sft.epochs=2")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise RecipeError(f"{parent} holds a value, not a section", where=f"override {override}")
    try:
        values[last] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value is not YAML: {error}", where=f"override {override}", remedy="put it in quotes") from error


def _describe(mistake: dict[str, Any]) -> str:
    path = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        known = list(_section_at(mistake["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(mistake["loc"][-1]), known, n=1, cutoff=0.5)
        return f"{path}: unknown key" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}")
    if mistake["type"] == "missing":
        return f"{path}: missing"
    message = mistake["msg"].removeprefix("Value error, ")
    got = f" (got {mistake['input']!r})" if not isinstance(mistake["input"], dict | BaseModel) else ""
    return f"{path}: {message}{got}" if path else f"{message}{got}"


def _section_at(path: tuple) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for part in path:
        annotation = section.model_fields[part].annotation
        options = [option for option in (annotation, *get_args(annotation)) if isinstance(option, type)]
        section = next(option for option in options if issubclass(option, BaseModel))
    return section


def _plural(count: int) -> str:
    return f"{count} mistake{'s' if count > 1 else ''} in the recipe"
