"""What a person does with a server, a worker and a browser: the README's commands, as they stand there, on small recipes.

The recipes that the commands name are hidden by smaller ones of the same names, in the folder that the worker works in.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import ArtifactSort
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.deployed import USED_UP
from tests.browser import browser
from tests.server_fixtures import PATIENCE, Run, World, answers, end_at_once, start, until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SECTION = "## A server, a worker, a schedule"


def documented() -> list[str]:
    """The commands of the README's part about deployments, in order."""
    section = (ROOT / "README.md").read_text().partition(SECTION)[2].partition("\n## ")[0]
    lines = "".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)).splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


class Team(World):
    """A server, a worker and a person at a shell, whose commands are the README's."""

    def __init__(self, folder: Path, base: Path):
        super().__init__(folder, base)
        self.environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_API_PORT": self.port, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PYTHONPATH": str(ROOT)}
        self.commands = documented()
        self.left = [one for one in self.commands if not one.startswith("export ")]

    def take(self, command: str) -> str:
        """A command that stands in the README."""
        assert command in self.commands, f"not in the README: {command}"
        self.left = [one for one in self.left if one != command]
        return command

    def process(self, command: str) -> subprocess.Popen:
        """A command that goes on, in a terminal of its own."""
        _, _, *module = shlex.split(self.take(command))
        return start(self.folder / f"{module[0]}.log", *module, cwd=self.folder, env=self.environment, start_new_session=True)

    def command(self, command: str) -> str:
        """What a command says that ends well."""
        done = subprocess.run(self.take(command), shell=True, cwd=self.folder, env=self.environment, text=True,
                              capture_output=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, command: str) -> str:
        """Starts a flow run. Returns its id."""
        return re.search(r"UUID: (\S+)", self.command(command))[1]

    @contextmanager
    def client(self):
        with temporary_settings({PREFECT_API_URL: self.url}), get_client(sync_client=True) as client:
            yield client

    def ended(self, run: str, worker: subprocess.Popen) -> str:
        """The name of a run's end state."""
        with self.client() as client:
            until(lambda: client.read_flow_run(run).state.is_final(), worker, 0.5, 3 * PATIENCE)
            return client.read_flow_run(run).state.name

    def artifact(self, key: str) -> str:
        """The address of the page of the newest artifact of a key, once there is one."""
        newest = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        with self.client() as client:
            found = until(lambda: client.read_artifacts(artifact_filter=newest, sort=ArtifactSort.CREATED_DESC), self.server,
                          0.5)
        return f"{self.url.removesuffix('/api')}/artifacts/artifact/{found[0].id}"

    def steps(self, name: str) -> int:
        """Steps that the last execution of a run has trained."""
        files = sorted((self.folder / "runs" / name / "executions").glob("*/events.jsonl"))
        return files[-1].read_text().count('"event": "step"') if files else 0

    def write_recipes(self) -> None:
        """The recipes that the README names, small, in ``recipes/`` of the worker's folder, and one for a run by hand."""
        folder = self.folder / "recipes"
        folder.mkdir()
        big = {"source": {"generator": {"rows": 80_000, "test_rows": 60, "seed": 3}}, "balance": {"per_class": 30_500},
               "leaks": {"exact": "report"}, "evaluation": {"words_rows": 0, "probe_rows": 20},
               "chunks": {"size": 20_000, "end": 60_000},
               "sft": {"learning_rate": 1e-4, "examples_per_step": 16, "save_every": 10, "max_steps": 60}}
        self.recipe("undisturbed", **big)
        self.recipe("nyu-verifier-8b", **big, storage={})
        self.recipe("demo-verifier", storage={}, balance={"per_class": 128}, validation={"rows": 64},
                    chunks={"size": 96, "end": 96}, sft={"learning_rate": 1e-4, "examples_per_step": 16})
        (self.folder / "nyu-verifier-8b.yaml").rename(folder / "nyu_verifier_llama31_8b.yaml")
        (self.folder / "demo-verifier.yaml").rename(folder / "demo.yaml")
        sweep = {"name": "demo-sweep", "recipe": "demo.yaml", "grid": {"lora.rank": [2, 4]}}
        (folder / "demo_sweep.yaml").write_text(yaml.safe_dump(sweep))


