"""A sweep: one recipe under several settings. Reads its YAML and makes of it the recipes of all trials, or every mistake.

    name: rank-sweep
    recipe: nyu_verifier_llama31_8b.yaml     # beside this file
    set: {chunks.end: 20000}                 # for every trial
    grid:                                    # a list is alternatives; all combinations
      lora.rank: [16, 32, 64]
      sft.learning_rate: [1e-4, 2e-4]

A ``grid`` may also be a list of such mappings (as scikit-learn's ``ParameterGrid``): keys that move together stand in one
mapping, ``[{lora.rank: 16, lora.alpha: 32}, {lora.rank: 32, lora.alpha: 64}]``. Leaves out running (``flows.sweep``) and what
is found (``mathtune.sweep_record``).
"""

import copy
import itertools
import re
from pathlib import Path
from typing import Any

from pydantic import Field

from mathtune.digests import digest_value
from mathtune.errors import RecipeError
from mathtune.recipe import Recipe
from mathtune.recipe_file import listed, parse_override, read_yaml, set_value, validated
from mathtune.recipe_source import Name, Section

Grid = dict[str, Any] | list[dict[str, Any]]
# Trials are compared row by row, and each needs a chain of its own.
FIXED = ("name", "chain", "task", "source", "balance", "validation", "storage", "evaluation.rows")
SHORT = {"learning_rate": "lr", "examples_per_step": "batch"}
LONGEST = 64


class SweepFile(Section):
    """What a sweep's YAML holds."""

    name: Name = Field(description="names the sweep, its folder runs/NAME/, and its trials NAME-rank16 …")
    recipe: str = Field(description="recipe of all trials, relative to the sweep's file")
    set: dict[str, Any] = Field({}, description="dotted keys of the recipe and their values, for every trial")
    grid: Grid = Field(description="dotted keys of the recipe and lists of values, or a list of such mappings")


class Trial(Section):
    """One setting.

    Attributes:
        name: of its run and chain.
        values: by dotted key: what it is tried with.
        recipe: whole.
    """

    name: Name
    values: dict[str, Any]
    recipe: Recipe


class Sweep(Section):
    """All trials of a sweep, valid and different from each other."""

    name: Name
    trials: tuple[Trial, ...]


def load_sweep(path: Path, overrides: tuple[str, ...] = ()) -> Sweep:
    """The sweep in a YAML file.

    Args:
        path: the file.
        overrides: ``"sft.epochs=2"`` for every trial; ``"name=NEW"`` names the sweep.

    Raises:
        RecipeError: a file is missing or not YAML, or sweep or trials are wrong; lists every mistake.
    """
    values = read_yaml(path, "sweep")
    common = dict(parse_override(override) for override in overrides)
    if "name" in common:
        values["name"] = common.pop("name")
    file, mistakes = validated(SweepFile, values)
    if file is None:
        raise RecipeError(listed(mistakes, "sweep"), where=str(path))
    settings = {**file.set, **common}
    combinations = trial_values(file.grid)
    mistakes = grid_mistakes(combinations, settings)
    recipe = read_yaml(path.parent / file.recipe, "recipe")
    trials = []
    for chosen in combinations:
        trial, wrong = make_trial(file.name, recipe, settings, chosen)
        mistakes += [line for line in wrong if line not in mistakes]
        trials += [trial] if trial else []
    if mistakes:
        raise RecipeError(listed(mistakes, "sweep"), where=str(path))
    return Sweep(name=file.name, trials=tuple(trials))


def trial_values(grid: Grid) -> list[dict[str, Any]]:
    """The values of every trial by dotted key: of each mapping all combinations, in the order in which they are written."""
    chosen = []
    for part in grid if isinstance(grid, list) else [grid]:
        alternatives = [value if isinstance(value, list) else [value] for value in part.values()]
        chosen += [dict(zip(part, values, strict=True)) for values in itertools.product(*alternatives)]
    return chosen


