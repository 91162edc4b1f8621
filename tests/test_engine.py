"""The border between the planes: real engine processes that are asked, killed and orphaned."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mathtune.engine_client import EngineClient
from mathtune.errors import EngineError, ModelError, StoreError
from mathtune.jobs import InspectJob, MeasureJob
from mathtune.recipe import Labels, Lora, Model, Prompt
from tests.conftest import VERIFIER_TEMPLATE
from tests.jobs_fixtures import CPU, score_job, sft_job

pytestmark = pytest.mark.slow


def inspect_job(base, folder, **labels):
    return InspectJob(task="verifier", model=Model(base=str(base)), hardware=CPU, cache=str(folder / "cache"),
                      prompt=Prompt(template=VERIFIER_TEMPLATE, labels=Labels(**labels)))


def wait_for_the_end_of(pid: int) -> None:
    """Fails where an engine outlives its parent by 10 s."""
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail(f"the engine {pid} outlived its parent by 10 s")


@pytest.fixture
def events():
    return []


@pytest.fixture
def engine(tmp_path, events):
    with EngineClient(tmp_path / "engine.log", events.append, restarts=1) as client:
        yield client


def test_one_engine_takes_many_jobs_and_keeps_the_users_mistakes_apart(engine, events, tiny_base, tmp_path):
    facts = engine.run(inspect_job(tiny_base, tmp_path))
    assert facts["device"] == "cpu" and facts["dtype"] == "float32" and len(facts["base"]) == 64
    with pytest.raises(ModelError, match="begin with the same token") as caught:
        engine.run(inspect_job(tiny_base, tmp_path, true=" 1", false=" 1 1"))
    assert caught.value.where == "prompt.labels" and caught.value.exit_status == 2
    job = score_job(tiny_base, tmp_path)
    assert engine.run(job)["rows"] == 40
    tokens = engine.run(MeasureJob(task="verifier", model=job.model, prompt=job.prompt, cache=job.cache, rows=job.rows,
                                   sample=30, lora=Lora(), hardware=CPU, examples_per_step=16))
    assert "(2 a step)" in tokens["plan"] and "nothing computed twice" in tokens["plan"]
    assert tokens["rows"] == 30 and 20 < tokens["mean"] <= tokens["p95"] <= tokens["longest"] < 192
    assert [event["event"] for event in events].count("ready") == 1
    assert sum(event.get("text", "").startswith("loading") for event in events) == 1


def test_a_killed_engine_is_replaced_and_the_chunk_ends_with_the_same_bytes(engine, events, tiny_base, tmp_path):
    whole = engine.run(sft_job(tiny_base, tmp_path / "whole"))

    def kill_once(event):
        events.append(event)
        if event["event"] == "step" and event["step"] == 4 and not any(one["event"] == "resumed" for one in events):
            os.kill(engine._process.pid, signal.SIGKILL)

    engine.on_event = kill_once
    result = engine.run(sft_job(tiny_base, tmp_path / "killed"))
    assert result["adapter_digest"] == whole["adapter_digest"]
    assert any("signal SIGKILL" in event.get("text", "") for event in events)
    assert [event["step"] for event in events if event["event"] == "resumed"] in ([2], [4])


def test_a_scoring_whose_engine_is_killed_goes_on_in_a_fresh_one_and_says_the_same(engine, events, tiny_base, tmp_path):
    whole, job = (score_job(tiny_base, tmp_path / name, n=2500, words_rows=0) for name in ("whole", "killed"))
    engine.run(whole)

    def kill_once(event):
        events.append(event)
        if event["event"] == "progress" and event["done"] > 2048 and not any("died" in one.get("text", "") for one in events):
            os.kill(engine._process.pid, signal.SIGKILL)

    engine.on_event = kill_once
    assert engine.run(job)["resumed"] == 2048
    same = [(Path(one.output) / "scores.parquet").read_bytes() for one in (whole, job)]
    assert same[0] == same[1]


def test_an_engine_that_dies_every_time_is_given_up_with_its_log_named(engine, events, tiny_base, tmp_path):
    def kill_always(event):
        events.append(event)
        if event["event"] == "phase" and event["text"].startswith("loading"):
            os.kill(engine._process.pid, signal.SIGKILL)

    engine.on_event = kill_always
    with pytest.raises(EngineError, match="died 2 times in one job") as caught:
        engine.run(score_job(tiny_base, tmp_path))
    assert caught.value.where == str(tmp_path / "engine.log")


def test_nothing_is_left_behind_when_the_control_plane_is_killed(tiny_base, tmp_path):
    job = sft_job(tiny_base, tmp_path, n=96).model_dump_json()
    code = ("import sys; from pathlib import Path\n"
            "from mathtune.engine_client import EngineClient; from mathtune.jobs import JOB\n"
            f"client = EngineClient(Path({str(tmp_path / 'engine.log')!r}), lambda event: print(event, flush=True))\n"
            f"client.run(JOB.validate_json({job!r}))\n")
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = None
    for line in parent.stdout:
        event = eval(line)
        pid = event.get("pid", pid)
        if event["event"] == "step":
            break
    parent.kill()
    parent.wait()
    wait_for_the_end_of(pid)


def test_a_job_can_be_run_by_hand(tiny_base, tmp_path):
    (tmp_path / "job.json").write_text(score_job(tiny_base, tmp_path).model_dump_json())
    done = subprocess.run([sys.executable, "-m", "mathtune.engine", "--job", str(tmp_path / "job.json")],
                          capture_output=True, text=True)
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1])["result"]["rows"] == 40
    assert pq.read_metadata(tmp_path / "scores" / "scores.parquet").num_rows == 40
    (tmp_path / "job.json").write_text(inspect_job(tmp_path / "nowhere", tmp_path).model_dump_json())
    failed = subprocess.run([sys.executable, "-m", "mathtune.engine", "--job", str(tmp_path / "job.json")],
                            capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert failed.returncode == 1
    assert json.loads(failed.stdout.splitlines()[-1])["error"]["type"] == "ModelError"


def test_an_engine_whose_events_could_not_be_kept_does_not_answer_the_next_job_with_them(engine, events, tiny_base, tmp_path):
    def full(event):
        if event["event"] == "step":
            raise StoreError("no space is left on the disk")
        events.append(event)

    engine.on_event = full
    with pytest.raises(StoreError):
        engine.run(sft_job(tiny_base, tmp_path / "first"))
    engine.on_event = events.append
    assert engine.run(score_job(tiny_base, tmp_path))["rows"] == 40
    assert [event["event"] for event in events].count("ready") == 2


def test_an_idle_engine_ends_when_the_control_plane_is_killed_with_events_unread(tiny_base, tmp_path):
    """The kernel then resets the connection instead of closing it."""
    job = inspect_job(tiny_base, tmp_path).model_dump_json()
    code = ("import socket, subprocess, sys, time\n"
            f"path = {str(tmp_path / 'socket')!r}\n"
            "listener = socket.socket(socket.AF_UNIX); listener.bind(path); listener.listen(1)\n"
            "engine = subprocess.Popen([sys.executable, '-m', 'mathtune.engine', '--connect', path], start_new_session=True)\n"
            "connection, _ = listener.accept(); connection.sendall(b'\\n'); connection.recv(1000)\n"
            f"connection.sendall({job!r}.encode() + b'\\n')\n"
            "time.sleep(15); print(engine.pid, flush=True); time.sleep(60)\n")
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_for_the_end_of(pid)