@pytest.fixture(scope="module")
def team(tiny_base, tmp_path_factory):
    team = Team(tmp_path_factory.mktemp("team"), tiny_base)
    team.write_recipes()
    assert f"export PREFECT_API_URL={team.url.replace(team.port, '4200')}" in team.commands
    team.server = team.process("python -m deployments.server")
    until(lambda: answers(team.url), team.server)
    yield team
    team.kill_server()


def while_it_is_missed(team: Team, worker: subprocess.Popen) -> None:
    """What else the worker does meanwhile: a pipeline and a sweep, and the next rows until there are none."""
    assert team.ended(team.run("""prefect deployment run 'pipeline/demo' -p overrides='["name=second", "lora.rank=4"]'"""),
                      worker) == "Completed"
    assert team.ended(team.run("prefect deployment run 'sweep/demo'"), worker) == "Completed"
    with team.client() as client:
        nightly = client.read_deployment_by_name("train-range/demo-nightly")
        assert [(one.slug, one.active) for one in nightly.schedules] == [("nightly", False)]
        client.update_deployment_schedule(nightly.id, nightly.schedules[0].id, active=True,
                                          schedule=IntervalSchedule(interval=timedelta(seconds=10)))
        until(lambda: not client.read_deployment(nightly.id).schedules[0].active, worker, 1)
        runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[nightly.id])))
    states = [run.state_name for run in runs if run.state.is_final()]
    assert states.count("Completed") == 1 and USED_UP in states  # its rows are fewer than a night's


def seen(team: Team, run: str) -> None:
    """What the browser shows when all is done."""
    pages = team.url.removesuffix("/api")
    with browser(team.folder / "browser") as page:
        page.open(f"{pages}/runs/flow-run/{run}")
        page.wait_for("nyu-verifier-8b [40000:60000)", "Completed")
        page.click("Artifacts")
        page.wait_for("links-nyu-verifier-8b", "accuracy-nyu-verifier-8b", "errors-nyu-verifier-8b")
        page.open(team.artifact("links-nyu-verifier-8b"))
        page.wait_for("0–20,000", "20,000–40,000", "40,000–60,000", "accepted")


def test_two_ranges_by_command_the_worker_killed_in_the_second(team):
    """The chain is the one that an undisturbed run makes; while it grows, a browser shows what is done."""
    team.command("python -m deployments.bootstrap")
    held = team.folder / "held"  # while there is no such file, the next engine stops in the middle of its chunk
    held.touch()
    team.environment["MATHTUNE_FAULT"] = json.dumps({"at": "step", "ordinal": 45, "do": "stop", "once": str(held)})
    worker = team.process("python -m deployments.worker")
    try:
        first = team.run("prefect deployment run 'train-range/verifier' -p start=0 -p end=20000")
        assert team.ended(first, worker) == "Completed"

        held.unlink()
        second = team.run("prefect deployment run 'train-range/verifier' -p start=20000 -p end=40000")
        with browser(team.folder / "browser") as page:
            address = team.artifact("progress-nyu-verifier-8b-train-chunk-20000-40000")
            until(lambda: page.open(address) or "of 60 · " in page.wait_for("step"), worker, 1)
            page.wait_for("tokens/s", "Flow Run", "nyu-verifier-8b [20000:40000)")
        assert 40 <= team.steps("nyu-verifier-8b") < 60
        end_at_once(worker)
        worker = team.process("python -m deployments.worker")  # whose engine is not held: it was once
        undisturbed = Run(team, "undisturbed")
        while_it_is_missed(team, worker)
        assert undisturbed.end() == 0, undisturbed.output
        assert team.ended(second, worker) == "Completed"
        third = team.run("prefect deployment run 'train-range/verifier' -p next=20000")
        assert team.ended(third, worker) == "Completed"
        assert team.ended(team.run("prefect deployment run 'evaluate/verifier'"), worker) == "Completed"
        assert team.ended(team.run("prefect deployment run 'submit/verifier' -p link=2"), worker) == "Completed"
        assert team.outcome("nyu-verifier-8b")[0] == team.outcome("undisturbed")[0]
        with team.client() as client:
            runs = [client.read_flow_run(run) for run in (first, second, third)]
        assert [run.name for run in runs] == [f"nyu-verifier-8b [{start}:{start + 20000})" for start in (0, 20000, 40000)]
        assert [run.run_count for run in runs] == [1, 2, 1]
        seen(team, third)
        assert "✗" not in team.command("mathtune doctor")
    finally:
        end_at_once(worker)
    assert team.left == []
