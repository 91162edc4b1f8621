"""What of a run's time is Prefect's, and the server that a run brings along where none is configured."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.prefect_share import shares
from flows.execute import prefects_share
from mathtune.recipe_file import dump_recipe

STAGES = [{"time": 103.0, "event": "stage", "title": "split", "state": "started"},
          {"time": 105.0, "event": "stage", "title": "split", "state": "done", "seconds": 2.0},
          {"time": 106.0, "event": "stage", "title": "report", "state": "started"},
          {"time": 107.5, "event": "stage", "title": "report", "state": "cached", "seconds": 1.5}]


def test_what_passes_in_no_stage_is_counted_and_nothing_twice():
    found = shares(100.0, 111.0, [{"time": 101.0, "event": "begin"}, *STAGES, {"time": 109.0, "event": "end"}])
    assert found == {"whole": 11.0, "stages": 3.5, "elsewhere": 7.5, "before": 3.0, "between": 1.0, "after": 3.5}


def test_a_run_says_how_much_of_its_time_was_in_no_stage(tmp_path):
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in STAGES))
    assert prefects_share(tmp_path / "events.jsonl", 11.04) == "Prefect     7.5 s of 11.0 s, all that was in no stage"


def command(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """``mathtune evaluate recipe.yaml`` without a configured server."""
    without = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return subprocess.run([sys.executable, "-m", "flows.cli", "evaluate", "recipe.yaml"], capture_output=True, text=True,
                          cwd=folder, env={**without, "PREFECT_HOME": str(folder / "prefect"), **environment})


@pytest.mark.slow
def test_a_runs_own_server_has_written_down_all_it_was_told_and_ends_with_the_run(make_recipe, tmp_path):
    """It takes neither login nor database of a server that people share, for which this terminal may be set up."""
    (tmp_path / "recipe.yaml").write_text(dump_recipe(make_recipe()))
    run = command(tmp_path, PREFECT_SERVER_API_AUTH_STRING="admin:secret",
                  PREFECT_SERVER_DATABASE_CONNECTION_URL="postgresql+asyncpg://nobody@127.0.0.1:9/prefect")
    assert run.returncode == 0, run.stdout + run.stderr
    whole, = re.findall(r"^Prefect     [\d.]+ s of ([\d.]+) s", run.stdout, re.MULTILINE)
    (events,) = tmp_path.glob("runs/small/executions/*/events.jsonl")
    stages = [event for event in map(json.loads, events.read_text().splitlines()) if event["event"] == "stage"]
    assert float(whole) > sum(event.get("seconds", 0) for event in stages)
    with closing(sqlite3.connect(tmp_path / "prefect" / "prefect.db")) as database:
        assert database.execute("SELECT state_name FROM flow_run").fetchall() == [("Completed",)]
        completed = database.execute("SELECT count(*) FROM task_run WHERE state_type = 'COMPLETED'").fetchone()
        assert completed == (len(stages) // 2,)
        assert database.execute("SELECT count(*) FROM events WHERE event = 'prefect.flow-run.Completed'").fetchone() == (1,)


@pytest.mark.slow
def test_where_the_runs_own_server_does_not_start_its_own_words_are_told_and_no_other_server_is_blamed(make_recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(make_recipe()))
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").write_text("no database" * 100)
    run = command(tmp_path)
    assert run.returncode == 1
    assert "file is not a database" in run.stderr and "the run's own Prefect server ended" in run.stderr
    assert "unset PREFECT_API_URL" not in run.stderr and "Traceback" not in run.stderr.partition("✗")[2]


# A run that is killed as soon as it has started its server
KILLED = """
import os, signal, socket
from flows.local_server import start
print(start(socket.create_server(("127.0.0.1", 0))).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_is_killed_at_once_leaves_no_server_behind(tmp_path):
    with subprocess.Popen([sys.executable, "-c", KILLED], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PREFECT_HOME": str(tmp_path)}) as killed:
        server = int(killed.stdout.readline())
    assert killed.returncode == -signal.SIGKILL
    stat = Path(f"/proc/{server}/stat")
    for _ in range(600):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX":
            return
        time.sleep(0.1)
    os.kill(server, signal.SIGKILL)
    pytest.fail("the server is still there")
