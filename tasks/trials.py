"""A trial of a sweep as a task: the pipeline on its recipe, in a child process here or by a worker of a deployment."""

import os
import queue
import re
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Protocol

from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from mathtune.digests import digest_file
from mathtune.errors import Interrupted, RecipeError, TrialFailed
from mathtune.exit_status import SAVED
from mathtune.files import write_atomically
from mathtune.parent import PARENT
from mathtune.recipe_file import dump_recipe
from mathtune.run_record import RunRecord
from mathtune.stages import Outcome
from mathtune.stages.evaluate import accuracy_text
from mathtune.sweep import Trial, with_absolute_paths
from mathtune.sweep_record import SweepRecord, TrialRecord, empty_record, recipe_digest, trial_costs
from mathtune.workspace import RunFolder, Workspace
from tasks.servers import server_environment
from tasks.states import run_stage, stage_task

STOP_SECONDS = 30  # an engine saves within 20
POLL_SECONDS = 3


class Trials(Protocol):
    """Where trials run. Both methods are called from several threads."""

    def run(self, trial: Trial) -> None:
        """Runs a trial to its report.

        Raises:
            TrialFailed: it did not get there; says why.
            Interrupted: ``stop`` was called.
        """

    def stop(self) -> bool:
        """Ends what runs, begins nothing more. Returns whether everything that was done is saved."""


class ChildTrials:
    """Trials as child processes, ``mathtune run`` each, with an engine of its own. They stop, and save, when this one ends.

    Args:
        folder: of this execution of the sweep: takes recipes and outputs.
        places: one for each trial that runs at a time: the GPUs that it sees, or None: those of this process.
        server: Prefect's API, so that the trials show where the sweep does.
    """

    def __init__(self, folder: Path, places: list[str | None], server: str):
        self.folder, self.server = folder, server_environment(server)
        self._places: queue.Queue[str | None] = queue.Queue()
        for place in places:
            self._places.put(place)
        self._children: list[subprocess.Popen] = []
        self._lock, self._stopped = threading.Lock(), False

    def run(self, trial: Trial) -> None:
        place = self._places.get()
        try:
            status = self._start(trial, place).wait()
        finally:
            self._places.put(place)
        if self._stopped and status:
            raise Interrupted("the sweep was stopped", remedy="the same command goes on from there")
        if status:
            raise TrialFailed(last_error(self._output(trial, "err")) or f"it ended with status {status}")

    def stop(self) -> bool:
        with self._lock:
            self._stopped = True
        running = [child for child in self._children if child.poll() is None]
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        return all(child.returncode in (0, SAVED) for child in running)

    def _start(self, trial: Trial, place: str | None) -> subprocess.Popen:
        recipe = self._output(trial, "yaml")
        write_atomically(recipe, dump_recipe(trial.recipe))
        environment = {**os.environ, **self.server, PARENT: str(os.getpid())}
        if place is not None:
            environment["CUDA_VISIBLE_DEVICES"] = place
        with self._lock, open(self._output(trial, "log"), "wb") as output, open(self._output(trial, "err"), "wb") as errors:
            if self._stopped:
                raise Interrupted("the sweep was stopped before this trial", remedy="the same command goes on from there")
            child = subprocess.Popen([sys.executable, "-m", "flows.cli", "run", str(recipe)], stdin=subprocess.DEVNULL,
                                     stdout=output, stderr=errors, env=environment, start_new_session=True)
            self._children.append(child)
        return child

    def _output(self, trial: Trial, kind: str) -> Path:
        return self.folder / f"{trial.name}.{kind}"


class DeployedTrials:
    """Trials as runs of a deployment, side by side on as many workers as its pool has.

    Args:
        deployment: ``pipeline/NAME``.

    Raises:
        RecipeError: there is none of this name.
    """

    def __init__(self, deployment: str):
        self.deployment = deployment
        self._stopped = threading.Event()
        try:
            with get_client(sync_client=True) as client:
                client.read_deployment_by_name(deployment)
        except (ObjectNotFound, ValueError) as error:
            raise RecipeError("the Prefect server has no such deployment", where=f"--deployment {deployment}",
                              remedy="prefect deploy --all makes those of prefect.yaml, pipeline/trial among them") from error

    def run(self, trial: Trial) -> None:
        recipe = with_absolute_paths(trial.recipe).model_dump(mode="json")
        once = str(uuid.uuid4())  # where the client asks a slow server again, no second run is made
        run = run_deployment(self.deployment, parameters={"recipe": recipe}, flow_run_name=trial.name, timeout=0,
                             idempotency_key=once)
        with get_client(sync_client=True) as client:
            while not (state := client.read_flow_run(run.id).state).is_final():
                if self._stopped.wait(POLL_SECONDS):
                    raise Interrupted("no longer waited for: it goes on at its worker",
                                      remedy="the same command waits for it, or is served what it made")
        if not state.is_completed():
            raise TrialFailed(state.message or state.name)

    def stop(self) -> bool:
        self._stopped.set()
        return True


def last_error(errors: Path) -> str | None:
    """What a command said on standard error when it failed: from the last ``✗`` on, without the kind of error."""
    *_, said = errors.read_text(errors="replace").rpartition("✗ ")
    return re.sub(r"^\w+:? ", "", said).strip() or None


@stage_task("trial {trial.name}")
def run_trial(work: Workspace, trial: Trial, trials: Trials, earlier: SweepRecord | None) -> TrialRecord:
    """A trial → what it cost and how good its last link is; one that an earlier sweep has done is served."""
    return run_stage(work, f"trial {trial.name}", lambda: _outcome(trial, trials, earlier))


def _outcome(trial: Trial, trials: Trials, earlier: SweepRecord | None) -> Outcome:
    metrics = metrics_file(trial)
    served = is_done(trial, metrics, earlier)
    if not served:
        trials.run(trial)
    if not metrics.is_file():
        raise TrialFailed("it is done, but what it left is not to be seen from here", where=str(metrics),
                          remedy="storage.runs in a folder that the workers and this command share")
    record = RunRecord.model_validate_json(metrics.read_text())
    last = record.links[-1]
    found = empty_record(trial, "done", link=f"{last.number} {last.kind}", metrics_digest=digest_file(metrics),
                         **trial_costs(record.links))
    return Outcome(found, served, accuracy_text(last.metrics))


def run_folder(trial: Trial) -> RunFolder:
    return RunFolder(Path(trial.recipe.storage.runs), trial.name)


def metrics_file(trial: Trial) -> Path:
    return run_folder(trial).path / "metrics.json"


def is_done(trial: Trial, metrics: Path, earlier: SweepRecord | None) -> bool:
    """Whether an earlier execution of the sweep has done this trial by the same recipe, and what it left is unchanged."""
    before = next((one for one in earlier.trials if one.name == trial.name), None) if earlier else None
    return (before is not None and before.state == "done" and before.recipe_digest == recipe_digest(trial)
            and metrics.is_file() and digest_file(metrics) == before.metrics_digest)
