"""What Prefect costs: the seconds of a run that it spends in no stage, in the ways that people run the demo.

    python benchmarks/prefect_share.py
    python benchmarks/prefect_share.py --ways chunk --chunk-rows 50000

Ways, each in empty folders of its own:

- ``command``: ``mathtune run recipes/demo.yaml`` without a server, so that Prefect starts one of the run's own: with its
  database yet to be written, then served, then everything computed anew with the database there.
- ``worker``: the same as a run of the deployment ``pipeline/demo`` on a worker, from its pick-up to its end: computed, then
  served.
- ``chunk``: one chunk that trains for minutes.

Every stage says in ``events.jsonl`` when it starts and ends. Whatever else passes between the start of the process and its
end is counted: Python, imports (ours, too), Prefect's server, what it is told between stages, its farewell. What of that is
Prefect's and what our own is told by the same command with the decorators taken away (``benchmarks/without_prefect.py``),
served, in the same call. Prints a table and writes it to benchmarks/results/prefect_share.{json,md}.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings

from benchmarks.crash_test import read_events
from benchmarks.machine import RESULTS, describe_machine, machine_line, write_results

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "recipes" / "demo.yaml"
MOST_SECONDS, MOST_SHARE, LONG_SECONDS = 10, 0.02, 600  # the targets: on the demo; on a chunk as long as this
COLUMNS = {"whole": "whole, s", "stages": "in stages, s", "elsewhere": "in no stage, s", "before": "before the first",
           "between": "between them", "after": "after the last", "bare": "without Prefect: in no stage, s", "load": "load"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", default=["command", "worker", "chunk"], choices=["command", "worker", "chunk"])
    parser.add_argument("--chunk-rows", type=int, default=100_000, help="as many as train for about ten minutes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the two result files")
    parser.add_argument("--note", default="", help="what else the machine did meanwhile")
    arguments = parser.parse_args()
    path = arguments.results / "prefect_share.json"
    kept = json.loads(path.read_text())["runs"] if path.is_file() else []  # of the ways that are not measured now
    runs = [run for run in kept if run["way"] not in arguments.ways]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured = {"command": lambda: command(folder / "command"), "worker": lambda: worker(folder / "worker"),
                    "chunk": lambda: chunk(folder / "chunk", arguments.chunk_rows)}
        for way in arguments.ways:
            runs += [{"way": way, "note": arguments.note, **run} for run in measured[way]()]
    figures = {"runs": runs, "machine": describe_machine(),
               "targets": {"seconds": MOST_SECONDS, "share": MOST_SHARE, "of_a_chunk_of_seconds": LONG_SECONDS}}
    write_results("prefect_share", figures, as_markdown(figures), arguments.results)
    print(as_markdown(figures))


def command(folder: Path) -> list[dict[str, Any]]:
    """The demo by the command line, with a server of its own."""
    first = run_command(folder / "one", folder / "prefect")
    served = run_command(folder / "one", folder / "prefect")
    served["bare"] = run_command(folder / "one", folder / "prefect", module="benchmarks.without_prefect")["elsewhere"]
    again = run_command(folder / "two", folder / "prefect")
    return [{"run": "`mathtune run`, the first ever: Prefect's database is written", **first},
            {"run": "`mathtune run`, everything computed", **again},
            {"run": "`mathtune run`, everything served", **served}]


def chunk(folder: Path, rows: int) -> list[dict[str, Any]]:
    """One long chunk, with a database that is there."""
    prefect = folder / "prefect"
    run_command(folder / "first", prefect, "source.generator.rows=2000", "balance.per_class=500", "chunks.size=64",
                "chunks.end=64")
    found = run_command(folder / "long", prefect, f"source.generator.rows={4 * rows}", f"balance.per_class={rows}",
                        f"chunks.size={rows}", f"chunks.end={rows}", "sft.save_every=100")
    return [{"run": f"`mathtune run`, one chunk of {rows:,} rows", **found}]


def run_command(folder: Path, prefect: Path, *overrides: str, module: str = "flows.cli") -> dict[str, Any]:
    """``mathtune run`` on the demo as a process, timed from its start to its end."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"PREFECT_HOME": str(prefect), "PYTHONPATH": str(ROOT)}
    folder.mkdir(parents=True, exist_ok=True)
    before, load = executions(folder), os.getloadavg()[0]
    began = time.time()
    subprocess.run([sys.executable, "-m", module, "run", str(DEMO), *overrides], cwd=folder, env=environment, check=True)
    ended = time.time()
    return {**shares(began, ended, events_since(folder, before)), "load": round(load, 1)}


