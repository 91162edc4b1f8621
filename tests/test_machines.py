"""A team's set-up as processes of this machine: a Prefect server with a password on PostgreSQL, artifacts and chains in S3,
and two workers, each with a host name and a home folder of its own. And secrets: nothing of it all may hold one.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import fsspec
import httpx
import psutil
import pytest
import yaml
from cryptography.fernet import Fernet
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from deployments.bootstrap import make_pool
from tests.conftest import VERIFIER_TEMPLATE
from tests.postgres_server import PROGRAMS, Postgres
from tests.server_fixtures import CANARIES, PATIENCE, answers, free_port, kill_group, start, until

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not PROGRAMS, reason="PostgreSQL is not installed: apt-get install postgresql"),
              pytest.mark.skipif(os.getuid() != 0, reason="only root makes namespaces")]

ROOT = Path(__file__).parents[1]
IN_BLOCKS = {"HF_TOKEN": "hf_blockCCCCCCCCCCCCCCCCCCCCCCCCCCCCC", "WANDB_API_KEY": "b10cb10c" * 5,
             "AWS_ACCESS_KEY_ID": "AKIABLOCKDDDDDDDDDDD", "AWS_SECRET_ACCESS_KEY": "block/EEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEE"}
IN_ENVIRONMENT = {**CANARIES, "AWS_ACCESS_KEY_ID": "AKIACANARYIIIIIIIIII"}  # the pair, or that of the blocks is taken
PASSWORD = "team:canaryFFFFFFFFFFFF"
IN_OVERRIDES = ["model.base=hf_overrideGGGGGGGGGGGGGGGGGGGGGGGGGGG", "source.hub=https://team:overrideHHHHHHHHHHHH@hub.example/x"]


# A machine of its own, as far as mathtune can see: the name $0, and at the path $2, which is the same on all, its folder $1
OTHER_MACHINE = 'hostname "$0" && mount --bind "$1" "$2" && cd "$2" && shift 2 && exec "$@"'


class Machine:
    """A worker and what is only its own: a folder, a host name, an environment."""

    def __init__(self, folder: Path, environment: dict[str, str], secrets: dict[str, str]):
        self.home, self.log = folder, folder / "worker.log"
        shutil.copytree(folder.parent / "home", folder)
        tokens = {name: value for name, value in environment.items() if name not in IN_BLOCKS}
        self.environment = {**tokens, **secrets, "PREFECT_HOME": str(folder / "prefect"), "HF_HOME": str(folder / "hf"),
                            "WANDB_DIR": str(folder)}

    def start_worker(self) -> None:
        with open(self.log, "ab") as output:
            self.worker = subprocess.Popen(
                ["unshare", "--uts", "--mount", "sh", "-c", OTHER_MACHINE, self.home.name, self.home, self.home.parent / "home",
                 sys.executable, "-m", "deployments.worker"],
                env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.worker.pid, number)

    @property
    def record(self) -> dict:
        return json.loads((self.home / "runs/tiny/metrics.json").read_text())

    def events(self, kind: str) -> list[dict]:
        lines = [line for file in self.home.glob("runs/tiny/executions/*/events.jsonl") for line in open(file)]
        return [event for event in map(json.loads, lines) if event["event"] == kind]


class Team:
    """The server, and what its clients share: address, password, object store, recipe."""

    def __init__(self, folder: Path, base: Path, bucket: str, database: Postgres):
        self.folder, self.database = folder, database
        self.port = int(free_port())
        self.url, self.key = f"http://127.0.0.1:{self.port}/api", Fernet.generate_key().decode()
        self.store = f"{bucket}/{folder.name}"
        self.recipe = {
            "name": "tiny", "task": "verifier", "source": {"generator": {"rows": 600, "test_rows": 60, "seed": 3}},
            "validation": {"rows": 60}, "chunks": {"size": 96, "end": 192}, "prompt": {"template": VERIFIER_TEMPLATE},
            "model": {"base": str(base), "max_length": 192}, "lora": {"rank": 8, "alpha": 16},
            "sft": {"learning_rate": 1e-4, "examples_per_step": 16}, "hardware": {"device": "cpu"},
            "evaluation": {"words_rows": 20, "batch_size": 60}, "storage": {"root": self.store},
            "tracking": {"project": "maths"}}
        self.environment = {**os.environ, "PREFECT_API_URL": self.url, "PREFECT_API_AUTH_STRING": PASSWORD,
                            "PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_LOGGING_LEVEL": "DEBUG", "WANDB_MODE": "offline",
                            "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
        (folder / "home/recipes").mkdir(parents=True)
        (folder / "home/recipes/tiny.yaml").write_text(yaml.safe_dump(self.recipe))
        content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        content["deployments"] = [one for one in content["deployments"] if one["entrypoint"] == "flows.deployed.train_range"]
        (folder / "home/prefect.yaml").write_text(yaml.safe_dump(content))
        self.hold = folder / "hold"  # while it is not there, an engine stops at its third step, and creates it
        self.hold.touch()
        fault = {"MATHTUNE_FAULT": json.dumps({"at": "step", "ordinal": 3, "do": "stop", "once": str(self.hold)})}
        self.machines = [Machine(folder / "alpha", {**self.environment, **fault}, IN_ENVIRONMENT),
                         Machine(folder / "beta", {**self.environment, **fault}, {})]

    def start_server(self) -> None:
        environment = {**os.environ, "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database.url,
                       "PREFECT_SERVER_API_AUTH_STRING": PASSWORD, "PREFECT_SERVER_ENCRYPTION_KEY": self.key,
                       "PREFECT_HOME": str(self.folder / "server"), "PREFECT_LOGGING_LEVEL": "INFO"}
        self.server = start(self.folder / "server.log", "deployments.server", "--port", str(self.port),
                            env=environment, start_new_session=True)
        until(lambda: answers(self.url), self.server)

    def start_alone(self) -> None:
        """The same chain, by one undisturbed run in a folder."""
        folder = self.folder / "alone"
        folder.mkdir()
        (folder / "tiny.yaml").write_text(yaml.safe_dump({**self.recipe, "storage": {}, "tracking": None}))
        environment = {**self.environment, "PREFECT_HOME": str(folder / "prefect"), "PREFECT_LOGGING_LEVEL": "CRITICAL"}
        self.run_alone = start(folder / "output.log", "flows.cli", "run", "tiny.yaml", cwd=folder, env=environment)

    def alone(self) -> list[str]:
        """Adapter digests of that chain."""
        assert self.run_alone.wait(PATIENCE) == 0, (self.folder / "alone/output.log").read_text()
        return digests(json.loads((self.folder / "alone/runs/tiny/metrics.json").read_text()))

    def client(self) -> SyncPrefectClient:
        return get_client(sync_client=True)

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """A module run by a person in the folder from which all is deployed."""
        return subprocess.run([sys.executable, "-m", *arguments], cwd=self.folder / "home", text=True, timeout=4 * PATIENCE,
                              env={**self.environment, "PREFECT_HOME": str(self.folder / "client"), **environment},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def ask(self, deployment: str, **parameters: int) -> str:
        """Asks for a run of the tiny recipe; its id."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters={"recipe": "tiny", **parameters}).id

    def end(self, run: str) -> str:
        """The state in which a run ended."""
        with self.client() as client:
            return until(lambda: (state := client.read_flow_run(run).state).is_final() and state.name, self.server)


