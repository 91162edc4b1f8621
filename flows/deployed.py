"""The flows that a Prefect server's deployments run (``prefect.yaml``): recipes by name, and what a form can ask for.

What people change stands at the top level: ``-p`` replaces a parameter whole, and so does the UI's form. Each does what the
flow of the same name does for the command line, once the run has its secrets. Leaves out everything else.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State
from pydantic import Field, WithJsonSchema

from flows import parts, pipeline, sweep
from mathtune.credentials import CREDENTIALS
from mathtune.errors import MathtuneError, PoolUsedUp
from mathtune.parent import end_with_named_parent
from mathtune.recipe import Recipe
from mathtune.recipe_file import load_recipe
from mathtune.recipe_folder import named_file, recipe_files, sweep_files
from mathtune.recipe_source import Count, Name, Positive
from mathtune.stages.judge import Decision
from mathtune.sweep import load_sweep
from tasks.deployment import check_attempts, default_parameters, end_schedules, load_secrets

# Names that a form offers: of the files that are there when the deployments are made.
RecipeName = Literal[tuple(recipe_files())]
SweepName = Literal[tuple(sweep_files())]
# Of a form: it shows int | None as a switch between the two, so that 0 and "" stand for what is not asked for.
Choice = Annotated[Decision | None, WithJsonSchema({"enum": [*get_args(Decision), None]})]
# Prefect's server holds a run's parameters against this before it keeps them, in clear.
SECRET_KEYS = r"(^|[._])(token|password|secret|api_key)="
Override = Annotated[str, Field(json_schema_extra={"not": {"pattern": f"{CREDENTIALS}|{SECRET_KEYS}"}})]
Overrides = tuple[Override, ...]
USED_UP = "UsedUp"


def told(body: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: an error of ours fails the run with its words as the state's message, and without a traceback."""

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return body(*args, **kwargs)
        except MathtuneError as error:
            return Failed(message=str(error))

    return run


def range_name() -> str:
    """``demo [1200:1800)`` of what is asked for, until the run knows which rows are the next."""
    asked = flow_run.parameters
    start, end, next = asked_rows(asked.get("start", 0), asked.get("end", 0), asked.get("next", 0))
    return f"{asked['recipe']} " + (f"next {next}" if next else f"[{start or 0}:{end or 0})")


def asked_rows(start: int, end: int, next: int) -> tuple[int | None, int | None, int | None]:
    """What the flow of the command line takes for start, end and next. Where somebody asks for a range of a deployment that by
    itself takes the next rows (a nightly one), its own ``next`` stands for nothing."""
    if not (start or end):
        return (None, None, next) if next else (start, None, None)
    if next and next == default_parameters().get("next"):
        next = 0
    return start, end or None, next or None


@flow(name="pipeline", flow_run_name="{recipe}", persist_result=False)
@told
def run_pipeline(recipe: RecipeName, overrides: Overrides = (), decision: Choice = None) -> dict[str, Any]:
    """Runs a recipe from its source to its report; what is there already is served, not computed again.

    Args:
        recipe: a file of recipes/, without .yaml. A new one is offered once bootstrap was run again.
        overrides: keys of the recipe to change, each key=value, for example sft.learning_rate=1e-4 or chain=second.
        decision: about a link that was rejected because it is worse than its parent.
    """
    return pipeline.pipeline.fn(begin(recipe, overrides), decision=decision)


@flow(name="train-range", flow_run_name=range_name, persist_result=False)
@told
def train_range(recipe: RecipeName, start: Count = 0, end: Count = 0, next: Count = 0, overrides: Overrides = (),
                allow_gap: bool = False, decision: Choice = None) -> dict[str, Any] | State:
    """Trains one range of the pool on top of the chain's head, and evaluates it on the fixed validation rows.

    Where the next rows are asked for and none is left, the run ends well, and the schedules that ask for them are paused.

    Args:
        recipe: a file of recipes/, without .yaml. A new one is offered once bootstrap was run again.
        start: first row of the range.
        end: the row after its last; 0: not given.
        next: instead of start and end: so many rows after the last trained one; 0: not given.
        overrides: keys of the recipe to change, each key=value, for example sft.learning_rate=1e-4 or chain=second.
        allow_gap: let the range leave rows out.
        decision: about a link that was rejected because it is worse than its parent.
    """
    try:
        whole = begin(recipe, overrides)
        return parts.train_range.fn(whole, *asked_rows(start, end, next), allow_gap, decision)
    except PoolUsedUp as error:
        ended = end_schedules()
        return Completed(name=USED_UP, message=error.what + (f"; {ended} schedules paused" if ended else ""))


@flow(name="evaluate", flow_run_name="{recipe}", persist_result=False)
@told
def evaluate_chain(recipe: RecipeName, overrides: Overrides = ()) -> dict[str, Any]:
    """Scores the base and every link of the chain on the fixed validation rows; what is scored already is served.

    Args:
        recipe: a file of recipes/, without .yaml. A new one is offered once bootstrap was run again.
        overrides: keys of the recipe to change, each key=value, for example sft.learning_rate=1e-4 or chain=second.
    """
    return parts.evaluate_chain.fn(begin(recipe, overrides))


@flow(name="submit", flow_run_name="{recipe}", persist_result=False)
@told
def submit_link(recipe: RecipeName, link: Count = 0, overrides: Overrides = ()) -> dict[str, Any]:
    """Writes predictions, and for a verifier the submission, from one link.

    Args:
        recipe: a file of recipes/, without .yaml. A new one is offered once bootstrap was run again.
        link: its number; 0: the last of the chain.
        overrides: keys of the recipe to change, each key=value, for example sft.learning_rate=1e-4 or chain=second.
    """
    return parts.submit_link.fn(begin(recipe, overrides), link=link or None)


@flow(name="sweep", flow_run_name="{sweep_file}", persist_result=False)
@told
def run_sweep(sweep_file: SweepName, overrides: Overrides = (), parallel: Positive = 1,
              deployment: str = "") -> dict[str, Any]:
    """Runs a recipe under several settings, each in a chain of its own on the same rows, and says which differences are real.

    Args:
        sweep_file: a file of recipes/ with a grid, without .yaml.
        overrides: keys to change in every trial, each key=value, for example sft.epochs=2.
        parallel: trials at a time on the worker's machine, each on GPUs of its own.
        deployment: instead, as runs of this deployment, side by side on the pool's other workers: pipeline/trial.
    """
    take_secrets()
    return sweep.sweep.fn(load_sweep(named_file(sweep_files(), sweep_file), overrides), parallel, deployment or None)


@flow(name="pipeline", flow_run_name="{recipe.name}", persist_result=False)
@told
def run_trial(recipe: Recipe, decision: Choice = None, execution: Name | None = None) -> dict[str, Any]:
    """Runs a recipe that is given as a whole, as a sweep does for each of its trials.

    Args:
        recipe: what to do.
        decision: about a link that was rejected because it is worse than its parent.
        execution: name of this execution; default: by time.
    """
    take_secrets()
    return pipeline.pipeline.fn(recipe, decision, execution)


def begin(recipe: str, overrides: tuple[str, ...]) -> Recipe:
    """The recipe of a run that has its secrets.

    Raises:
        RecipeError: there is no such recipe, or it is wrong.
        MachineError: the run was started too often.
    """
    take_secrets()
    return load_recipe(named_file(recipe_files(), recipe), overrides)


def take_secrets() -> None:
    """What every run does first."""
    end_with_named_parent()
    check_attempts()
    load_secrets()
