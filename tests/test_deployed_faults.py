"""Faults of runs that a server's deployments start: worker killed or preempted, machine gone, server restarted or away, its
database locked. A run ends as Prefect documents, its slot is free again, and the next start goes on from the last checkpoint.

One server, the automations of a team's, ``pipeline/demo`` and ``pipeline/verifier`` with a limit of one run each, as
``prefect.yaml`` says. ``pipeline/verifier`` has a pool of its own here, so that the machine that goes away is one worker's: it
is missed, and its run done again, while the other tests are at work.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from deployments.bootstrap import make_pool
from deployments.worker import AWAY
from flows.automations import automations
from tests.server_fixtures import PATIENCE, TEAMS_SERVER, Run, World, end_at_once, start, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the first test waits for server, deployments and two runs

ROOT = Path(__file__).parents[1]
NAMES = ("whole", "vanished", "preempted", "waiting")
LOCKED_SECONDS = 15  # after 30 the server answers 500, which ends a run
ENDURED = 12  # failures after which Prefect's own worker ends: four times three in a row


class Deployed:
    """A server with both deployments, and the workers that a test starts."""

    def __init__(self, world: World):
        self.world, self.workers = world, []
        world.environment |= {"MATHTUNE_HOME": str(world.folder), "PREFECT_WORKER_QUERY_SECONDS": "1"}

    def deploy(self) -> None:
        (self.world.folder / "recipes").mkdir()
        for name in NAMES:  # the names that the form offers are those of the time of deploying
            self.world.recipe(name, chunks={"size": 96, "end": 96}, evaluation={"words_rows": 0, "batch_size": 60},
                              sft={"learning_rate": 1e-4, "examples_per_step": 16, "save_every": 2, "epochs": 30})
            shutil.copy(self.world.folder / f"{name}.yaml", self.world.folder / "recipes")
        for pool in ("gpu", "other"):
            make_pool(pool)
        content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        content["deployments"] = [one for one in content["deployments"] if one["entrypoint"] == "flows.deployed.run_pipeline"]
        (self.world.folder / "prefect.yaml").write_text(yaml.safe_dump(content))
        log = self.world.folder / "deploy.log"
        deploy = start(log, "prefect", "--no-prompt", "deploy", "--all", cwd=self.world.folder, env=self.world.environment)
        assert deploy.wait(PATIENCE) == 0, log.read_text()
        with get_client(sync_client=True) as client:
            demo, verifier = (client.read_deployment_by_name(f"pipeline/{name}").id for name in ("demo", "verifier"))
            client.update_deployment(verifier, DeploymentUpdate(work_pool_name="other"))
            for automation in automations():
                client.create_automation(automation)

    def worker(self, pool: str = "gpu", **environment: str) -> subprocess.Popen:
        """One that takes one run at a time."""
        worker = start(self.log(len(self.workers)), "deployments.worker", "--pool", pool, cwd=self.world.folder,
                       env={**self.world.environment, **environment}, start_new_session=True)
        self.workers.append(worker)
        return worker

    def log(self, number: int) -> Path:
        """Of a worker."""
        return self.world.folder / f"worker-{number}.log"

    def begin(self, recipe: str, deployment: str = "pipeline/demo") -> "Execution":
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(deployment)
            flow_run = client.create_flow_run_from_deployment(found.id, parameters={"recipe": recipe})
        return Execution(self.world, recipe, flow_run)

    def end(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                end_at_once(worker)


class Execution:
    """A flow run of a recipe, whose starts are executions of it."""

    def __init__(self, world: World, recipe: str, flow_run: FlowRun):
        self.world, self.recipe, self.id = world, recipe, flow_run.id

    @property
    def state(self) -> str:
        return self.read().state_name

    def read(self) -> FlowRun:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(self.id)

    def starts(self) -> list[Path]:
        """What each has told."""
        return sorted((self.world.folder / "runs" / self.recipe / "executions").glob("*/events.jsonl"))

    def events(self, start: int = 0) -> list[dict]:
        """Of the first, second … start; 0: of the last."""
        files = self.starts()
        lines = files[start - 1].read_text().splitlines(keepends=True) if files else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def of(self, kind: str, start: int = 0) -> list[dict]:
        return [event for event in self.events(start) if event["event"] == kind]

    def has_done(self, stage: str) -> bool:
        return any(event["title"] == stage and event["state"] == "done" for event in self.of("stage"))

    def trains(self, worker: subprocess.Popen, starts: int) -> int:
        """Waits until the so-and-so-many-th start has trained three steps. Returns its flow process."""
        until(lambda: len(self.starts()) == starts and len(self.of("step")) > 2, worker)
        return self.of("begin")[0]["pid"]

    def ends(self, state: str, worker: subprocess.Popen) -> None:
        until(lambda: self.state == state, worker)


@pytest.fixture(scope="module")
def server(tiny_base, tmp_path_factory):
    world = World(tmp_path_factory.mktemp("deployed"), tiny_base, TEAMS_SERVER)
    deployed = Deployed(world)
    with temporary_settings({PREFECT_API_URL: world.url}):
        world.start_server()
        try:
            deployed.deploy()
            yield deployed
        finally:
            deployed.end()
            world.kill_server()


@pytest.fixture(scope="module")
def vanished(server):
    """A run whose machine went away in the middle of its training, and a worker of another machine that waits for runs."""
    execution, worker = server.begin("vanished", "pipeline/verifier"), server.worker("other")
    execution.trains(worker, 1)
    end_at_once(worker)
    assert execution.state == "Running"
    return execution, server.worker("other")


@pytest.fixture(scope="module")
def whole(server, vanished) -> Callable[[], tuple[list[str], bytes]]:
    """What an undisturbed run ends with, which goes on meanwhile."""
    run = Run(server.world, "whole")

    def outcome() -> tuple[list[str], bytes]:
        assert run.end() == 0, run.output
        return server.world.outcome("whole")

    yield outcome
    run.process.kill()
    run.process.wait()


def test_a_preempted_run_is_saved_and_goes_on_whoever_is_told_first(server, whole):
    """The automation starts it again each time, on the worker that waits by then, and the limit of one run never stands in its
    way. One that had not begun waits as if it had not been taken; where the worker alone is killed its run sees that itself."""
    execution, reached = server.begin("preempted"), []
    worker = server.worker()
    until(psutil.Process(worker.pid).children, worker)
    worker.terminate()
    assert worker.wait(PATIENCE) == 0
    assert execution.state in ("Scheduled", "Late") and not execution.events()

    def worker_told(worker: subprocess.Popen, flow: int) -> None:
        worker.terminate()

    def run_and_then_worker_told(worker: subprocess.Popen, flow: int) -> None:
        os.kill(flow, signal.SIGTERM)
        worker.terminate()

    def worker_killed(worker: subprocess.Popen, flow: int) -> None:
        worker.kill()

    worker = server.worker()
    for starts, fault in enumerate((worker_told, run_and_then_worker_told, worker_killed), 1):
        flow = execution.trains(worker, starts)
        told, worker = worker, server.worker()
        fault(told, flow)
        assert told.wait(PATIENCE) == (-signal.SIGKILL if fault is worker_killed else 0)
        until(lambda start=starts: execution.of("stopped", start), worker)  # a killed worker's run looks for it every second
        assert [event["saved"] for event in execution.of("stopped", starts)] == [True], fault.__name__
        assert [event["step"] for event in execution.of("resumed", starts)] == reached[-1:]
        reached.append(execution.of("step", starts)[-1]["step"])
    execution.ends("Completed", worker)
    assert [event["step"] for event in execution.of("resumed", 4)] == reached[-1:]
    assert execution.read().run_count == 4
    end_at_once(worker)
    assert server.world.outcome("preempted") == whole()


def test_a_run_whose_machine_is_gone_is_crashed_and_started_again_by_the_automations(server, vanished, whole):
    """Three heartbeats of 30 s must be missed; then another worker of the pool goes on, and nothing holds the slot.

    Before the server restarts: Prefect's would then let the run's end wait for its begin, which it had forgotten.
    """
    execution, worker = vanished
    execution.ends("Completed", worker)
    assert execution.of("resumed", 2)[0]["step"] >= 2
    assert execution.read().run_count == 2
    assert server.world.outcome("vanished") == whole()
    worker.terminate()
    assert worker.wait(PATIENCE) == 0


def test_a_cancelled_run_frees_its_slot_and_the_next_outlasts_a_locked_database_and_a_server_that_is_away(server, whole):
    """Cancelled as the UI does, by asking the server. What the run tells waits for the lock.
    What is left is done without a server; the worker waits for it longer than Prefect's, and the run is not started twice."""
    worker = server.worker(PREFECT_CLIENT_MAX_RETRIES="0", PREFECT_LOGGING_LEVEL="WARNING")  # it says at once what fails
    log = server.log(len(server.workers) - 1)
    cancelled = server.begin("waiting")
    cancelled.trains(worker, 1)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(cancelled.id, Cancelling())
    cancelled.ends("Cancelled", worker)
    assert [event["saved"] for event in cancelled.of("stopped")] == [True]

    waiting = server.begin("waiting")
    waiting.trains(worker, 2)
    assert len(waiting.of("resumed")) == 1
    with closing(sqlite3.connect(server.world.database / "prefect.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(LOCKED_SECONDS)
        database.execute("ROLLBACK")
    server.world.kill_server()
    until(lambda: log.read_text().count(AWAY) > ENDURED and waiting.has_done("submit"), worker)
    server.world.start_server()
    waiting.ends("Completed", worker)
    assert waiting.read().run_count == 1
    assert server.world.outcome("waiting") == whole()
    end_at_once(worker)