@pytest.fixture(scope="module")
def team(tiny_base, s3_server, tmp_path_factory):
    """With its deployments made, both workers at work, and besides an undisturbed run of one machine alone."""
    with Postgres() as database:
        team = Team(tmp_path_factory.mktemp("team"), tiny_base, s3_server, database)
        with temporary_settings({PREFECT_API_URL: team.url, PREFECT_API_AUTH_STRING: PASSWORD}):
            try:
                team.start_server()
                make_pool("gpu")
                for machine in team.machines:
                    machine.start_worker()
                ran = team.command("deployments.bootstrap", "--secret", *IN_BLOCKS, **IN_BLOCKS)
                assert ran.returncode == 0, ran.stdout
                team.start_alone()
                yield team
            finally:
                for machine in team.machines:
                    if hasattr(machine, "worker"):
                        machine.signal(signal.SIGKILL)
                        machine.worker.wait()
                if hasattr(team, "run_alone"):
                    team.run_alone.kill()
                    team.run_alone.wait()
                kill_group(team.server)


def digests(record: dict) -> list[str]:
    return [link["adapter_digest"] for link in record["links"]]


def test_ranges_on_two_machines_make_the_chain_that_one_makes_alone(team):
    """The second range grows on a link that another machine has trained; asked for on both at once, it is trained once."""
    assert team.end(team.ask("train-range/demo", start=0, end=96)) == "Completed"
    first, second = sorted(team.machines, key=lambda machine: not (machine.home / "runs").is_dir())
    assert not (second.home / "runs").exists()
    first.signal(signal.SIGSTOP)
    team.hold.unlink()
    trained = team.ask("train-range/demo", next=96)
    until(team.hold.exists, second.worker)
    first.signal(signal.SIGCONT)
    served = team.ask("train-range/verifier", start=96, end=192)
    until(lambda: any(f" on {second.home.name}, " in event["text"] for event in first.events("notice")), first.worker)
    os.kill(second.events("ready")[-1]["pid"], signal.SIGCONT)
    assert [team.end(run) for run in (trained, served)] == ["Completed", "Completed"]

    states = [[event["state"] for event in machine.events("stage") if event["title"] == "train-chunk[96:192)"]
              for machine in (first, second)]
    assert states == [["started", "cached"], ["started", "done"]]
    links = [[(link["start"], link["end"], link["served"]) for link in machine.record["links"]] for machine in (first, second)]
    assert links == [[(0, 96, True), (96, 192, False)]] * 2
    for machine in (first, second):
        assert digests(machine.record) == team.alone()
        assert all(link["metrics"] and link["training"]["steps"] and Path(machine.home, link["adapter"]).is_dir()
                   for link in machine.record["links"])
        page = (machine.home / "runs/tiny/report.html").read_text()
        assert "[0:96)" in page and "[96:192)" in page


