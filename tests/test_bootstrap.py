"""A server made ready by one command, again and again, and what doctor says of it; the automations on a real server."""

import importlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import yaml
from prefect import Flow
from prefect.blocks.system import Secret
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    BlockDocumentUpdate,
    DeploymentScheduleCreate,
    GlobalConcurrencyLimitCreate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import BlockDocument
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.events.schemas.events import Event, Resource
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Completed, Crashed, Pending, Running, State

from deployments import bootstrap
from deployments.server import check_host
from flows import server_state
from flows.automations import HEARTBEAT, RESTART, TAG, ZOMBIE, restart, resubmit, zombie
from flows.deploy_file import read_file, schedule_of
from flows.doctor import check_prefect
from flows.prepare import open_workspace
from flows.server_state import check_leases, read_state
from mathtune.errors import MachineError, RecipeError, UserError
from mathtune.recipe_file import load_recipe
from storage import ArtifactStore, CheckpointStore
from tasks.deployment import ATTEMPTS
from tasks.slots import IN_MEMORY
from tests.server_fixtures import LOADED_SECONDS, answers, free_port, kill_group

ROOT = Path(__file__).parents[1]
LOGIN = "team:planted-password"
TOKEN = "hf_plantedAAAAAAAAAAAAAAAAAAAAAAAAAA"
DAY = datetime(2030, 1, 1, tzinfo=UTC)
SERIALIZER = "PREFECT_RESULTS_DEFAULT_SERIALIZER"
PATIENCE = 120  # seconds, on a busy machine


def test_a_block_opens_its_store_without_a_server(tmp_path):
    store = ArtifactStore(root=str(tmp_path / "artifacts")).open()
    made = store.get_or_build("stage", "key", lambda folder: (folder / "x").write_text("x") and {})
    assert made.folder == tmp_path / "artifacts" / "stage" / "key"
    assert CheckpointStore(root=str(tmp_path / "chains")).open("c").links() == []
    assert CheckpointStore().root == ".mathtune/chains"


@pytest.mark.parametrize("block", [ArtifactStore, CheckpointStore])
def test_a_block_holds_no_password(block):
    with pytest.raises(RecipeError, match="password or token in root") as caught:
        block(root="s3://KEY:planted-password@bucket")
    assert "planted" not in str(caught.value)


