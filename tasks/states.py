"""Makes Prefect tasks of stages, and tells the run's events and Prefect whether a stage computed or found its result.

Prefect's own result cache is not used: artifacts and links on disk are the one truth. A second cache beside them can
dangle (a deleted file still gives Cached) and a lost database would recompute everything.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_logger, get_run_logger
from prefect.states import Completed, State

from mathtune.errors import MachineError, MathtuneError
from mathtune.events import Event
from mathtune.stages import Outcome
from mathtune.workspace import Workspace
from tasks.progress import StageProgress

NETWORK = {"retries": 3, "retry_delay_seconds": [2, 10, 30]}


def stage_task(run_name: str, **options: Any) -> Callable[[Callable[..., State]], Callable[..., Any]]:
    """Decorator: a Prefect task whose function returns a state (see ``run_stage``), and whose call returns its data.

    Prefect hands a returned state to the caller as it is; a flow wants the value. The task itself is ``.task``.
    """

    def decorate(function: Callable[..., State]) -> Callable[..., Any]:
        prefect_task = task(task_run_name=run_name, cache_policy=NO_CACHE, persist_result=False, **options)(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return prefect_task(*args, **kwargs).data.result

        call.task = prefect_task
        return call

    return decorate


def run_stage(work: Workspace, title: str, body: Callable[[], Outcome]) -> State:
    """The state of a stage: ``Completed`` or, where it found its result, ``Cached``. Its data is the outcome's value."""
    work.emit("stage", title=title, state="started")
    began = time.monotonic()
    known_damage = len(work.artifacts.damaged)
    with logged(work), StageProgress(work, title) as progress:
        try:
            outcome = body()
        except Exception as error:
            work.emit("stage", title=title, state="failed", text=str(error))
            raise
        for damage in work.artifacts.damaged[known_damage:]:
            work.emit("notice", text=damage)
        progress.done(outcome.summary)
    work.seconds[title] = round(time.monotonic() - began, 3)
    state = "cached" if outcome.cached else "done"
    work.emit("stage", title=title, state=state, text=outcome.summary, seconds=work.seconds[title])
    get_run_logger().info("%s: %s%s", title, outcome.summary, " (served)" if outcome.cached else "")
    return Completed(name="Cached" if outcome.cached else None, message=outcome.summary, data=outcome.value)


def is_news(record: logging.LogRecord) -> bool:
    """Leaves out what Prefect logs when a task is done: what the stage's own line says, without its title."""
    return record.levelno > logging.INFO or not str(record.msg).startswith("Finished in state")


def in_words(record: logging.LogRecord) -> bool:
    """Tells an error of ours in its own words: what to do about it is in there, and a traceback would hide it."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, MathtuneError):
        record.msg, record.args, record.exc_info = "%s", (f"{type(error).__name__}: {error}",), None
    return True


get_logger("prefect.task_runs").addFilter(is_news)
for _name in ("prefect.task_runs", "prefect.flow_runs"):
    get_logger(_name).addFilter(in_words)


@contextmanager
def logged(work: Workspace) -> Iterator[None]:
    """Within it, what a person should read of the workspace's events stands in Prefect's log of this task run."""
    logger = get_run_logger()

    def listen(event: Event) -> None:
        if event["event"] in ("notice", "stopped"):
            logger.warning("%s", event["text"])
        elif event["event"] == "resumed":
            logger.info("goes on from step %s", event["step"])

    work.listeners.append(listen)
    try:
        yield
    finally:
        work.listeners.remove(listen)


def may_pass(_task, _task_run, state: State) -> bool:
    """Whether a failure is worth a retry: the machine's or the network's may pass, the user's mistake does not."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, MachineError | OSError)
