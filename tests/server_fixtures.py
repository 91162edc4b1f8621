"""A real Prefect server and ``mathtune`` commands as processes, for the tests of what happens around a run. Holds no test."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.conftest import VERIFIER_TEMPLATE

CANARIES = {"HF_TOKEN": "hf_canaryAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "WANDB_API_KEY": "c0ffee" * 6 + "c0ff",
            "AWS_SECRET_ACCESS_KEY": "canary/BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB"}
PATIENCE = 120  # seconds, on a busy machine
LOADED_SECONDS = 2  # after which a server looks at an automation that was just made
TEAMS_SERVER = ("deployments.server",)  # whose automations are right with a busy database


def start(log: Path, *command: str, run: str = "-m", **options) -> subprocess.Popen:
    """A Python module as a process whose output goes to a file."""
    with open(log, "ab") as output:
        return subprocess.Popen([sys.executable, run, *command], stdout=output, stderr=subprocess.STDOUT, **options)


def until(condition, process: subprocess.Popen, every: float = 0.02, patience: float = PATIENCE):
    """What a condition gives once it gives something, while a process lives; it is asked for ``every`` so many seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if found := condition():
            return found
        assert process.poll() is None, f"ended with {process.returncode} before"
        time.sleep(every)
    pytest.fail(f"nothing after {patience} s")


def free_port() -> str:
    """Of the loopback address, for a server to come."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a server's API does."""
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/health", trust_env=False).is_success
    return False


def kill_group(process: subprocess.Popen) -> None:
    """Kills a process that was started as a session of its own, and what it started there."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_at_once(process: subprocess.Popen) -> None:
    """As a machine that loses its power: a process and all that it started, in whatever sessions."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        root.suspend()  # nobody sees another one's end
        for one in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


class World:
    """The folder below which every run of this module works, its Prefect server, and the environment of all."""

    def __init__(self, folder: Path, base: Path, server: tuple[str, ...] = ("prefect", "server", "start")):
        self.folder, self.base, self.database, self.server_command = folder, base, folder / "prefect", server
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.environment = {**os.environ, **CANARIES, "PREFECT_API_URL": self.url, "PREFECT_HOME": str(folder / "client"),
                            "HF_HOME": str(folder / "hf"), "WANDB_DIR": str(folder), "COLUMNS": "200"}

    def start_server(self) -> None:
        self.server = start(self.folder / "server.log", *self.server_command, "--port", self.port,
                            env={**self.environment, "PREFECT_HOME": str(self.database)}, start_new_session=True)
        until(lambda: answers(self.url), self.server)

    def kill_server(self) -> None:
        kill_group(self.server)

    def states(self, name: str) -> list[str]:
        """States of the flow runs of a recipe, in the order of their start."""
        with temporary_settings({PREFECT_API_URL: self.url}), get_client(sync_client=True) as client:
            runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])),
                                         sort=FlowRunSort.START_TIME_ASC)
        return [run.state_name for run in runs]

    def recipe(self, name: str, **changes) -> dict:
        """Writes a small recipe: two chunks of 12 steps, a checkpoint after every second step."""
        values = {
            "name": name, "task": "verifier", "source": {"generator": {"rows": 600, "test_rows": 60, "seed": 3}},
            "validation": {"rows": 60}, "chunks": {"size": 96, "end": 192}, "prompt": {"template": VERIFIER_TEMPLATE},
            "model": {"base": str(self.base), "max_length": 192}, "lora": {"rank": 8, "alpha": 16, "dropout": 0.1},
            "sft": {"learning_rate": 1e-4, "examples_per_step": 16, "save_every": 2, "epochs": 2},
            "hardware": {"device": "cpu"}, "evaluation": {"words_rows": 20, "batch_size": 2},
            "storage": {"root": str(self.folder / "store" / name), "runs": str(self.folder / "runs")}, **changes}
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
        return values

    def outcome(self, name: str) -> tuple[list[str], bytes]:
        """Adapter digests of a finished chain, and the bytes of its submission."""
        links = json.loads((self.folder / "runs" / name / "metrics.json").read_text())["links"]
        return [link["adapter_digest"] for link in links], (self.folder / "runs" / name / "submission.csv").read_bytes()


class Run:
    """A ``mathtune`` command at work on the recipe of one name."""

    def __init__(self, world: World, name: str, verb: str = "run", **environment: str):
        self.executions = world.folder / "runs" / name / "executions"
        self.before = set(self.executions.glob("*"))
        self.log = world.folder / f"{name}-{len(self.before)}.log"
        self.process = start(self.log, "flows.cli", verb, str(world.folder / f"{name}.yaml"), cwd=world.folder,
                             env={**world.environment, **environment})

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def events(self) -> list[dict]:
        files = [folder / "events.jsonl" for folder in set(self.executions.glob("*")) - self.before]
        lines = [line for file in files if file.is_file() for line in file.read_text().splitlines(keepends=True)]
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def of(self, kind: str) -> list[dict]:
        return [event for event in self.events if event["event"] == kind]

    @property
    def stages(self) -> dict[str, str]:
        return {event["title"]: event["state"] for event in self.of("stage") if event["state"] != "started"}

    def wait_for(self, kind: str, **fields) -> dict:
        """An event, once it is there."""
        return until(lambda: next((one for one in self.of(kind) if fields.items() <= one.items()), None), self.process)

    def end(self) -> int:
        return self.process.wait(PATIENCE)
