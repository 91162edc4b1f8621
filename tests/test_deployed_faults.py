"""Faults of runs that a server's deployments start: worker killed or preempted, machine gone, server restarted or away, its
database locked. A run ends as Prefect documents, its slot is free again, and the next start goes on from the last checkpoint.

One server, the automations of a team's, ``pipeline/demo`` and ``pipeline/verifier`` with a limit of one run each, as
``prefect.yaml`` says. ``pipeline/verifier`` has a pool of its own here, so that the machine that goes away is one worker's.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, suppress
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
from flows.automations import automations
from tests.server_fixtures import PATIENCE, Run, World, start, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the first test waits for server, deployments and two runs

ROOT = Path(__file__).parents[1]
NAMES = ("whole", "vanished", "preempted", "away", "locked")
LEASES = "prefect.server.concurrency.lease_storage.filesystem"


class Deployed:
    """A server with both deployments, and the workers that a test starts."""

    def __init__(self, world: World):
        self.world, self.workers = world, []
        world.environment |= {"MATHTUNE_HOME": str(world.folder), "PREFECT_WORKER_QUERY_SECONDS": "1",
                              "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES}

    def deploy(self) -> None:
        (self.world.folder / "recipes").mkdir()
        for name in NAMES:  # the names that the form offers are those of the time of deploying
            self.world.recipe(name, chunks={"size": 96, "end": 96},
                              sft={"learning_rate": 1e-4, "examples_per_step": 16, "save_every": 2, "epochs": 6})
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
            verifier = client.read_deployment_by_name("pipeline/verifier").id
            client.update_deployment(verifier, DeploymentUpdate(work_pool_name="other"))
            for automation in automations():
                client.create_automation(automation)

    def worker(self, *command: str, pool: str = "gpu") -> subprocess.Popen:
        """One that takes one run at a time: ours, or what ``command`` says."""
        command = command or ("deployments.worker", "--pool", pool, "--limit", "1")
        self.workers.append(start(self.world.folder / f"worker-{len(self.workers)}.log", *command, cwd=self.world.folder,
                                  env=self.world.environment, start_new_session=True))
        return self.workers[-1]

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

    def events(self) -> list[dict]:
        """Of the last start."""
        files = sorted((self.world.folder / "runs" / self.recipe / "executions").glob("*/events.jsonl"))
        lines = files[-1].read_text().splitlines(keepends=True) if files else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def of(self, kind: str) -> list[dict]:
        return [event for event in self.events() if event["event"] == kind]

    def trains(self, worker: subprocess.Popen, starts: int) -> int:
        """Waits until the so-and-so-many-th start has trained three steps. Returns its flow process."""
        executions = self.world.folder / "runs" / self.recipe / "executions"
        until(lambda: len(list(executions.glob("*/events.jsonl"))) == starts and len(self.of("step")) > 2, worker)
        return self.of("begin")[0]["pid"]

    def ends(self, state: str, worker: subprocess.Popen) -> None:
        until(lambda: self.state == state, worker)


def end_at_once(worker: subprocess.Popen) -> None:
    """As a machine that loses its power: the worker and all that it started."""
    for process in [*psutil.Process(worker.pid).children(recursive=True), worker]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    worker.wait()


@pytest.fixture(scope="module")
def server(tiny_base, tmp_path_factory):
    world = World(tmp_path_factory.mktemp("deployed"), tiny_base)
    deployed = Deployed(world)
    with temporary_settings({PREFECT_API_URL: world.url}):
        world.start_server()
        try:
            deployed.deploy()
            yield deployed
        finally:
            deployed.end()
            world.kill_server()


@pytest.fixture
def worker(server):
    worker = server.worker()
    yield worker
    end_at_once(worker)


@pytest.fixture(scope="module")
def vanished(server):
    """A run whose machine went away in the middle of its training, long before the test that looks at it."""
    execution, worker = server.begin("vanished", "pipeline/verifier"), server.worker(pool="other")
    execution.trains(worker, 1)
    end_at_once(worker)
    assert execution.state == "Running"
    return execution


@pytest.fixture(scope="module")
def whole(server, vanished):
    """What an undisturbed run ends with."""
    run = Run(server.world, "whole")
    assert run.end() == 0, run.output
    return server.world.outcome("whole")


def test_a_preempted_run_is_saved_and_goes_on_whoever_is_told_first(server, whole):
    """One flow run on six workers; the automation starts it again each time, and the limit of one run never stands in its way.
    One that had not begun waits as if it had not been taken; where the worker alone is killed its run sees that by itself."""
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

    def worker_and_then_run_told(worker: subprocess.Popen, flow: int) -> None:
        worker.terminate()
        os.kill(flow, signal.SIGTERM)

    def worker_killed(worker: subprocess.Popen, flow: int) -> None:
        worker.kill()

    faults = (worker_told, run_and_then_worker_told, worker_and_then_run_told, worker_killed)
    for starts, fault in enumerate(faults, 1):
        worker = server.worker()
        flow = execution.trains(worker, starts)
        fault(worker, flow)
        assert worker.wait(PATIENCE) == (-signal.SIGKILL if fault is worker_killed else 0)
        until(lambda: execution.of("stopped"), server.world.server)  # the run of a killed worker looks for it every second
        assert [event["saved"] for event in execution.of("stopped")] == [True], fault.__name__
        assert [event["step"] for event in execution.of("resumed")] == reached[-1:]
        reached.append(execution.of("step")[-1]["step"])
    worker = server.worker()
    execution.trains(worker, 5)
    server.world.kill_server()
    server.world.start_server()
    execution.ends("Completed", worker)
    assert execution.read().run_count == 5
    assert server.world.outcome("preempted") == whole
    end_at_once(worker)


def test_a_server_that_is_away_is_waited_for(server, worker, whole):
    """Chunk, evaluation and submission are done meanwhile; the run tells so as soon as it can, and is not started twice."""
    away = server.begin("away")
    away.trains(worker, 1)
    server.world.kill_server()
    until(lambda: any(one["title"] == "submit" and one["state"] == "done" for one in away.of("stage")), worker)
    server.world.start_server()
    away.ends("Completed", worker)
    assert away.read().run_count == 1
    assert server.world.outcome("away") == whole


def test_a_cancelled_run_frees_its_slot_and_the_next_goes_on_though_the_database_is_locked(server, worker, whole):
    """Cancelled as the UI does, by asking the server. SQLite gives up a write after 10 s; the client asks again."""
    cancelled = server.begin("locked")
    cancelled.trains(worker, 1)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(cancelled.id, Cancelling())
    cancelled.ends("Cancelled", worker)
    assert [event["saved"] for event in cancelled.of("stopped")] == [True]

    locked = server.begin("locked")
    locked.trains(worker, 2)
    assert len(locked.of("resumed")) == 1
    with closing(sqlite3.connect(server.world.database / "prefect.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(30)
        database.execute("ROLLBACK")
    locked.ends("Completed", worker)
    assert locked.read().run_count == 1
    assert server.world.outcome("locked") == whole


def test_a_run_whose_machine_is_gone_is_crashed_and_started_again_by_the_automations(server, vanished, whole):
    """Three heartbeats of 30 s must be missed; then another worker of the pool goes on, and nothing holds the slot."""
    worker = server.worker(pool="other")
    vanished.trains(worker, 2)
    assert [event["step"] for event in vanished.of("resumed")][0] >= 2
    vanished.ends("Completed", worker)
    assert vanished.read().run_count == 2
    assert server.world.outcome("vanished") == whole
    worker.terminate()
    assert worker.wait(PATIENCE) == 0
