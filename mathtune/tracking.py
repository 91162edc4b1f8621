"""Weights & Biases: starting a run there, on this machine where that fails, and the report's pictures and figures.

Leaves out what a training logs, which is Trainer's. All is told by argument, since what is left in the environment would be
the next job's of the same engine, too.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mathtune.events import Emit
from mathtune.recipe import Tracking
from mathtune.run_record import RunRecord


def begin_run(emit: Emit, what: str, **options: Any):
    """A W&B run: on this machine where W&B cannot be reached or refuses the key.

    Args:
        emit: hears of that.
        what: goes on all the same, for people.
        options: of ``wandb.init``.
    """
    import wandb

    try:
        return wandb.init(**options)
    except wandb.Error as error:
        offline = wandb.init(**options | {"mode": "offline"})
        emit("notice", text=f"W&B: {str(error).splitlines()[0]}; {what}, and its figures are kept on this "
             f"machine: wandb sync {Path(offline.dir).parent} sends them later")
        return offline


def run_options(tracking: Tracking, name: str) -> dict[str, Any]:
    """Options of ``wandb.init`` for a run of a recipe; offline without WANDB_API_KEY.

    Args:
        tracking: where to.
        name: of the run.
    """
    import wandb

    timeouts = {"init_timeout": float(os.environ.get("WANDB_INIT_TIMEOUT", 30)),
                "finish_timeout": float(os.environ.get("WANDB_FINISH_TIMEOUT", 60))}  # by default it waits for ever
    return {"project": tracking.project, "entity": tracking.entity, "group": tracking.group, "name": name,
            "mode": None if os.environ.get("WANDB_API_KEY") else "offline", "settings": wandb.Settings(**timeouts)}


@contextmanager
def tracked(tracking: Tracking, title: str, emit: Emit) -> Iterator[None]:
    """A training's W&B run, to which Trainer logs inside; the next chunk's is another.

    Args:
        tracking: where to.
        title: of the training, its name where the recipe gives none.
        emit: hears where it is kept if W&B is away.
    """
    import wandb

    begin_run(emit, "the training goes on", **run_options(tracking, tracking.name or title))
    try:
        yield
    finally:
        try:
            wandb.finish()
        except Exception as error:  # of whatever kind W&B lets out
            emit("notice", text=f"W&B did not take all of the training's figures: {error}")


def log_report(tracking: Tracking, record: RunRecord, figures: dict[str, Any], pictures: dict[str, Path], emit: Emit) -> None:
    """Logs the report's pictures and key figures as a W&B run of job type "report"; offline without WANDB_API_KEY.

    Args:
        tracking: where to.
        record: the run's record.
        figures: the run's summary there.
        pictures: PNG files by title.
        emit: hears where it is kept if W&B is away, and what W&B did not take: no run fails for it.
    """
    import wandb

    run = begin_run(emit, "the report is written", **run_options(tracking, f"{tracking.name or record.name} report"),
                    job_type="report",
                    config={"chain": record.chain, "task": record.task, "base_model": record.base_model})
    try:
        try:
            run.log({f"report/{path.stem}": wandb.Image(str(path), caption=title) for title, path in pictures.items()})
            run.summary.update(figures)
        finally:
            run.finish()
    except Exception as error:  # of whatever kind W&B lets out
        emit("notice", text=f"W&B did not take all of the report: {error}; the report itself is written")
