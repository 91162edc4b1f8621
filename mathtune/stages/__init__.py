"""The stages of a run as plain functions: a workspace and the results before in, a result out. No Prefect here.

Each says through ``Outcome`` whether it computed or found its result, so that whoever calls it can say so.
"""

from dataclasses import dataclass
from typing import Any

from mathtune.recipe import Model, Recipe


def pinned_model(recipe: Recipe, base: dict[str, Any]) -> Model:
    """The recipe's base at the commit that was inspected: a branch on the Hub may move during a run."""
    return recipe.model.model_copy(update={"revision": base["revision"]}) if base["revision"] else recipe.model


@dataclass(frozen=True)
class Outcome:
    """A stage's result.

    Attributes:
        value: what the next stage needs: a reference, never a table.
        cached: it was there already.
        summary: one line for people.
    """

    value: Any
    cached: bool
    summary: str
