"""Runs a flow in front of a person: Prefect's in-process server where none is configured, progress, a closing table."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.display import Display
from mathtune.chain import Chain, chain_names
from mathtune.errors import ChainError, MachineError, MathtuneError
from mathtune.recipe import Recipe
from mathtune.workspace import RunFolder, new_execution

# Without a server of the user's own, Prefect starts one in process; its first start writes the database (about 20 s).
QUIET_PREFECT = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_CLI_WRAP_LINES": "false",
    "DO_NOT_TRACK": "1",
}
# Of a server that goes away: Prefect would try for 2 min to tell it how the run ended, and dump every event it cannot send.
PATIENCE = {"PREFECT_CLIENT_MAX_RETRIES": "4", "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL"}

SAVED = 75  # EX_TEMPFAIL of sysexits.h: not done, try again


def execute(console: Console, flow: Callable[..., dict[str, Any]], recipe: Recipe, **parameters: Any) -> None:
    """Runs a flow with a progress display and prints where the chain stands afterwards.

    Raises:
        MachineError: Prefect's server went away; the stages did not need it.
    """
    from httpx import HTTPError

    execution = new_execution()
    events = RunFolder(Path(recipe.storage.runs), recipe.name).execution(execution) / "events.jsonl"
    console.print(f"[bold]{recipe.name}[/]: {recipe.task}, chain {recipe.chain}, base {recipe.model.base}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(stop_status(events)))  # Prefect passes the signal on once it has acted
    with Display(console, events):
        try:
            result = flow(recipe, execution=execution, **parameters)
        except HTTPError as error:  # no stage lets one out: Prefect could not tell how the run ended
            forget_events()
            raise own_error(error) or MachineError(
                f"Prefect's server went away: {error}; all that was done is kept", where=f"run {recipe.name}",
                remedy="prefect server start, or unset PREFECT_API_URL; the same command is then served from there") from error
    console.print(result_table(result["record"]))
    if result["record"]["submission"]:
        console.print(f"results     {RunFolder(Path(recipe.storage.runs), recipe.name).path}/", highlight=False)
    console.print(f"report      {result['report']}", highlight=False)


def forget_events() -> None:
    """Prefect's events that wait for a server that is away: it would try each for 7 s before it lets the process end."""
    from prefect.events.worker import EventsWorker

    for worker in list(EventsWorker._instances.values()):
        with worker._queue.mutex:
            worker._queue.queue.clear()


def own_error(error: BaseException | None) -> MathtuneError | None:
    """The stage's error that Prefect was about to tell its server, if there was one."""
    while error and not isinstance(error, MathtuneError):
        error = error.__context__
    return error


def stop_status(events: Path) -> int:
    """Exit status of a run that was told to stop: ``SAVED``, or that of a program ended by SIGTERM where steps since the
    last checkpoint were given up."""
    stopped = [json.loads(line) for line in events.read_text().splitlines() if '"stopped"' in line] if events.is_file() else []
    return SAVED if stopped and stopped[-1]["saved"] else 128 + signal.SIGTERM


def result_table(record: dict[str, Any]) -> Table:
    """Accuracy of the base and of every evaluated link, each with its interval."""
    table = Table(title=f"{record['name']} on the validation rows", title_justify="left")
    for column in ("link", "rows", "accuracy", "95% interval", "n", "against the one before"):
        table.add_column(column, justify="left" if column == "link" else "right")
    if record["base"]:
        table.add_row("base", "", *_accuracy(record["base"]), "")
    for link in record["links"]:
        if link["metrics"]:
            rows = f"[{link['start']}:{link['end']})" if link["start"] is not None else ""
            table.add_row(f"{link['number']} {link['kind']}", rows.replace("[", "\\["), *_accuracy(link["metrics"]),
                          _comparison(link["versus_parent"]))
    return table


def chain_table(console: Console, chain: Chain) -> None:
    """Prints a chain's links.

    Raises:
        ChainError: there is no such chain.
    """
    if chain.pins() is None:
        others = chain_names(chain.folders)
        raise ChainError("there is no such chain", where=f"{chain.folders.url}/{chain.name}",
                         remedy=f"there are: {', '.join(others)}" if others else "mathtune run RECIPE makes one")
    table = Table(title=f"chain {chain.name}", title_justify="left")
    for column in ("link", "rows", "steps", "loss or reward", "accuracy", "adapter", ""):
        table.add_column(column, no_wrap=column != "accuracy")
    judged = [(entry.link, "" if entry.verdict == "accepted" else entry.verdict) for entry in chain.entries()]
    for link, verdict in judged + [(link, "rejected") for link in chain.rejected()]:
        steps = link.result["curve"]["steps"]
        figure = "reward" if link.kind == "grpo" else "loss"
        metrics = chain.record(link).get("metrics")
        accuracy = "{} ({})".format(*_accuracy(metrics)[:2]) if metrics else ""
        table.add_row(f"{link.number} {link.kind}", str(link.range or "").replace("[", "\\["), str(link.result["steps"]),
                      f"{steps[0][figure]:.3f} → {steps[-1][figure]:.3f}", accuracy, link.adapter_digest[:8], verdict)
    console.print(table)


def _accuracy(metrics: dict[str, Any]) -> tuple[str, str, str]:
    accuracy = metrics["accuracy"]
    return f"{accuracy['value']:.1%}", f"{accuracy['low']:.1%} to {accuracy['high']:.1%}", f"{accuracy['n']:,}"


def _comparison(versus: dict[str, Any] | None) -> str:
    if versus is None:
        return ""
    p = "< 0.001" if versus["p"] < 0.001 else f"{versus['p']:.3f}"
    return f"{versus['difference']['value'] * 100:+.1f} points, p {p}"


for _name, _value in (PATIENCE if "PREFECT_API_URL" in os.environ else {**QUIET_PREFECT, **PATIENCE}).items():
    os.environ.setdefault(_name, _value)
