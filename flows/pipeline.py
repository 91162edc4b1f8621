"""The whole pipeline as one flow: source → chunks → GRPO → evaluation → submission → report."""

from typing import Any

from prefect import flow

from flows.prepare import Run, open_workspace, prepare
from mathtune.errors import ChainError, TrainingError
from mathtune.ranges import chunk_ranges
from mathtune.recipe import Recipe
from mathtune.recipe_source import Name
from mathtune.stages.ahead import next_tokenised
from mathtune.stages.judge import Decision
from mathtune.stages.train import nothing_accepted
from tasks.training import grpo, train_chunk


@flow(name="pipeline", flow_run_name="{recipe.name}", persist_result=False)
def pipeline(recipe: Recipe, decision: Decision | None = None, execution: Name | None = None) -> dict[str, Any]:
    """Runs a recipe from its source to its report; what is there already is served, not computed again.

    Args:
        recipe: what to do.
        decision: about a link that was rejected because it is worse than its parent.
        execution: name of this execution; default: by time.

    Returns:
        ``{"report": path, "record": RunRecord as plain values}``.
    """
    with open_workspace(recipe, execution) as work:
        run = prepare(work, decision)
        try:
            train(run, decision)
            links = work.chain.links()
            if not links:
                raise nothing_accepted(work)
            run.submit(links[-1])
        except (TrainingError, ChainError):  # worse than its parent, all skipped, one answer only: the report shows why
            run.report()
            raise
        return run.report()


def train(run: Run, decision: Decision | None) -> None:
    """Every range of the recipe and its refinement, each judged before the next."""
    recipe, work = run.work.recipe, run.work
    ranges = chunk_ranges(recipe.chunks, run.pool_rows)  # before anything is computed
    run.evaluate(None)
    for wanted, following in zip(ranges, [*ranges[1:], None], strict=True):
        with next_tokenised(work, run.base, run.parts, wanted, following):
            run.place(train_chunk(work, run.base, run.parts, wanted), decision)
    if recipe.grpo:
        run.check_prompts()
        run.place(grpo(work, run.base, run.parts), decision)
