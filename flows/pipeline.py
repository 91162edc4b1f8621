"""The whole pipeline as one flow: source → chunks → GRPO → evaluation → submission → report."""

from typing import Any

from prefect import flow

from flows.prepare import open_workspace, prepare
from mathtune.errors import TrainingError
from mathtune.ranges import chunk_ranges
from mathtune.recipe import Recipe
from mathtune.recipe_source import Name
from tasks.results import submit
from tasks.training import grpo, train_chunk


@flow(name="pipeline", flow_run_name="{recipe.name}", persist_result=False)
def pipeline(recipe: Recipe, execution: Name | None = None) -> dict[str, Any]:
    """Runs a recipe from its source to its report; what is there already is served, not computed again.

    Args:
        recipe: what to do.
        execution: name of this execution; default: by time.

    Returns:
        ``{"report": path, "record": RunRecord as plain values}``.
    """
    with open_workspace(recipe, execution) as work:
        run = prepare(work)
        ranges = chunk_ranges(recipe.chunks, run.pool_rows)
        run.evaluate(None)
        for wanted in ranges:
            link = train_chunk(work, run.base, run.parts, wanted)
            run.evaluate(link)
        if recipe.grpo:
            link = grpo(work, run.base, run.parts)
            run.evaluate(link)
        try:
            run.submission = submit(work, run.base, run.data["download"], link)
        except TrainingError:  # a verifier that says one thing only: the report shows why
            run.report()
            raise
        return run.report()
