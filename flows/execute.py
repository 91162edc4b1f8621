"""Runs a flow in front of a person: Prefect's in-process server where none is configured, progress, a closing table."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from rich.console import Console

from flows import BEGAN
from flows.display import Display
from flows.local_server import local_server
from flows.remedies import LOGIN_REMEDY, SERVER, SERVER_REMEDY
from flows.show import result_table
from mathtune.errors import MachineError, MathtuneError
from mathtune.exit_status import GIVEN_UP, SAVED
from mathtune.parent import end_with_named_parent
from mathtune.recipe import Recipe
from mathtune.workspace import RunFolder, new_execution

# For a server that is the run's own (flows.local_server): nobody looks at its logs.
QUIET_PREFECT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_CLI_WRAP_LINES": "false",
    "DO_NOT_TRACK": "1",
}
# Of a server that goes away: Prefect would try for 2 min to tell it how the run ended, and dump every event it cannot send.
PATIENCE = {"PREFECT_CLIENT_MAX_RETRIES": "4", "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}  # the terminal has the display

OWN_REMEDY = f"what it said is above; or use another: {SERVER}, and export its PREFECT_API_URL"


def quieten_prefect() -> None:
    """To be called before Prefect is imported: what a person has set stays."""
    for name, value in (PATIENCE if "PREFECT_API_URL" in os.environ else {**QUIET_PREFECT, **PATIENCE}).items():
        os.environ.setdefault(name, value)


def execute(console: Console, flow: str, recipe: Recipe, **parameters: Any) -> None:
    """Runs a flow with a progress display and prints where the chain stands afterwards.

    Args:
        console: where to print.
        flow: its name, ``module:function``: it is imported while Prefect's server starts.
        recipe: what to do.
        parameters: of the flow.
    """
    execution, folder = new_execution(), RunFolder(Path(recipe.storage.runs), recipe.name)
    events = folder.execution(execution) / "events.jsonl"
    console.print(f"[bold]{recipe.name}[/]: {recipe.task}, chain {recipe.chain}, base {recipe.model.base}")
    result = supervise(console, events, f"run {recipe.name}",
                       lambda: resolve_name(flow)(recipe, execution=execution, **parameters))
    console.print(result_table(result["record"]))
    if result["record"]["submission"]:
        console.print(f"results     {folder.path}/", highlight=False)
    console.print(f"report      {result['report']}", highlight=False)
    console.print(prefects_share(events, time.monotonic() - BEGAN), highlight=False)


def prefects_share(events: Path, seconds: float) -> str:
    """How much of a command's time was spent in no stage: Prefect's share at most, since imports of our own are in it."""
    ended = [json.loads(line) for line in events.read_text().splitlines() if '"stage"' in line]
    stages = sum(event.get("seconds", 0) for event in ended)
    return f"Prefect     {seconds - stages:.1f} s of {seconds:.1f} s, all that was in no stage"


def supervise(console: Console, events: Path, title: str, flow: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Runs a flow, its progress shown from its event file; a signal ends this process by the status that says what was saved.

    Raises:
        MachineError: Prefect's server is not there, or went away; the stages did not need it.
    """
    from httpx import HTTPError

    heed_signals(events)
    with local_server(), Display(console, events):
        try:
            return flow()
        except KeyboardInterrupt:
            sys.exit(stop_status(events))
        except HTTPError as error:  # no stage lets one out: Prefect could not tell how the run ended
            forget_events()
            raise own_error(error) or server_error(error, title) from error
        except RuntimeError as error:
            if "Failed to reach API" not in str(error):
                raise
            raise server_error(error, title) from error


def heed_signals(events: Path) -> None:
    """Has this process end by ``stop_status`` at SIGTERM, which also stands for a closed terminal (but under nohup) and for
    the end of the process that started it as a part of its own (``mathtune.parent``)."""

    def hang_up(*_: object) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # shell and kernel both tell of a closed terminal; a save takes a while
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(stop_status(events)))  # Prefect passes the signal on once it has acted
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, hang_up)
    end_with_named_parent()


def forget_events() -> None:
    """Prefect's events that wait for a server that is away: it would try each for 7 s before it lets the process end."""
    from prefect.events.worker import EventsWorker

    for worker in list(EventsWorker._instances.values()):
        with worker._queue.mutex:
            worker._queue.queue.clear()


def server_error(error: Exception, title: str) -> MachineError:
    """What to say where Prefect's server is not there, refused the run or went away; no stage needs it."""
    from httpx import HTTPStatusError

    from tasks.servers import is_configured

    if not is_configured():
        return MachineError(f"the run's own Prefect server ended: {error}; all that was done is kept", where=title,
                            remedy=OWN_REMEDY)
    if isinstance(error, RuntimeError):
        return MachineError(str(error), where="PREFECT_API_URL", remedy=SERVER_REMEDY)
    if isinstance(error, HTTPStatusError) and error.response.status_code == 401:
        return MachineError("the server does not accept this login; all that was done is kept", where=title,
                            remedy=LOGIN_REMEDY)
    return MachineError(f"Prefect's server went away: {error}; all that was done is kept", where=title,
                        remedy=f"{SERVER_REMEDY}; the same command is then served from there")


def own_error(error: BaseException | None) -> MathtuneError | None:
    """The stage's error that Prefect was about to tell its server, if there was one."""
    while error and not isinstance(error, MathtuneError):
        error = error.__context__
    return error


def stop_status(events: Path) -> int:
    """Exit status of a run that was told to stop: ``SAVED``, or ``GIVEN_UP`` where steps since the last checkpoint were."""
    stopped = [json.loads(line) for line in events.read_text().splitlines() if '"stopped"' in line] if events.is_file() else []
    return SAVED if stopped and stopped[-1]["saved"] else GIVEN_UP
