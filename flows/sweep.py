"""A sweep as a flow: the data stages once, then every trial's pipeline, side by side, and one table of what was found."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.futures import as_completed
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ThreadPoolTaskRunner
from rich.console import Console
from rich.text import Text

from flows.execute import supervise
from flows.prepare import open_workspace, prepare_data
from flows.sweep_table import artifact_rows, sweep_table
from mathtune.comparison import read_scored
from mathtune.errors import RecipeError
from mathtune.gpus import visible_gpus
from mathtune.recipe_source import Name
from mathtune.sweep import Sweep
from mathtune.sweep_record import SweepRecord, TrialRecord, as_csv, empty_record, judged
from mathtune.workspace import RunFolder, Workspace, new_execution
from tasks.artifacts import artifact_key
from tasks.data import check_base
from tasks.results import evaluate
from tasks.trials import ChildTrials, DeployedTrials, Trials, is_done, metrics_file, run_folder, run_trial


@flow(name="sweep", flow_run_name="{plan.name}", persist_result=False)
def sweep(plan: Sweep, parallel: int = 1, deployment: str | None = None, execution: Name | None = None) -> dict[str, Any]:
    """Runs every trial of a sweep; what an earlier execution has done is served, and a failed trial does not end the others.

    Args:
        plan: the trials.
        parallel: so many at a time, as child processes; each on GPUs of its own, where there are GPUs.
        deployment: instead, as runs of this deployment of ``pipeline``, by its workers.
        execution: name of this execution.

    Returns:
        ``{"record": SweepRecord as plain values, "folder": path}``.
    """
    recipe = plan.trials[0].recipe.model_copy(update={"name": plan.name, "chain": plan.name})
    with open_workspace(recipe, execution) as work:
        trials = make_trials(work, plan, parallel, deployment)
        earlier = read_record(work.run)
        if any(not is_done(trial, metrics_file(trial), earlier) for trial in plan.trials):
            prepare_once(work, base_too=deployment is None and parallel > 1)
        record = run_trials(work, plan, trials, earlier)
        create_table_artifact(artifact_rows(record), key=artifact_key("sweep", plan.name), description=f"sweep {plan.name}")
        return {"record": record.model_dump(mode="json"), "folder": str(work.run.path)}


def make_trials(work: Workspace, plan: Sweep, parallel: int, deployment: str | None) -> Trials:
    """Where the trials will run."""
    if deployment:
        return DeployedTrials(deployment)
    with get_client(sync_client=True) as client:
        return ChildTrials(work.folder, gpu_places(plan, parallel), str(client.api_url).rstrip("/"))


def prepare_once(work: Workspace, base_too: bool) -> None:
    """Makes what trials that begin together would each make for itself: the rows, and here the base's scores, too."""
    data = prepare_data(work)
    if base_too:
        evaluate(work, check_base(work), data["split"], None, data["download"], "base")
    work.engine.close()  # its memory is the trials'


def run_trials(work: Workspace, plan: Sweep, trials: Trials, earlier: SweepRecord | None) -> SweepRecord:
    """All trials, as many at a time as there is place for; the record is written anew after each."""
    found = known_trials(plan, earlier)
    futures = {run_trial.task.submit(work, trial, trials, earlier): trial for trial in plan.trials}
    try:
        for future in as_completed(list(futures)):
            trial, result = futures[future], future.result(raise_on_failure=False)
            failed = isinstance(result, BaseException)
            found[trial.name] = empty_record(trial, "failed", error=str(result)) if failed else result
            record = write_record(work, plan, list(found.values()))
    except BaseException:  # a signal
        saved = trials.stop()
        work.emit("stopped", saved=saved, text="stopped; the same command goes on with what is missing")
        raise
    return record


def known_trials(plan: Sweep, earlier: SweepRecord | None) -> dict[str, TrialRecord]:
    """Every trial as an earlier execution left it where that still holds, else as not run: what is told of those that this
    one is stopped before."""
    before = {one.name: one for one in earlier.trials} if earlier else {}
    return {trial.name: before[trial.name] if is_done(trial, metrics_file(trial), earlier) else empty_record(trial, "not run")
            for trial in plan.trials}


def write_record(work: Workspace, plan: Sweep, found: list[TrialRecord]) -> SweepRecord:
    """``sweep.json`` and ``sweep.csv``: every trial held against the best."""
    runs = {trial.name: run_folder(trial).path for trial in plan.trials}
    done = [one.name for one in found if one.state == "done"]
    best, trials = judged(found, {name: read_scored(name, runs[name].parent) for name in done})
    record = SweepRecord(name=plan.name, created=datetime.now(UTC), best=best, trials=trials).beside_base(
        [runs[name] / "metrics.json" for name in done])
    work.run.write("sweep.json", record.model_dump_json(indent=2) + "\n")
    work.run.write("sweep.csv", as_csv(record))
    return record


def read_record(run: RunFolder) -> SweepRecord | None:
    """What an earlier execution of the sweep has written."""
    path = run.path / "sweep.json"
    return SweepRecord.model_validate_json(path.read_text()) if path.is_file() else None


def gpu_places(plan: Sweep, parallel: int) -> list[str | None]:
    """What each of ``parallel`` trials at a time may see of this machine's GPUs, for CUDA_VISIBLE_DEVICES; None: all.

    Raises:
        RecipeError: there are GPUs, but not for so many trials.
    """
    gpus = [] if all(trial.recipe.hardware.device == "cpu" for trial in plan.trials) else visible_gpus()
    if parallel == 1 or not gpus:
        return [None] * parallel
    each = max(trial.recipe.hardware.gpus for trial in plan.trials)
    if parallel * each > len(gpus):
        raise RecipeError(f"{parallel} trials at a time, {each} GPU{'s' if each > 1 else ''} each: {len(gpus)} are visible",
                          where="--parallel", remedy=f"--parallel {max(1, len(gpus) // each)}")
    return [",".join(gpus[i * each:(i + 1) * each]) for i in range(parallel)]


def show_sweep(console: Console, plan: Sweep, parallel: int, deployment: str | None) -> None:
    """Runs a sweep in front of a person; exit status 1 where a trial failed.

    Raises:
        RecipeError: a deployment is named, but no Prefect server.
    """
    if deployment and not PREFECT_API_URL.value():
        raise RecipeError("a deployment is of a Prefect server, and none is configured", where="--deployment",
                          remedy="set PREFECT_API_URL to the server that the workers are at")
    execution, folder = new_execution(), RunFolder(Path(plan.trials[0].recipe.storage.runs), plan.name)
    console.print(f"[bold]{plan.name}[/]: {len(plan.trials)} trials"
                  + (f" by the workers of {deployment}" if deployment else f", {parallel} at a time" if parallel > 1 else ""))
    at_once = len(plan.trials) if deployment else parallel
    runner = sweep.with_options(task_runner=ThreadPoolTaskRunner(max_workers=at_once))
    result = supervise(console, folder.execution(execution) / "events.jsonl", f"sweep {plan.name}",
                       lambda: runner(plan, parallel=parallel, deployment=deployment, execution=execution))
    record = SweepRecord.model_validate(result["record"])
    console.print(sweep_table(record))
    console.print(f"results     {result['folder']}/sweep.json, sweep.csv", highlight=False)
    failed = [trial for trial in record.trials if trial.state == "failed"]
    for trial in failed:
        console.print(Text.assemble(("✗ ", "red"), (trial.name, "bold"), f" {trial.error}"), soft_wrap=True)
    if failed:
        console.print(f"{len(failed)} of {len(record.trials)} trials failed; the same command tries these again, and no others")
        sys.exit(1)
