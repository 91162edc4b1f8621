"""Faults around a run, injected for real: Prefect's server and its database, SIGTERM, W&B and the Hub away; and secrets.

Every run is ``mathtune run`` as a person types it, in a process of its own, against a real ``prefect server start``.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from rich.console import Console

from deployments.bootstrap import make_pool
from flows import execute
from mathtune.errors import ChainError
from mathtune.recipe_file import dump_recipe
from tests.hub_server import REPO, HubServer
from tests.server_fixtures import CANARIES, PATIENCE, Run, World, kill_group, start, until
from tests.test_hub_source import FILES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NOBODY = "http://127.0.0.1:9"  # nothing listens there


# `mathtune`, where the next chunk is tokenised ahead however short it is, and that is never done
ALWAYS_AHEAD = """
import time
from flows import cli
from mathtune.stages import ahead
tokenised = ahead.tokenised
ahead.WORTH_ROWS = 0
ahead.tokenised = lambda *arguments: tokenised(*arguments) and time.sleep(600)
cli.main()
"""


@pytest.fixture(scope="module")
def running(tiny_base, tmp_path_factory):
    world = World(tmp_path_factory.mktemp("faults"), tiny_base)
    world.start_server()
    yield world
    world.kill_server()


@pytest.fixture
def world(running):
    """With its server at work, whatever the test before has left."""
    if running.server.poll() is not None:
        running.start_server()
    return running


@pytest.fixture(scope="module")
def whole(running):
    """What an undisturbed run ends with."""
    running.recipe("whole")
    run = Run(running, "whole")
    assert run.end() == 0, run.output
    return running.outcome("whole")


def test_sigterm_to_the_run_is_saved_or_given_up_and_the_same_command_goes_on(world, whole):
    """The exit status tells the two apart; the server shows Crashed. The engine is held at each place until it is told."""
    world.recipe("stopped")
    run = Run(world, "stopped")
    run.wait_for("progress", text="scoring")
    run.process.terminate()
    assert run.end() == 143
    assert run.of("stopped")[-1]["saved"] is False
    assert "will be done again; the same command goes on" in run.output
    reached = []
    for place, ordinal in (("step", 2), ("loss", 2), ("checkpoint:built", 1)):
        run = Run(world, "stopped", MATHTUNE_FAULT=json.dumps({"at": place, "ordinal": ordinal, "do": "stop"}))
        engine = run.wait_for("ready")["pid"]
        until(partial(is_held, engine), run.process)
        asked = time.time()
        run.process.terminate()
        until(partial(has_pending, engine, signal.SIGTERM), run.process)
        os.kill(engine, signal.SIGCONT)
        assert run.end() == 75
        stopped = run.of("stopped")[-1]
        assert stopped["saved"] is True and stopped["time"] - asked < 20
        assert [event["step"] for event in run.of("resumed")] == reached[-1:]
        reached.append(run.of("step")[-1]["step"])
    assert reached == [3, 5, 7]
    assert world.states("stopped") == ["Crashed"] * 4

    run = Run(world, "stopped")
    run.wait_for("step", step=10)
    run.process.terminate()
    run.process.kill()
    assert run.end() == -signal.SIGKILL
    run = Run(world, "stopped")
    assert run.end() == 0, run.output
    assert run.of("resumed")[0]["step"] >= 8
    assert world.outcome("stopped") == whole


def is_held(pid: int) -> bool:
    return status_of(pid, "State") == "T"


def has_pending(pid: int, number: int) -> bool:
    return bool(int(status_of(pid, "ShdPnd"), 16) >> (number - 1) & 1)


def status_of(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(field))


def own_server_run(make_recipe, folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """A run in a process group of its own, with Prefect's in-process server; in the middle of its training, with the next
    chunk's tokens in the making. Its children."""
    recipe = make_recipe(sft={"learning_rate": 1e-4, "examples_per_step": 16, "save_every": 2, "epochs": 20})
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    run = start(folder / "output.log", ALWAYS_AHEAD, "run", str(folder / "recipe.yaml"), run="-c", start_new_session=True,
                env={**environment, "PREFECT_HOME": str(folder / "prefect"), "COLUMNS": "200"})
    events = folder / "runs" / "small" / "executions"
    until(lambda: any('"step": 3,' in path.read_text() for path in events.glob("*/events.jsonl")), run)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 3  # engine, server, and what tokenises ahead
    return run, [int(child) for child in children]


