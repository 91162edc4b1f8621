"""Flows that do one part: train a range, evaluate the chain, submit from a link."""

from typing import Any

from prefect import flow

from flows.prepare import Run, open_workspace, prepare
from mathtune.chain import Link
from mathtune.errors import ChainError, PoolUsedUp, RangeError, RejectedLink, TrainingError
from mathtune.ranges import Range, check_asked
from mathtune.recipe import Recipe
from mathtune.recipe_source import Name
from mathtune.stages.judge import Decision
from tasks.deployment import name_run
from tasks.training import train_chunk


@flow(name="train-range", flow_run_name="{recipe.name}", persist_result=False)
def train_range(recipe: Recipe, start: int | None = None, end: int | None = None, next: int | None = None,
                allow_gap: bool = False, decision: Decision | None = None, execution: Name | None = None) -> dict[str, Any]:
    """Trains one range on top of the chain's head and evaluates it.

    Args:
        recipe: what to do.
        start, end: the range's pool rows ``[start, end)``.
        next: instead of start and end: so many rows after the last trained one.
        allow_gap: let the range leave rows out.
        decision: about a link that was rejected because it is worse than its parent.
        execution: name of this execution.
    """
    check_asked(start, end, next)
    with open_workspace(recipe, execution) as work:
        run = prepare(work, decision)
        wanted = requested_range(run, start, end, next)
        name_run(f"{recipe.name} {wanted}")
        try:
            run.place(train_chunk(work, run.base, run.parts, wanted, allow_gap), decision)
        except RejectedLink:
            run.report()
            raise
        return run.report()


@flow(name="evaluate", flow_run_name="{recipe.name}", persist_result=False)
def evaluate_chain(recipe: Recipe, execution: Name | None = None) -> dict[str, Any]:
    """Scores the base and every link of the chain on the fixed validation rows."""
    with open_workspace(recipe, execution) as work:
        run = prepare(work)
        return run.report()


@flow(name="submit", flow_run_name="{recipe.name}", persist_result=False)
def submit_link(recipe: Recipe, link: int | None = None, execution: Name | None = None) -> dict[str, Any]:
    """Writes predictions, and for a verifier the submission, from one link.

    Args:
        recipe: what to do.
        link: its number; default: the head.
        execution: name of this execution.
    """
    with open_workspace(recipe, execution) as work:
        run = prepare(work)
        chosen = requested_link(run, link)
        run.evaluate(chosen)
        try:
            run.submit(chosen)
        except TrainingError:
            run.report()
            raise
        return run.report()


def requested_range(run: Run, start: int | None, end: int | None, next: int | None) -> Range:
    """The range asked for, checked against the pool.

    Raises:
        RangeError: it is empty, or reaches beyond the pool.
        PoolUsedUp: the next rows are asked for, and there are none.
    """
    trained = [entry.link.range for entry in run.work.chain.entries() if entry.link.range]
    after = trained[-1].end if trained else run.work.recipe.chunks.start
    if next is not None:
        if after >= run.pool_rows:
            raise PoolUsedUp(f"all {run.pool_rows} rows of the pool are trained", where=f"chain {run.work.chain.name}",
                             remedy="add data and start a new chain: chain=NEW")
        return Range(after, min(after + next, run.pool_rows))
    wanted = Range(start, end)
    if wanted.end > run.pool_rows:
        raise RangeError(f"{wanted} reaches beyond the pool's {run.pool_rows} rows", where="range",
                         remedy=f"--start {after} --end {run.pool_rows}" if after < run.pool_rows else "")
    return wanted


def requested_link(run: Run, number: int | None) -> Link:
    """The link with a number, or the head.

    Raises:
        ChainError: there is none.
    """
    if not run.links:
        raise ChainError("the chain has no link yet", where=f"chain {run.work.chain.name}",
                         remedy="mathtune run RECIPE, or mathtune train RECIPE --next N")
    chosen = [link for link in run.links if link.number == (number or run.links[-1].number)]
    if not chosen:
        raise ChainError(f"there is no link {number}; there are {', '.join(str(link.number) for link in run.links)}",
                         where=f"chain {run.work.chain.name}")
    return chosen[0]