def worker(folder: Path) -> list[dict[str, Any]]:
    """The demo as a run of its deployment: computed, and served."""
    with deployed(folder) as run_deployment:
        computed, served = run_deployment(), run_deployment()
    return [{"run": "on a worker, everything computed", **computed}, {"run": "on a worker, everything served", **served}]


@contextmanager
def deployed(folder: Path) -> Iterator[Any]:
    """A server, the project's deployments on it, and a worker; yields what runs ``pipeline/demo`` once and times it."""
    home = folder / "home"
    shutil.copytree(ROOT / "recipes", home / "recipes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(ROOT),
                   "DO_NOT_TRACK": "1"}
    log = open(folder / "log.txt", "w")

    def start(*command: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", *command], cwd=home, env=environment, stdout=log, stderr=log)

    def run_deployment() -> dict[str, Any]:
        before, load = executions(home), os.getloadavg()[0]
        flow_run = client.create_flow_run_from_deployment(client.read_deployment_by_name("pipeline/demo").id)
        while not (state := client.read_flow_run(flow_run.id).state).is_final():
            time.sleep(1)
        assert state.is_completed(), state.message
        picked = next(one for one in client.read_flow_run_states(flow_run.id) if one.type == StateType.PENDING)
        return {**shares(picked.timestamp.timestamp(), state.timestamp.timestamp(), events_since(home, before)),
                "load": round(load, 1)}

    server = start("deployments.server", "--port", str(port))
    processes = [server]
    try:
        while not answers(url):
            assert server.poll() is None, (folder / "log.txt").read_text()
            time.sleep(0.5)
        assert start("deployments.bootstrap").wait() == 0, (folder / "log.txt").read_text()
        processes.append(start("deployments.worker"))
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
            yield run_deployment
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()
        log.close()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


def executions(folder: Path) -> set[Path]:
    return set(folder.glob("runs/*/executions/*"))


def events_since(folder: Path, before: set[Path]) -> list[dict[str, Any]]:
    """The events of the one execution that was not there before."""
    (new,) = executions(folder) - before
    return read_events(new / "events.jsonl")


def shares(began: float, ended: float, events: list[dict[str, Any]]) -> dict[str, Any]:
    """How the seconds between two points in time divide into stages and what is in none."""
    stages = [event for event in events if event["event"] == "stage"]
    inside = sum(event["seconds"] for event in stages if "seconds" in event)
    before, after = stages[0]["time"] - began, ended - stages[-1]["time"]
    found = {"whole": ended - began, "stages": inside, "elsewhere": ended - began - inside, "before": before,
             "between": ended - began - inside - before - after, "after": after}
    return {name: round(seconds, 2) for name, seconds in found.items()}


def as_markdown(figures: dict[str, Any]) -> str:
    """The figures as a file for people."""
    lines = ["# Prefect's share of a run's time", "",
             f"`python benchmarks/prefect_share.py`, {machine_line(figures['machine'])}",
             "| run | " + " | ".join(COLUMNS.values()) + " | share |", "|---|" + "---:|" * (len(COLUMNS) + 1)]
    for run in figures["runs"]:
        cells = [f"{run[name]:.1f}" if name in run else "" for name in COLUMNS]
        lines.append(f"| {run['run']} | {' | '.join(cells)} | {run['elsewhere'] / run['whole']:.1%} |")
    lines += ["", "In no stage: all that passes between the start of the process (on a worker: the pick-up of the run) and its "
              "end outside the stages' own bodies, so Python's start and our own imports are in it. Without Prefect: the same, "
              "served, with the decorators taken away. Load: of the machine, a minute's mean, when the run began."]
    lines += [f"Meanwhile: {note}." for note in sorted({run["note"] for run in figures["runs"]} - {""})]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