def test_ctrl_c_in_a_terminal_saves_and_does_not_take_prefects_own_server_first(make_recipe, tmp_path):
    """A terminal's SIGINT goes to the whole foreground group, of which Prefect's in-process server is one."""
    run, children = own_server_run(make_recipe, tmp_path)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(60) == 75
    output = (tmp_path / "output.log").read_text()
    assert "stopped by a signal; the last step is saved; the same command goes on" in output
    assert "server went away" not in output and "Traceback" not in output
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_killed_run_leaves_no_engine_and_no_server_behind(make_recipe, tmp_path):
    run, children = own_server_run(make_recipe, tmp_path)
    run.kill()
    run.wait()
    for _ in range(PATIENCE * 10):
        if not any(Path(f"/proc/{child}").exists() for child in children):
            return
        time.sleep(0.1)
    pytest.fail(f"an engine or the server outlived the run by {PATIENCE} s")


# `mathtune`, whose terminal is the one of its standard input, as that of a shell's foreground job
IN_A_TERMINAL = """
import fcntl
import termios
from flows import cli
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
cli.main()
"""


def test_a_killed_sweep_and_one_whose_terminal_is_closed_have_their_trial_saved(world):
    """The trial, a session of its own, is in the middle of its training: it saves, and ends with its engine."""
    world.recipe("swept", chunks={"size": 96, "end": 96},
                 sft={"learning_rate": 1e-4, "examples_per_step": 16, "save_every": 2, "epochs": 100})
    sweep = {"name": "s", "recipe": "swept.yaml", "grid": {"lora.rank": [2, 4]}}
    (world.folder / "s.yaml").write_text(yaml.safe_dump(sweep))
    trial, log = world.folder / "runs/s-rank2/executions", world.folder / "s.log"

    def trains(process: subprocess.Popen) -> list[dict]:
        """The events of the trial, once it has trained three steps."""
        return until(lambda: (found := events()) and sum(one["event"] == "step" for one in found) > 2 and found, process)

    def events() -> list[dict]:
        with suppress(OSError):
            os.read(terminal, 1 << 16)  # else what is drawn there fills it
        files = sorted(trial.glob("*/events.jsonl"))[-1:]
        return [json.loads(line) for file in files for line in file.read_text().splitlines(keepends=True) if line[-1] == "\n"]

    def ended(found: list[dict]) -> list[dict]:
        """The events of the trial, once it and its engine are gone."""
        pids = [one["pid"] for one in found if one["event"] in ("begin", "ready")]
        assert len(pids) == 2
        for _ in range(PATIENCE * 10):
            if not any(Path(f"/proc/{pid}").exists() for pid in pids):
                return events()
            time.sleep(0.1)
        pytest.fail("the trial or its engine is still there")

    terminal, other_end = os.openpty()
    os.set_blocking(terminal, False)
    killed = start(log, "flows.cli", "sweep", "s.yaml", cwd=world.folder, env=world.environment)
    found = trains(killed)
    killed.kill()
    killed.wait()
    assert [one["saved"] for one in ended(found) if one["event"] == "stopped"] == [True]

    left = subprocess.Popen([sys.executable, "-c", IN_A_TERMINAL, "sweep", "s.yaml"], cwd=world.folder, env=world.environment,
                            stdin=other_end, stdout=other_end, stderr=other_end, start_new_session=True)
    os.close(other_end)
    until(lambda: len(list(trial.glob("*"))) == 2, left)
    found = trains(left)
    os.close(terminal)
    left.wait(PATIENCE)
    found = ended(found)
    assert [one["saved"] for one in found if one["event"] == "stopped"] == [True]
    assert next(one["step"] for one in found if one["event"] == "resumed") >= 3
    whole = [json.loads(line) for file in (world.folder / "runs/s/executions").glob("*/events.jsonl") for line in open(file)]
    assert [one["saved"] for one in whole if one["event"] == "stopped"] == [True]  # by the terminal's; SIGKILL tells nothing