def test_the_server_is_not_reachable_from_outside_and_wants_its_password(team):
    outside = next(address.address for addresses in psutil.net_if_addrs().values() for address in addresses
                   if address.family == socket.AF_INET and not address.address.startswith("127."))
    with socket.create_server(("0.0.0.0", 0)) as everywhere:
        socket.create_connection((outside, everywhere.getsockname()[1]), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((outside, team.port), timeout=5)
    for password, status in ((None, 401), ("team:wrong", 401), (PASSWORD, 200)):
        auth = tuple(password.split(":")) if password else None
        assert httpx.post(f"{team.url}/flow_runs/filter", json={}, auth=auth, trust_env=False).status_code == status


def test_a_wrong_password_is_told_with_what_to_do(team):
    commands = {"bootstrap": ["deployments.bootstrap"], "run": ["flows.cli", "evaluate", "recipes/tiny.yaml"]}
    environment = {**team.environment, **CANARIES, "PREFECT_API_AUTH_STRING": "team:wrong", "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    logs = {name: team.folder / f"wrong-{name}.log" for name in commands}
    asked = [start(logs[name], *command, cwd=team.folder / "home", env=environment) for name, command in commands.items()]
    assert all([process.wait(PATIENCE) for process in asked])
    for log in logs.values():
        assert "PREFECT_API_AUTH_STRING" in log.read_text() and "Traceback" not in log.read_text(), log.read_text()


def test_a_parameter_with_a_token_is_refused_before_it_is_kept(team):
    """What it would have left is looked for below."""
    with team.client() as client:
        deployment = client.read_deployment_by_name("train-range/demo")
        for override in IN_OVERRIDES:
            with pytest.raises(PrefectHTTPStatusError, match="should not be valid under"):
                client.create_flow_run_from_deployment(deployment.id, parameters={"recipe": "tiny", "overrides": [override]})


def test_no_secret_is_left_anywhere_but_encrypted(team):
    """Last, over all that the tests before have left. The second machine reached S3 by what Secret blocks hold, and no else."""
    secrets = {*IN_ENVIRONMENT.values(), *IN_BLOCKS.values(), *IN_OVERRIDES, PASSWORD, team.key, team.database.password}
    texts = {str(path): path.read_bytes() for path in team.folder.rglob("*") if path.is_file()}
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    texts |= {path: store.cat_file(path) for path in store.find(team.store)}
    texts["database"] = team.database.dump().encode()
    for kind in ("flow_runs", "task_runs", "logs", "artifacts", "events", "block_documents", "deployments", "variables"):
        answer = httpx.post(f"{team.url}/{kind}/filter", json={}, auth=tuple(PASSWORD.split(":")), trust_env=False)
        texts[kind] = answer.raise_for_status().content
    seen = {Path(name).name for name in texts}
    assert {"events.jsonl", "engine.log", "report.html", "link.json", "worker.log", "server.log", "database"} <= seen
    assert [(name, secret) for name, text in texts.items() for secret in secrets if secret.encode() in text] == []

    kept = team.database.query("SELECT data FROM block_document WHERE name = 'hf-token'")
    assert IN_BLOCKS["HF_TOKEN"].encode() in Fernet(team.key).decrypt(json.loads(kept))
    assert team.database.query("SELECT count(*) FROM configuration WHERE key = 'ENCRYPTION_KEY'") == "0"
