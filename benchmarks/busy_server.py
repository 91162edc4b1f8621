"""How a Prefect server on SQLite answers several clients at a time: Prefect's own, and a team's (``deployments.server``).

    python benchmarks/busy_server.py
    python benchmarks/busy_server.py --clients 1 4 --seconds 60

Each client does over and over what worker and flow do for one run: it creates a run of a deployment, has it Pending, Running
and Completed, and asks its work pool for runs. The server has our automations, which look at each of these changes. Clients do
not try again what is refused, so that it is seen. Servers are measured one after the other, each on an empty database.
Prints a table and writes it to benchmarks/results/busy_server.{json,md}.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Pending, Running

from benchmarks.machine import RESULTS, describe_machine, machine_line, write_results
from flows.automations import TAG, automations
from tests.server_fixtures import TEAMS_SERVER, World

SERVERS = {"prefect server start": ("prefect", "server", "start"), "deployments.server": TEAMS_SERVER}
COLUMNS = ("server", "clients", "runs a minute", "requests refused", "longest request, s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4], help="at a time")
    parser.add_argument("--seconds", type=float, default=60, help="for which clients begin new runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the two result files")
    arguments = parser.parse_args()
    os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
    measured = [{"server": name, "clients": clients, **measure(command, clients, arguments.seconds)}
                for clients in arguments.clients for name, command in SERVERS.items()]
    figures = {"measured": measured, "seconds": arguments.seconds, "machine": describe_machine()}
    write_results("busy_server", figures, as_markdown(figures), arguments.results)
    print(as_markdown(figures))


def measure(command: tuple[str, ...], clients: int, seconds: float) -> dict[str, Any]:
    """Runs a minute, requests that were refused, and the longest one's seconds."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        world = World(Path(name), Path(name), command)
        world.start_server()
        try:
            with temporary_settings({PREFECT_API_URL: world.url, PREFECT_API_REQUEST_TIMEOUT: 300}):
                deployment = prepare()
                with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                    return ask(deployment, clients, seconds)
        finally:
            world.kill_server()


def prepare() -> UUID:
    """What a server holds before: a pool, our automations, and a deployment, which it returns."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="probe", type="process"))
        for automation in automations():
            client.create_automation(automation)
        return client.create_deployment(client.create_flow_from_name("probe"), "probe", work_pool_name="probe",
                                        entrypoint="nobody.runs_it", tags=[TAG])


def ask(deployment: UUID, clients: int, seconds: float) -> dict[str, Any]:
    begin = time.monotonic()
    at_work = [Client(deployment, begin + seconds) for _ in range(clients)]
    with ThreadPoolExecutor(clients) as threads:
        for ended in [threads.submit(copy_context().run, one.tell) for one in at_work]:  # the settings are the context's
            ended.result()
    minutes = (time.monotonic() - begin) / 60
    return {"runs": sum(one.runs for one in at_work) / minutes, "refused": sum(one.refused for one in at_work),
            "longest": max(one.longest for one in at_work)}


class Client:
    """One that tells the server of run after run."""

    def __init__(self, deployment: UUID, end: float):
        self.deployment, self.end = deployment, end
        self.runs = self.refused = 0
        self.longest = 0.0

    def tell(self) -> None:
        with get_client(sync_client=True) as client:
            while time.monotonic() < self.end:
                self.runs += self.tell_of_one(client)

    def tell_of_one(self, client: SyncPrefectClient) -> bool:
        run = self.timed(client.create_flow_run_from_deployment, self.deployment)
        if run is None:
            return False
        told = [self.timed(client.set_flow_run_state, run.id, state) for state in (Pending(), Running(), Completed())]
        told.append(self.timed(client.request, "POST", "/work_pools/probe/get_scheduled_flow_runs", json={}))
        return None not in told

    def timed(self, request: Any, *arguments: Any, **options: Any) -> Any:
        begin = time.monotonic()
        try:
            return request(*arguments, **options)
        except httpx.HTTPError:
            self.refused += 1
            return None
        finally:
            self.longest = max(self.longest, time.monotonic() - begin)


def as_markdown(figures: dict[str, Any]) -> str:
    rows = [f"| `{one['server']}` | {one['clients']} | {one['runs']:.0f} | {one['refused']} | {one['longest']:.1f} |"
            for one in figures["measured"]]
    return "\n".join([
        "# A Prefect server on SQLite and several clients", "",
        f"`python benchmarks/busy_server.py`, {machine_line(figures['machine'])}",
        f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---:|---:|", *rows, "",
        f"Clients begin new runs for {figures['seconds']:.0f} s. A run is five requests: created, Pending, Running, Completed, "
        "and the pool asked. Refused: 503, \"database is locked\", which Prefect's clients try again after 2 s and more, or no "
        "answer in five minutes. Why: `flows/server_database.py`.", ""])


if __name__ == "__main__":
    main()
