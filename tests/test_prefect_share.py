"""What of a run's time is Prefect's, and the server that a run brings along where none is configured."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing

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


@pytest.mark.slow
def test_a_runs_own_server_has_written_down_all_it_was_told_and_ends_with_the_run(make_recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(make_recipe()))
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    run = subprocess.run([sys.executable, "-m", "flows.cli", "evaluate", str(tmp_path / "recipe.yaml")], capture_output=True,
                         text=True, cwd=tmp_path, env={**environment, "PREFECT_HOME": str(tmp_path / "prefect")})
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
