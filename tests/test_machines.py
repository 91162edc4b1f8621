"""A team's set-up as processes of this machine: a Prefect server with a password on PostgreSQL, artifacts and chains in S3,
and two workers that share no folder, each with a host name of its own. And secrets: nothing of it all may hold one.
"""

import json
import os
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
from prefect.blocks.system import Secret
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tests.conftest import VERIFIER_TEMPLATE
from tests.postgres_server import PROGRAMS, Postgres
from tests.server_fixtures import CANARIES, PATIENCE, start, until

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not PROGRAMS, reason="PostgreSQL is not installed: apt-get install postgresql")]

ROOT = Path(__file__).parents[1]
RANGES = [(0, 96), (96, 192), (192, 288)]
IN_BLOCKS = {"HF_TOKEN": "hf_blockCCCCCCCCCCCCCCCCCCCCCCCCCCCCC", "WANDB_API_KEY": "b10cb10c" * 5,
             "AWS_ACCESS_KEY_ID": "AKIABLOCKDDDDDDDDDDD", "AWS_SECRET_ACCESS_KEY": "block/EEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEE"}
PASSWORD = "team:canaryFFFFFFFFFFFF"


class Machine:
    """A worker and what is only its own: a folder, a host name, an environment."""

    def __init__(self, folder: Path, recipe: dict, environment: dict[str, str], secrets: dict[str, str]):
        self.home, self.log = folder, folder / "worker.log"
        (folder / "recipes").mkdir(parents=True)
        (folder / "recipes" / "tiny.yaml").write_text(yaml.safe_dump(recipe))
        tokens = {name: value for name, value in environment.items() if name not in IN_BLOCKS}
        self.environment = {**tokens, **secrets, "MATHTUNE_HOME": str(folder), "PREFECT_HOME": str(folder / "prefect"),
                            "HF_HOME": str(folder / "hf"), "WANDB_DIR": str(folder)}

    def start_worker(self) -> None:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "gpu", "--limit", "1", "--name", self.home.name]
        with open(self.log, "ab") as output:
            self.worker = subprocess.Popen(
                ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.home.name, *command],
                cwd=self.home, env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

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
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.key = f"http://127.0.0.1:{self.port}/api", Fernet.generate_key().decode()
        self.store = f"{bucket}/{folder.name}"
        self.recipe = {
            "name": "tiny", "task": "verifier", "source": {"generator": {"rows": 600, "test_rows": 60, "seed": 3}},
            "validation": {"rows": 60}, "chunks": {"size": 96, "end": 288}, "prompt": {"template": VERIFIER_TEMPLATE},
            "model": {"base": str(base), "max_length": 192}, "lora": {"rank": 8, "alpha": 16},
            "sft": {"learning_rate": 1e-4, "examples_per_step": 16}, "hardware": {"device": "cpu"},
            "evaluation": {"words_rows": 20, "batch_size": 60}, "storage": {"root": self.store}, "tracking": {"project": "maths"}}
        self.environment = {**os.environ, "PREFECT_API_URL": self.url, "PREFECT_API_AUTH_STRING": PASSWORD,
                            "PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_LOGGING_LEVEL": "DEBUG", "WANDB_MODE": "offline", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
        self.machines = [Machine(folder / "machine-1", self.recipe, self.environment, CANARIES),
                         Machine(folder / "machine-2", self.recipe, self.environment, {})]

    def start_server(self) -> None:
        environment = {**os.environ, "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database.url,
                       "PREFECT_SERVER_API_AUTH_STRING": PASSWORD, "PREFECT_SERVER_ENCRYPTION_KEY": self.key,
                       "PREFECT_HOME": str(self.folder / "server"), "PREFECT_LOGGING_LEVEL": "INFO"}
        self.server = start(self.folder / "server.log", "prefect", "server", "start", "--port", str(self.port),
                            env=environment, start_new_session=True)
        until(self._answers, self.server)

    def kill_server(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def _answers(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health", trust_env=False).is_success
        return False

    def client(self) -> SyncPrefectClient:
        return get_client(sync_client=True)

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """A module run as a person at the first machine does."""
        return subprocess.run([sys.executable, "-m", *arguments], cwd=self.machines[0].home, text=True, timeout=PATIENCE,
                              env={**self.environment, "PREFECT_HOME": str(self.folder / "client"), **environment},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def ask(self, deployment: str, **parameters: int) -> str:
        """Asks for a run of the tiny recipe; its id."""
        wanted = [f"--param={name}={value}" for name, value in parameters.items()]
        ran = self.command("prefect", "deployment", "run", deployment, "--param=recipe=tiny", *wanted)
        assert ran.returncode == 0, ran.stdout
        return ran.stdout.partition("UUID: ")[2].split()[0]

    def ask_now(self, deployment: str, **parameters: int) -> str:
        """``ask`` without the seconds that a command takes to start."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters={"recipe": "tiny", **parameters}).id

    def end(self, run: str) -> str:
        """The state in which a run ended."""
        with self.client() as client:
            return until(lambda: (state := client.read_flow_run(run).state).is_final() and state.name, self.server)


@pytest.fixture(scope="module")
def team(tiny_base, s3_server, tmp_path_factory):
    """With its deployments made, and both workers at work."""
    with Postgres() as database:
        team = Team(tmp_path_factory.mktemp("team"), tiny_base, s3_server, database)
        with temporary_settings({PREFECT_API_URL: team.url, PREFECT_API_AUTH_STRING: PASSWORD}):
            try:
                team.start_server()
                for command in (["deployments.bootstrap"], ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file",
                                                            str(ROOT / "prefect.yaml")]):
                    ran = team.command(*command)
                    assert ran.returncode == 0, ran.stdout
                for name, value in IN_BLOCKS.items():
                    Secret(value=value).save(name.lower().replace("_", "-"))
                for machine in team.machines:
                    machine.start_worker()
                yield team
            finally:
                for machine in team.machines:
                    if hasattr(machine, "worker"):
                        machine.signal(signal.SIGKILL)
                        machine.worker.wait()
                team.kill_server()


@pytest.fixture(scope="module")
def alone(team):
    """Adapter digests of the chain that one undisturbed run makes in a folder."""
    folder = team.folder / "alone"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**team.recipe, "storage": {}, "tracking": None}))
    run = start(folder / "output.log", "flows.cli", "run", "tiny.yaml", cwd=folder,
                env={**team.environment, "PREFECT_HOME": str(folder / "prefect"), "PREFECT_LOGGING_LEVEL": "CRITICAL"})
    yield lambda: digests(json.loads((folder / "runs/tiny/metrics.json").read_text())) if run.wait(PATIENCE) == 0 else None
    run.kill()
    run.wait()


def digests(record: dict) -> list[str]:
    return [link["adapter_digest"] for link in record["links"]]


def test_ranges_on_two_machines_make_the_chain_that_one_makes_alone(team, alone):
    """The second range grows on a link that another machine has trained; asked for twice, a range is trained once."""
    assert team.end(team.ask("train-range/demo", start=0, end=96)) == "Completed"
    first, other = sorted(team.machines, key=lambda machine: not (machine.home / "runs").is_dir())
    assert not (other.home / "runs").exists()
    first.signal(signal.SIGSTOP)
    second = team.end(team.ask("train-range/demo", next=96))
    first.signal(signal.SIGCONT)
    assert second == "Completed"
    assert [(link["start"], link["end"], link["served"]) for link in other.record["links"]] == [(0, 96, True), (96, 192, False)]
    assert all(link["metrics"] and link["training"]["steps"] and Path(other.home, link["adapter"]).is_dir()
               for link in other.record["links"])
    assert (other.home / "runs/tiny/report.html").read_text().count("192)") > 1

    runs = [team.ask_now(deployment, start=192, end=288) for deployment in ("train-range/demo", "train-range/verifier")]
    assert [team.end(run) for run in runs] == ["Completed", "Completed"]
    stages = [event["state"] for machine in team.machines for event in machine.events("stage")
              if event["title"] == "train-chunk[192:288)" and event["state"] != "started"]
    assert sorted(stages) == ["cached", "done"]
    assert digests(first.record) == digests(other.record) == alone()
    hosts = {event["text"].partition(" on ")[2].partition(",")[0] for machine in team.machines for event in machine.events("notice")
             if event["text"].startswith("waiting for process")}
    assert len(hosts) == 1 and hosts < {"machine_1", "machine_2"}


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


@pytest.mark.parametrize("command", [["deployments.bootstrap"], ["flows.cli", "doctor"],
                                     ["flows.cli", "evaluate", "recipes/tiny.yaml"]], ids=lambda command: command[-1])
def test_a_wrong_password_is_told_with_what_to_do(team, command):
    ran = team.command(*command, PREFECT_API_AUTH_STRING="team:wrong", PREFECT_LOGGING_LEVEL="CRITICAL", **CANARIES)
    assert ran.returncode != 0 and "Traceback" not in ran.stdout, ran.stdout
    assert "PREFECT_API_AUTH_STRING" in ran.stdout, ran.stdout


def test_no_secret_is_left_anywhere_but_encrypted(team):
    """Last, over all that the tests before have left. The second machine reached S3 with what Secret blocks hold only."""
    secrets = {*CANARIES.values(), *IN_BLOCKS.values(), PASSWORD, team.key, team.database.password}
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