def test_bootstrap_prints_no_password_and_saves_none(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["bootstrap", "--home", str(tmp_path), "--root", "s3://KEY:planted-password@bucket"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="--root") as caught:
        bootstrap.main()
    assert "planted" not in str(caught.value) + "".join(capsys.readouterr())


def test_what_bootstrap_cannot_deploy_is_refused(tmp_path):
    file = tmp_path / "prefect.yaml"
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for place, key in ((content, "build"), (content["deployments"][0], "triggers"),
                       (content["deployments"][4]["schedules"][0], "crno")):
        place[key] = [{}]
        file.write_text(yaml.safe_dump(content))
        with pytest.raises(MachineError, match=f"{key} cannot be deployed"):
            read_file(file)
        del place[key]


@pytest.mark.parametrize(("when", "told"), [
    ({"cron": "0 2 * * *", "timezone": "Asia/Tokyo"}, CronSchedule(cron="0 2 * * *", timezone="Asia/Tokyo")),
    ({"interval": 3600, "anchor_date": DAY}, IntervalSchedule(interval=timedelta(hours=1), anchor_date=DAY))])
def test_a_schedule_is_told_as_the_file_says_it(when, told):
    said = schedule_of({"slug": "often", "active": False, "parameters": {"next": 7}, **when})
    assert (said.slug, said.active, said.parameters, said.schedule) == ("often", False, {"next": 7}, told)


def test_every_deployment_names_a_flow_that_is_there_and_has_the_automations_tag():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert len(deployments) == 13
    for deployment in deployments:
        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert isinstance(flow, Flow) and deployment.get("parameters", {}).keys() <= flow.parameters.properties.keys()
        assert deployment["tags"] == [TAG] and deployment["work_pool"]["job_variables"]["env"][SERIALIZER] == "json"


@pytest.mark.parametrize(("host", "secret", "refused"), [
    ("127.0.0.1", False, False), ("localhost", False, False), ("::1", False, False), ("0.0.0.0", False, True),
    ("::", False, True), ("192.0.2.7", False, True), ("0.0.0.0", True, False)])
def test_a_server_that_others_reach_asks_for_a_password(host, secret, refused):
    if not refused:
        return check_host(host, secret)
    with pytest.raises(MachineError, match="PREFECT_SERVER_API_AUTH_STRING"):
        check_host(host, secret)


def test_without_a_server_there_is_nothing_to_make(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["bootstrap", "--home", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    for url, message in ((None, "no Prefect server is configured"), ("http://127.0.0.1:9/api", "does not answer")):
        with temporary_settings({PREFECT_API_URL: url}), pytest.raises(MachineError, match=message) as caught:
            bootstrap.main()
        assert "python -m deployments.server" in caught.value.remedy


def test_a_secret_is_one_that_runs_take_and_is_set(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for variable, message in (("PATH", "no run takes"), ("HF_TOKEN", "is not set")):
        with pytest.raises(UserError, match=message):
            bootstrap.save_secret(variable)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with authentication, begun as a person begins it: the folder of its runs, and what bootstrap printed."""
    folder = tmp_path_factory.mktemp("team")
    home = folder / "home"
    home.mkdir()
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(folder / "server"), "PREFECT_SERVER_API_AUTH_STRING": LOGIN,
                   "PREFECT_SERVER_UI_ENABLED": "false", "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S"}
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "deployments.server", "--port", port], cwd=ROOT, env=environment,
                                   stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_for(lambda: answers(url), process)
        client = {**os.environ, "PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": LOGIN, "HF_TOKEN": TOKEN,
                  "PREFECT_HOME": str(folder / "client"), "PYTHONPATH": str(ROOT)}
        first = subprocess.run([sys.executable, "-m", "deployments.bootstrap", "--home", "home", "--secret", "HF_TOKEN"],
                               cwd=folder, env=client, capture_output=True, text=True, timeout=PATIENCE)
        with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: LOGIN}):
            yield home, first
        process.send_signal(signal.SIGTERM)  # reaches Prefect itself
        process.wait(PATIENCE)
    finally:
        kill_group(process)


def wait_for(condition, process: subprocess.Popen | None = None):
    """What a condition gives once it gives something."""
    for _ in range(PATIENCE * 10):
        if found := condition():
            return found
        assert process is None or process.poll() is None, "the server ended"
        time.sleep(0.1)
    pytest.fail(f"nothing after {PATIENCE} s")


@pytest.fixture
def home(server):
    return server[0]


@pytest.fixture
def client(server):
    with get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def again(home, monkeypatch, capsys):
    """Runs bootstrap once more: what it said of each thing."""

    def run(*arguments: str) -> dict[str, str]:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["bootstrap", "--home", str(home), *arguments])
        monkeypatch.setenv("MATHTUNE_HOME", "")  # which bootstrap sets
        bootstrap.main()
        lines = capsys.readouterr().out.partition("\n\nnext")[0].splitlines()
        return {line[:60].strip(): line[60:].strip() for line in lines}

    return run


def everything(client: SyncPrefectClient) -> list[list[dict]]:
    """All that is on the server, with ids and times of change."""
    found = (client.read_work_pools(), client.read_block_types(), client.read_block_documents(), client.read_automations(),
             client.read_deployments(), client.read_flows(), client.read_global_concurrency_limits())
    return [sorted((one.model_dump(mode="json") for one in many), key=lambda one: one["id"]) for many in found]


@pytest.mark.slow
def test_the_first_time_makes_all_and_the_second_changes_nothing(server, client, again, monkeypatch):
    home, first = server
    assert first.returncode == 0, first.stderr
    lines = first.stdout.partition("\n\nnext")[0].splitlines()
    lines = [line for line in lines if not line.startswith("limit ")]  # one a GPU of this machine
    assert len(lines) == 21 and all(line.endswith(" made") for line in lines[:-1]) and "kept (filesystem)" in lines[-1]
    assert "python -m deployments.worker --pool gpu" in first.stdout and TOKEN not in first.stdout + first.stderr
    assert Secret.load("hf-token").get() == TOKEN
    before = everything(client)
    assert [len(many) for many in (before[0], before[3], before[4])] == [1, 3, 13]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    said = again("--secret", "HF_TOKEN")
    assert {outcome.partition(":")[0] for outcome in said.values()} == {"is there", "kept (filesystem)"}
    assert everything(client) == before


@pytest.mark.slow
def test_what_people_decided_stays_and_what_differs_is_set_back(home, client, again):
    nightly = client.read_deployment_by_name("train-range/demo-nightly")
    schedule = nightly.schedules[0]
    client.update_deployment_schedule(nightly.id, schedule.id, active=True, schedule=CronSchedule(cron="30 3 * * *"))
    client.create_deployment_schedules(nightly.id, [DeploymentScheduleCreate(
        schedule=CronSchedule(cron="0 9 * * *"), slug="mine", max_scheduled_runs=2, active=False)])
    client.pause_deployment(nightly.id)
    client.update_work_pool("gpu", WorkPoolUpdate(concurrency_limit=3))
    other = client.read_deployment_by_name("evaluate/demo")
    for one in (nightly, other):
        client.request("PATCH", "/deployments/{id}", path_params={"id": one.id},
                       json={"parameters": {"recipe": "gone"}, "enforce_parameter_schema": False})
    bare = client.read_deployment_by_name("train-range/verifier-nightly")
    client.delete_deployment_schedule(bare.id, bare.schedules[0].id)
    crashed = client.read_automations_by_name(RESTART)[0]
    client.pause_automation(crashed.id)
    silent = client.read_automations_by_name(ZOMBIE)[0]
    client.update_automation(silent.id, zombie(silent=timedelta(seconds=600)))
    said = again()
    assert said["deployment evaluate/demo"] == "changed: parameters"
    assert said["deployment train-range/demo-nightly"] == "changed: parameters"
    assert said["deployment train-range/verifier-nightly"] == "changed: schedule nightly"
    assert said["deployment pipeline/demo"] == "is there"
    assert said[f"automation {ZOMBIE!r}"] == "changed" and "prefect automation resume" in said[f"automation {RESTART!r}"]
    found = client.read_deployment_by_name("train-range/demo-nightly")
    assert (found.id, found.parameters, found.paused) == (nightly.id, {"recipe": "demo", "next": 1200}, True)
    assert sorted((one.slug, one.active, one.schedule.cron, one.max_scheduled_runs) for one in found.schedules) == [
        ("mine", False, "0 9 * * *", 2), ("nightly", True, "30 3 * * *", None)]
    assert schedule.id in {one.id for one in found.schedules}
    made = client.read_deployment_by_name("train-range/verifier-nightly").schedules
    assert [(one.slug, one.active, one.schedule.cron) for one in made] == [("nightly", False, "0 2 * * *")]
    assert client.read_work_pool("gpu").concurrency_limit == 3
    assert not client.read_automation(crashed.id).enabled
    assert client.read_automation(silent.id).trigger.within == timedelta(seconds=90)
    client.resume_automation(crashed.id)
    assert set(again().values()) <= {"is there", "kept (filesystem)", f"is there: {home}/.mathtune/artifacts",
                                     f"is there: {home}/.mathtune/chains"}


@pytest.mark.slow
def test_a_new_deployment_leaves_the_automations_alone_and_else_says_whom_it_forgets(client, again):
    before = client.read_automations()
    client.delete_deployment(client.read_deployment_by_name("submit/demo").id)
    runs = Runs(client, TAG)
    run = runs.begin(Pending(), Running())
    assert again()["deployment submit/demo"] == "made"
    assert client.read_automations() == before
    runs.tell(run, Crashed())
    runs.comes_back(run)

    runs.tell(run, Pending(), Running())
    found = client.read_automations_by_name(RESTART)[0]
    client.update_automation(found.id, restart().model_copy(update={"description": "other"}))
    name = client.read_flow_run(run).name
    assert again()[f"automation {RESTART!r}"] == f"changed; if one of these crashes, start it again yourself: {name}"
    client.delete_flow_run(run)
    client.delete_deployment(runs.deployment)


@pytest.mark.slow
def test_a_recipe_can_name_the_blocks(home, tmp_path):
    recipe = load_recipe(ROOT / "recipes" / "demo.yaml", [
        "chain=small", f"storage.runs={tmp_path / 'runs'}", f"storage.root={tmp_path / 'unused'}",
        "storage.artifact_block=default", "storage.checkpoint_block=default"])
    with open_workspace(recipe, "x") as work:
        assert work.artifacts.folders.root == home / ".mathtune" / "artifacts"
        assert (work.chain.folders.root, work.chain.name) == (home / ".mathtune" / "chains", "small")


@pytest.mark.slow
def test_doctor_sees_each_thing_that_is_missing(home, client, again):
    again()
    assert bad() == {"worker": "python -m deployments.worker --pool gpu"}
    client.send_worker_heartbeat("gpu", "here", heartbeat_interval_seconds=600)
    assert bad() == {}

    with temporary_settings({PREFECT_API_AUTH_STRING: "team:wrong"}):
        assert "PREFECT_API_AUTH_STRING" in bad()["Prefect"]
    client.update_work_pool("gpu", WorkPoolUpdate(is_paused=True))
    assert bad() == {"pool": "prefect work-pool resume gpu"}
    client.update_work_pool("gpu", WorkPoolUpdate(is_paused=False))
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu:here", limit=1, active=False))
    assert bad() == {"limits": "prefect gcl enable gpu:here"}
    client.delete_global_concurrency_limit_by_name("gpu:here")
    place = client.read_block_document_by_name("default", "mathtune-checkpoint-store")
    update_root(client, place, "s3://KEY:planted-password@bucket")
    assert "blocks" in bad() and "planted" not in str(check_prefect())
    update_root(client, place, place.data["root"])
    client.pause_automation(client.read_automations_by_name(ZOMBIE)[0].id)
    assert bad() == {"automations": f"prefect automation resume {ZOMBIE!r}"}
    client.resume_automation(client.read_automations_by_name(ZOMBIE)[0].id)

    fix = "python -m deployments.bootstrap"
    document = client.read_block_document_by_name("default", "mathtune-artifact-store")
    client.delete_block_document(document.id)
    assert bad() == {"blocks": fix}
    deployment = client.read_deployment_by_name("submit/demo")
    client.request("PATCH", "/deployments/{id}", path_params={"id": deployment.id}, json={"entrypoint": "flows.old.submit"})
    assert bad() == {"blocks": fix, "deployments": f"{fix} --home {home}"}
    client.delete_deployment(deployment.id)
    assert bad().keys() == {"blocks", "deployments"}
    client.delete_automation(client.read_automations_by_name(RESTART)[0].id)
    assert bad()["automations"] == fix
    again()
    assert bad() == {}

    assert not check_leases(replace(read_state(), lease_storage=IN_MEMORY)).good
    home.rename(home.with_name("away"))
    assert bad() == {"deployments": f"{fix} --home FOLDER"}
    home.with_name("away").rename(home)
    client.delete_work_pool("gpu")
    assert bad()["pool"] == fix
    again()
    assert bad().keys() == {"worker"}


def update_root(client: SyncPrefectClient, document: BlockDocument, root: str) -> None:
    """As the UI does, which knows nothing of the block's class."""
    client.update_block_document(document.id, BlockDocumentUpdate(data={**document.data, "root": root}))


@pytest.mark.slow
def test_other_peoples_things_on_the_server_are_theirs(home, client, again, monkeypatch):
    again()
    theirs = client.create_deployment(
        client.create_flow_from_name("aaa"), "aaa", entrypoint="theirs.flow", work_pool_name=client.create_work_pool(
            WorkPoolCreate(name="theirs", type="process")).name,
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": "/theirs"}}])
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu:far", limit=1))
    whole = read_state()
    monkeypatch.setattr(server_state, "PAGE", 4)
    state = read_state()
    assert state == whole
    assert (state.home, state.pool, state.limits.keys(), len(state.deployments)) == (home, "gpu", {"gpu:far"}, 14)
    client.delete_global_concurrency_limit_by_name("gpu:far")
    client.delete_deployment(theirs)


def bad() -> dict[str, str]:
    """What doctor finds fault with, and its remedies."""
    return {finding.about: finding.remedy for finding in check_prefect() if not finding.good}


class Runs:
    """Runs of one deployment, whose states are told as a worker and a flow tell them."""

    def __init__(self, client: SyncPrefectClient, tag: str, pool: str = "process"):
        self.client, self.tag, self.pool = client, tag, pool
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=pool, type=pool))
        self.deployment = client.create_deployment(client.create_flow_from_name("probe"), f"{tag}-{pool}", work_pool_name=pool,
                                                   entrypoint="nobody.runs_it", tags=[tag])

    def begin(self, *states: State) -> UUID:
        run = self.client.create_flow_run_from_deployment(self.deployment).id
        self.tell(run, *states)
        return run

    def tell(self, run: UUID, *states: State) -> None:
        for state in states:
            self.client.set_flow_run_state(run, state)

    def state(self, run: UUID) -> str:
        return self.client.read_flow_run(run).state.type.value

    def comes_back(self, run: UUID) -> None:
        wait_for(lambda: self.state(run) == "SCHEDULED")

    def event(self, run: UUID, name: str) -> None:
        event = Event(event=name, resource=Resource({"prefect.resource.id": f"prefect.flow-run.{run}"}), related=[
            {"prefect.resource.id": f"prefect.deployment.{self.deployment}", "prefect.resource.role": "deployment"},
            {"prefect.resource.id": f"prefect.tag.{self.tag}", "prefect.resource.role": "tag"},
            {"prefect.resource.id": f"prefect.work-pool.{self.pool}", "prefect.resource.role": "work-pool",
             "prefect.work-pool.type": self.pool}])
        self.client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()


def create(client: SyncPrefectClient, *automations: AutomationCore) -> None:
    """Besides those that the server has."""
    for automation in automations:
        client.create_automation(automation.model_copy(update={"name": f"{automation.name} ({uuid4()})"}))
    time.sleep(LOADED_SECONDS)


def refused(client: SyncPrefectClient) -> set[str]:
    """Why actions of automations were not done."""
    asked = {"filter": {"event": {"name": ["prefect.automation.action.failed"]}}, "limit": 50}
    return {event["payload"]["reason"] for event in client.request("POST", "/events/filter", json=asked).json()["events"]}


@pytest.mark.slow
def test_a_crashed_run_starts_again_if_it_had_begun_and_not_for_ever(client):
    runs = Runs(client, "restarted")
    create(client, restart(runs.tag))
    never = runs.begin(Pending(), Crashed())
    done = runs.begin(Pending(), Running(), Completed())
    run = runs.begin(Pending(), Running(), Crashed())
    runs.comes_back(run)
    runs.tell(run, Pending(), Crashed())  # its folder is gone
    loop = runs.begin()
    for _ in range(ATTEMPTS):
        runs.tell(loop, Pending(), Running(), Crashed())
        runs.comes_back(loop)
    runs.tell(loop, Pending(), Running(), Crashed())
    last = runs.begin(Pending(), Running(), Crashed())
    runs.comes_back(last)  # events are dealt with one after the other: the ones before had their turn
    assert [runs.state(one) for one in (never, done, run, loop)] == ["CRASHED", "COMPLETED", "CRASHED", "CRASHED"]


@pytest.mark.slow
def test_no_crash_is_missed_while_others_write_to_the_database(home, client):
    runs = Runs(client, "busy")
    create(client, restart(runs.tag))
    begun = [runs.begin(Pending(), Running()) for _ in range(5)]
    over = threading.Event()
    writer = threading.Thread(target=write_all_the_time, args=(home.parent / "server" / "prefect.db", over))
    writer.start()
    try:
        for run in begun:
            runs.tell(run, Crashed())
        for run in begun:
            runs.comes_back(run)
    finally:
        over.set()
        writer.join()


def write_all_the_time(database: Path, over: threading.Event) -> None:
    connection = sqlite3.connect(database, timeout=60, isolation_level=None)
    while not over.wait(0.001):
        connection.execute("UPDATE work_pool SET description = description")
    connection.close()


@pytest.mark.slow
def test_silent_runs_and_those_that_never_began_are_brought_back_and_others_are_not(client):
    runs, short = Runs(client, "silent"), timedelta(seconds=10)
    create(client, zombie(runs.tag, short), resubmit(runs.tag, short))
    waiting = Runs(client, runs.tag, "kubernetes").begin(Pending())  # for a GPU
    taken = runs.begin(Pending())
    done, cancelled, silent = (runs.begin(Pending(), Running()) for _ in range(3))
    begun = runs.begin(Running())
    runs.tell(cancelled, Cancelling())
    runs.tell(done, Completed())
    for run in (done, cancelled, silent):
        runs.event(run, HEARTBEAT)  # that of the run which is done comes late
    runs.event(begun, "prefect.flow-run.Pending")  # and so does this
    runs.comes_back(taken)
    wait_for(lambda: runs.state(silent) == "CRASHED")
    assert client.read_flow_run(silent).state.message == "no heartbeat for 10 s"
    wait_for(lambda: refused(client) == {f"it comes too late: the run is {state} by now"
                                         for state in ("COMPLETED", "CANCELLING", "RUNNING")})
    left = {"done": done, "cancelled": cancelled, "waiting": waiting, "begun": begun}
    assert {name: runs.state(run) for name, run in left.items()} == {
        "done": "COMPLETED", "cancelled": "CANCELLING", "waiting": "PENDING", "begun": "RUNNING"}
