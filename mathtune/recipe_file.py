"""Reads a recipe from YAML with ``key=value`` overrides, and reports every mistake at once with its path."""

import difflib
import re
from functools import reduce
from operator import getitem
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from mathtune.credentials import refuse_credentials
from mathtune.errors import RecipeError
from mathtune.recipe import Recipe

Checked = TypeVar("Checked", bound=BaseModel)
# How mistakes call the kinds of values, and the bounds of numbers.
NAMES = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", tuple: "a list", list: "a list",
         dict: "a mapping"}
BOUNDS = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}


def load_recipe(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe in a YAML file.

    Args:
        path: the file.
        overrides: ``"sft.learning_rate=1e-4"``; the value is read as YAML.

    Raises:
        RecipeError: the file is missing or not YAML, or the recipe is wrong; lists every mistake.
    """
    path = Path(path)
    values = read_yaml(path, "recipe")
    if "grid" in values:
        raise RecipeError("this is a sweep of recipes", where=str(path), remedy=f"mathtune sweep {path}")
    for override in overrides:
        apply_override(values, override)
    return parse_recipe(values, where=str(path))


def parse_recipe(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """The recipe that plain values describe; every mistake is reported at once.

    Raises:
        RecipeError: it is wrong, or holds a password or token.
    """
    refuse_credentials(values, where)
    recipe, mistakes = validated(Recipe, values)
    if recipe is None:
        raise RecipeError(listed(mistakes, "recipe"), where=where)
    return recipe


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        what: the file holds, for errors: a recipe, a sweep.

    Raises:
        RecipeError: the file is missing, not YAML, or no mapping.
    """
    try:
        values = yaml.load(path.read_text(), Loader=_Loader)
    except OSError as error:
        raise RecipeError(f"cannot read the {what}: {error.strerror}",
                          where=str(path), remedy="see recipes/ for those that ship") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"not YAML: {error}", where=str(path)) from error
    if not isinstance(values, dict):
        raise RecipeError(f"a {what} is a mapping of keys to values", where=str(path))
    return values


def validated(section: type[Checked], values: dict[str, Any]) -> tuple[Checked | None, list[str]]:
    """The section that plain values describe, or None and every mistake in them, a line each."""
    try:
        return section.model_validate(values), []
    except ValidationError as error:
        return None, list(dict.fromkeys(_describe(section, mistake, values) for mistake in error.errors()))


def listed(mistakes: list[str], what: str) -> str:
    """Mistakes in a recipe or sweep as one text."""
    counted = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''} in the {what}"
    return "\n".join([counted, *(f"  {line}" for line in mistakes)])


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
    set_value(values, *parse_override(override))


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of ``section.key=value``; the value is read as YAML.

    Raises:
        RecipeError: it is not of this form, or holds a password or token.
    """
    key, equals, text = override.partition("=")
    refuse_credentials({key: text} if equals else {"it": override}, "override")
    if not equals or not key:
        raise RecipeError(f"{override!r} is not key=value", where="command line", remedy="for example sft.epochs=2")
    try:
        return key, yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value is not YAML: {error}", where=f"override {override}", remedy="put it in quotes") from error


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets ``section.key`` in a recipe's plain values.

    Raises:
        RecipeError: ``section`` is no section.
    """
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise RecipeError(f"{parent} holds a value, not a section", where=f"override {key}={value}")
    values[last] = value


def _describe(root: type[BaseModel], mistake: dict[str, Any], values: dict[str, Any]) -> str:
    key, kind, below = _field_at(root, mistake["loc"])
    path = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        section, known = ".".join(key), list(_section_of(kind).model_fields)
        near = difflib.get_close_matches(str(below[0]), known, n=1, cutoff=0.5)
        if near:
            return f"{path}: unknown key; did you mean {section}{'.' if section else ''}{near[0]}?"
        return f"{path}: unknown key; known: {', '.join(known)}"
    if mistake["type"] == "missing":
        return f"{path}: missing"
    if below and len(_options(kind)) > 1:  # pydantic tells a mistake for each kind that the value could have had
        return f"{'.'.join(key)}: should be {allowed(kind)} (got {reduce(getitem, key, values)!r})"
    message = mistake["msg"].removeprefix("Value error, ")
    got = f" (got {mistake['input']!r})" if not isinstance(mistake["input"], dict | BaseModel) else ""
    return f"{path}: {message}{got}" if path else f"{message}{got}"


def allowed(kind: Any) -> str:
    """The values that a field takes, in words: "a number from 0 to 1, or fitted"."""
    return ", or ".join(_words(option) for option in sorted(_options(kind), key=lambda one: get_origin(one) is Literal))


def _words(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        kind, *rules = get_args(kind)
        bounds = [(word, getattr(one, name)) for rule in rules for one in getattr(rule, "metadata", ())
                  for name, word in BOUNDS.items() if hasattr(one, name)]
        if [word for word, _ in bounds] == ["from", "to"]:
            return f"{_words(kind)} from {bounds[0][1]} to {bounds[1][1]}"
        return " ".join([_words(kind), *(f"{word} {bound}" for word, bound in bounds)])
    if get_origin(kind) is Literal:
        return " or ".join(str(value) for value in get_args(kind))
    return NAMES.get(get_origin(kind) or kind, "a section")


def _options(kind: Any) -> list[Any]:
    """The kinds of value that an annotation allows besides null."""
    return [one for one in get_args(kind) if one is not NoneType] if get_origin(kind) in (Union, UnionType) else [kind]


def _section_of(kind: Any) -> type[BaseModel] | None:
    return next((one for one in _options(kind) if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _field_at(root: type[BaseModel], path: tuple) -> tuple[list[str], Any, tuple]:
    """The field that an error's path leads to: its key, its annotation, and what of the path lies inside the value."""
    key, kind = [], root
    for place, part in enumerate(path):
        section = _section_of(kind)
        if section is None or part not in section.model_fields:
            return key, kind, path[place:]
        key.append(part)
        kind = section.model_fields[part].annotation
    return key, kind, ()