def test_sigterm_to_the_engine_alone(world, whole):
    """While it trains the run ends with a word and all is saved; while it loads there is nothing to save: a fresh one."""
    world.recipe("engine")
    run = Run(world, "engine", MATHTUNE_FAULT='{"at": "loss", "ordinal": 3, "do": "term"}')
    assert run.end() == 1
    assert "✗ Interrupted stopped at step 3 of 12, which is saved\n→ the same command goes on from there" in run.output
    run = Run(world, "engine")
    run.wait_for("phase", text=f"loading {world.base}")
    os.kill(run.wait_for("ready")["pid"], signal.SIGTERM)
    assert run.end() == 0, run.output
    assert "the engine died (SIGTERM, with nothing to save); a fresh one goes on" in run.output
    assert [event["step"] for event in run.of("resumed")] == [3]
    assert world.outcome("engine") == whole


def untold(recipe, **parameters):
    """A flow whose error Prefect cannot tell its server."""
    try:
        raise ChainError("trained with another recipe")
    except ChainError:
        raise httpx.ConnectError("refused")  # noqa: B904 (as Prefect does)


def test_the_stages_own_error_is_told_though_the_server_is_away(make_recipe, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(ChainError, match="another recipe"):
        execute.execute(Console(quiet=True), f"{__name__}:untold", make_recipe())


def test_a_cancelled_run_is_saved_and_the_same_command_goes_on(world, whole):
    """By a worker, from the project's own deployment: the server asks, the worker ends the run, the engine saves."""
    values = world.recipe("cancelled")
    environment = {**world.environment, "MATHTUNE_HOME": str(ROOT), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    log, events = world.folder / "worker.log", world.folder / "runs/cancelled/executions/one/events.jsonl"
    with temporary_settings({PREFECT_API_URL: world.url}), get_client(sync_client=True) as client:
        make_pool("gpu")
        deploy = start(log, "prefect", "--no-prompt", "deploy", "--name", "trial", cwd=ROOT, env=environment)
        assert deploy.wait(PATIENCE) == 0, log.read_text()
        worker = start(log, "prefect", "worker", "start", "--pool", "gpu", env=environment, start_new_session=True)
        try:
            deployment = client.read_deployment_by_name("pipeline/trial")
            flow_run = client.create_flow_run_from_deployment(deployment.id, parameters={"recipe": values, "execution": "one"})
            until(lambda: events.is_file() and '"step": 3,' in events.read_text(), worker)
            client.set_flow_run_state(flow_run.id, Cancelling())
            until(lambda: client.read_flow_run(flow_run.id).state_name == "Cancelled", worker)
        finally:
            kill_group(worker)
    assert '"event": "stopped", "saved": true' in events.read_text()
    run = Run(world, "cancelled")
    assert run.end() == 0, run.output
    assert run.of("resumed") and world.outcome("cancelled") == whole


def test_without_wandb_the_training_goes_on_and_is_sent_later(world, whole):
    world.recipe("untracked", tracking={"project": "maths"}, chunks={"size": 96, "end": 96})
    run = Run(world, "untracked", WANDB_BASE_URL=NOBODY, HTTPS_PROXY=NOBODY, WANDB_INIT_TIMEOUT="2", WANDB_HTTP_TIMEOUT="2")
    assert run.end() == 0, run.output
    assert world.outcome("untracked")[0] == whole[0][:1]
    said = next(event["text"] for event in run.of("notice") if "the training goes on" in event["text"])
    folder = Path(said.partition("wandb sync ")[2].split()[0])
    assert folder.name.startswith("offline-run-") and list(folder.glob("*.wandb"))


def test_a_hub_that_comes_back_is_asked_again(world):
    world.recipe("hub", source={"hub": REPO, "test_split": "test", "limit": 600}, leaks={"exact": "report"})
    with HubServer(FILES) as hub:
        hub._server.verify_request = lambda *_: False  # every connection is closed unanswered
        run = Run(world, "hub", "evaluate", HF_ENDPOINT=hub.url)
        failed = run.wait_for("stage", title="download", state="failed")
        assert "reading from the Hub failed" in failed["text"] and "→ check the network" in failed["text"]
        del hub._server.verify_request
        assert run.end() == 0, run.output
    assert run.stages["download"] == "done"


def test_a_run_outlives_a_restart_of_the_server(world, whole):
    """It trains without one, and waits for it with its end state."""
    world.recipe("restarted")
    run = Run(world, "restarted")
    run.wait_for("step", step=3)
    world.kill_server()
    run.wait_for("end")
    world.start_server()
    assert run.end() == 0, run.output
    assert world.states("restarted") == ["Completed"]
    assert world.outcome("restarted") == whole


def test_without_server_and_database_nothing_is_lost(world, whole):
    world.recipe("away")
    run = Run(world, "away", PREFECT_CLIENT_MAX_RETRIES="1")
    run.wait_for("step", step=3)
    world.kill_server()
    assert run.end() == 1
    assert "✗ MachineError run away: Prefect's server went away" in run.output
    assert "→ python -m deployments.server" in run.output
    assert "Traceback" not in run.output and "EventsWorker" not in run.output
    assert "submit" in run.stages and list(run.stages)[-1] == "report" and set(run.stages.values()) == {"done"}
    assert world.outcome("away") == whole

    world.database.rename(world.folder / "lost")  # kept for the search for secrets
    world.start_server()
    assert world.states("away") == []
    run = Run(world, "away")
    assert run.end() == 0, run.output
    assert [title for title, state in run.stages.items() if state != "cached"] == ["check-base"]
    assert world.states("away") == ["Completed"]
    assert world.outcome("away") == whole


def test_no_secret_is_left_anywhere(world, whole):
    """Last, over all that the runs before have written: the server's database, W&B's files and every output included."""
    files = [path for path in world.folder.rglob("*") if path.is_file()]
    seen = {path.name for path in files}
    assert {"events.jsonl", "engine.log", "report.html", "link.json", "prefect.db", "whole-0.log"} <= seen
    for name, secret in CANARIES.items():
        assert [str(path) for path in files if secret.encode() in path.read_bytes()] == [], name


def test_trials_of_a_sweep_run_side_by_side_on_two_workers(world):
    """The deployment as prefect.yaml has it; each worker takes one run at a time, and both are at work at once."""
    changes = {"chunks": {"size": 32, "end": 32}, "storage": {"root": "store/side", "runs": "runs"}}
    world.recipe("side", **changes, sft={"learning_rate": 1e-4, "examples_per_step": 16})
    pair = {"name": "pair", "recipe": "side.yaml", "grid": {"lora.rank": [2, 4]}}
    (world.folder / "sweep.yaml").write_text(yaml.safe_dump(pair))
    environment = {**world.environment, "MATHTUNE_HOME": str(ROOT), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with temporary_settings({PREFECT_API_URL: world.url}):
        make_pool("gpu")
    subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--name", "trial"], check=True, cwd=ROOT,
                   env=environment, capture_output=True, timeout=PATIENCE)
    workers = [start(world.folder / f"worker-{i}.log", "prefect", "worker", "start", "--pool", "gpu", "--limit", "1",
                     env=environment, start_new_session=True) for i in (1, 2)]
    try:
        sweep = start(world.folder / "sweep.log", "flows.cli", "sweep", "sweep.yaml", "--deployment", "pipeline/trial",
                      cwd=world.folder, env=environment)
        assert sweep.wait(2 * PATIENCE) == 0, (world.folder / "sweep.log").read_text()
    finally:
        for worker in workers:
            kill_group(worker)
    trials = json.loads((world.folder / "runs" / "pair" / "sweep.json").read_text())["trials"]
    assert [(trial["name"], trial["state"], trial["accuracy"]["n"]) for trial in trials] == [
        ("pair-rank2", "done", 60), ("pair-rank4", "done", 60)]
    with temporary_settings({PREFECT_API_URL: world.url}), get_client(sync_client=True) as client:
        names = FlowRunFilter(name=FlowRunFilterName(any_=["pair-rank2", "pair-rank4"]))
        first, second = client.read_flow_runs(flow_run_filter=names, sort=FlowRunSort.START_TIME_ASC)
    assert second.start_time < first.end_time
    assert first.parent_task_run_id and second.parent_task_run_id  # the sweep's own page shows them