def grid_mistakes(combinations: list[dict[str, Any]], settings: dict[str, Any]) -> list[str]:
    """What is wrong with a grid before any recipe is made of it."""
    mistakes = []
    if len(combinations) < 2:
        mistakes.append(f"grid: {len(combinations)} trials: a sweep compares two at least")
    for key in dict.fromkeys(key for chosen in combinations for key in chosen):
        if fixed := next((name for name in FIXED if key == name or key.startswith(f"{name}.")), None):
            mistakes.append(f"grid: {key}: trials run on the same rows, each in a chain of its own: {fixed} cannot differ")
        if key in settings:
            mistakes.append(f"grid: {key}: also set for every trial")
    mistakes += [f"grid: trial {i} tries nothing" for i, chosen in enumerate(combinations, 1) if not chosen]
    names = [trial_name("", chosen) for chosen in combinations]
    mistakes += [f"grid: trial {i + 1} is called as trial {names.index(name) + 1}: {chosen}"
                 for i, (name, chosen) in enumerate(zip(names, combinations, strict=True)) if names.index(name) < i]
    mistakes += [f"set: {key}: each trial is named after the sweep" for key in ("name", "chain") if key in settings]
    return mistakes


def make_trial(sweep: str, recipe: dict[str, Any], settings: dict[str, Any],
               chosen: dict[str, Any]) -> tuple[Trial | None, list[str]]:
    """A trial, or None and what is wrong with its recipe."""
    name, values = trial_name(sweep, chosen), copy.deepcopy(recipe)
    try:
        for key, value in {**settings, **chosen, "name": name, "chain": name}.items():
            set_value(values, key, value)
    except RecipeError as error:
        return None, [str(error)]
    made, mistakes = validated(Recipe, values)
    if made is None:
        of_trial = [line.partition(": ")[0] in chosen for line in mistakes]
        return None, [f"trial {name}: {line}" if own else line for own, line in zip(of_trial, mistakes, strict=True)]
    if made.tracking and made.tracking.group is None:
        made = made.model_copy(update={"tracking": made.tracking.model_copy(update={"group": sweep})})
    return Trial(name=name, values=chosen, recipe=made), []


def trial_name(sweep: str, chosen: dict[str, Any]) -> str:
    """``SWEEP-rank16-lr2e-4``: of the sweep and the trial alone, so that trials can be added to a grid later."""
    parts = [f"{short_key(key)}{_plain(value)}" for key, value in chosen.items()]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([sweep, *parts])).rstrip("-")
    return name if len(name) <= LONGEST else f"{name[:LONGEST - 9]}-{digest_value(chosen)[:8]}"


def short_key(key: str) -> str:
    """What a dotted key is called in names and tables: ``lr`` for ``sft.learning_rate``."""
    last = key.rpartition(".")[2]
    return SHORT.get(last, last)


def short_value(value: Any) -> str:
    """A value for names and tables: ``2e-4`` for 0.0002."""
    if isinstance(value, float) and 0 < abs(value) < 1e-2:
        digits, _, power = f"{value:e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    if isinstance(value, list):
        return ", ".join(map(short_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> str:
    return short_value(value).replace(", ", "-").replace("/", "-")


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The same recipe for a worker that works in another folder of this machine."""
    def absolute(text: str | None) -> str | None:
        return text if text is None or "://" in text else str(Path(text).absolute())

    storage, source, model = recipe.storage, recipe.source, recipe.model
    places = {name: absolute(getattr(storage, name)) for name in ("root", "cache", "runs")}
    files = {name: absolute(getattr(source, name)) for name in ("path", "test_path")}
    base = {"base": absolute(model.base)} if Path(model.base).is_dir() else {}
    return recipe.model_copy(update={"storage": storage.model_copy(update=places), "source": source.model_copy(update=files),
                                     "model": model.model_copy(update=base)})
