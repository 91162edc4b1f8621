"""Sweeps: what a grid means, every mistake at once, which differences are real, and trials that fail alone."""

import csv
import io
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from flows import sweep as sweeping
from flows.sweep_table import sweep_table
from mathtune.comparison import Scored
from mathtune.digests import digest_file
from mathtune.errors import RecipeError
from mathtune.metrics import compare, interval
from mathtune.recipe_source import NAME_PATTERN
from mathtune.sweep import load_sweep, trial_name, with_absolute_paths
from mathtune.sweep_record import SweepRecord, TrialRecord, as_csv, judged, recipe_digest
from mathtune.workspace import RunFolder
from tasks.servers import RUNS_OWN
from tasks.trials import ChildTrials
from tests.record_fixtures import verifier_record


@pytest.fixture
def write_sweep(recipe_values, tmp_path):
    """Writes a sweep beside its recipe, and returns its path."""

    def write(grid, settings=None, **changes) -> Path:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_values()))
        values = {"name": "ranks", "recipe": "recipe.yaml", "grid": grid, **({"set": settings} if settings else {}), **changes}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return tmp_path / "sweep.yaml"

    return write


# --- what a sweep's file means ---

def test_a_grid_is_all_combinations_and_keys_that_move_together_stand_in_one_mapping(write_sweep):
    plan = load_sweep(write_sweep({"lora.rank": [4, 8], "sft.learning_rate": [1e-4, 2e-3]}, {"chunks.end": 96}))
    assert [trial.name for trial in plan.trials] == ["ranks-rank4-lr1e-4", "ranks-rank4-lr2e-3", "ranks-rank8-lr1e-4",
                                                     "ranks-rank8-lr2e-3"]
    assert {(trial.recipe.name, trial.recipe.chain, trial.recipe.chunks.end) for trial in plan.trials} == {
        (trial.name, trial.name, 96) for trial in plan.trials}
    assert [(trial.recipe.lora.rank, trial.recipe.sft.learning_rate) for trial in plan.trials] == [
        (4, 1e-4), (4, 2e-3), (8, 1e-4), (8, 2e-3)]
    plan = load_sweep(write_sweep([{"lora.rank": 4, "lora.alpha": 8}, {"lora.rank": 8, "sft.epochs": [1, 2]}]),
                      ("name=other", "sft.weight_decay=0.1"))
    assert [trial.name for trial in plan.trials] == ["other-rank4-alpha8", "other-rank8-epochs1", "other-rank8-epochs2"]
    assert {trial.recipe.sft.weight_decay for trial in plan.trials} == {0.1}
    assert plan.trials[1].recipe.lora.alpha == 16  # the recipe's own
    longer = load_sweep(write_sweep({"lora.rank": [4, 8, 16], "sft.learning_rate": [1e-4, 2e-3]}))
    assert {"ranks-rank4-lr1e-4", "ranks-rank8-lr2e-3"} < {trial.name for trial in longer.trials}  # what is done keeps its name


values = st.one_of(st.integers(-5, 10**6), st.floats(1e-9, 1e9), st.booleans(), st.text(max_size=90),
                   st.lists(st.text(max_size=20), max_size=9))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["lora.rank", "sft.learning_rate", "prompt.template", "lora.targets"]), values,
                       min_size=1))
def test_every_trial_has_a_name_that_a_run_may_have(chosen):
    assert NAME_PATTERN.fullmatch(trial_name("s", chosen)), trial_name("s", chosen)


def test_every_mistake_is_told_before_anything_runs(write_sweep):
    grid = [{"lora.rank": [4, 0]}, {"lora.rank": 4}, {"validation.rows": 50}, {"lora.rnk": 3}, {"sft.epochs": 2}]
    with pytest.raises(RecipeError) as caught:
        load_sweep(write_sweep(grid, {"sft.epochs": 1, "chunks.sise": 5}))
    text = str(caught.value)
    for mistake in ("grid: validation.rows: trials run on the same rows", "grid: sft.epochs: also set for every trial",
                    "grid: trial 3 is called as trial 1", "trial ranks-rank0: lora.rank: ",
                    "trial ranks-rnk3: lora.rnk: unknown key; did you mean lora.rank?",
                    "chunks.sise: unknown key; did you mean chunks.size?", "mistakes in the sweep"):
        assert mistake in text, text
    assert text.count("chunks.sise") == 1  # the recipe's own mistake is told once, not for every trial
    for wrong, message in (({"grid": {"lora.rank": [4]}}, "a sweep compares two at least"),
                           ({"grid": {"lora.rank": [4, 8]}, "gird": 1}, "gird: unknown key; did you mean grid?"),
                           ({"grid": {"lora.rank": [4, 8]}, "recipe": "nope.yaml"}, "cannot read the recipe"),
                           ({"grid": [{}, {"lora.rank": 4}]}, "trial 1 tries nothing")):
        with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
            load_sweep(write_sweep(**wrong))


def test_workers_in_other_folders_are_sent_whole_paths(write_sweep, monkeypatch, tmp_path, tiny_base):
    monkeypatch.chdir(tmp_path)
    trial = load_sweep(write_sweep({"lora.rank": [4, 8]}, {"storage.root": "store", "storage.runs": "runs"})).trials[0]
    sent = with_absolute_paths(trial.recipe)
    assert (sent.storage.root, sent.storage.runs) == (str(tmp_path / "store"), str(tmp_path / "runs"))
    assert sent.model.base == str(tiny_base) and sent.storage.cache is None
    remote = trial.recipe.model_copy(update={"storage": trial.recipe.storage.model_copy(update={"root": "s3://b/p"})})
    assert with_absolute_paths(remote).storage.root == "s3://b/p"


@pytest.mark.parametrize(("visible", "parallel", "places"), [
    ("0,1,3", 2, ["0", "1"]), ("", 2, [None, None]), ("0", 1, [None]), ("0,1", 3, "2 are visible"),
    ("-1", 2, [None, None]), ("2, 0,-1,1", 2, ["2", "0"])])
def test_trials_side_by_side_have_gpus_of_their_own(write_sweep, monkeypatch, visible, parallel, places):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    plan = load_sweep(write_sweep({"lora.rank": [4, 8, 16]}, {"hardware.device": "auto"}))
    if isinstance(places, str):
        with pytest.raises(RecipeError, match=places) as caught:
            sweeping.gpu_places(plan, parallel)
        assert caught.value.remedy == "--parallel 2"
    else:
        assert sweeping.gpu_places(plan, parallel) == places
    on_cpu = load_sweep(write_sweep({"lora.rank": [4, 8, 16]}))
    assert sweeping.gpu_places(on_cpu, parallel) == [None] * parallel


# --- which differences are real ---

def trial_record(name: str, **fields) -> TrialRecord:
    return TrialRecord(**{"name": name, "values": {"lora.rank": 4, "sft.learning_rate": 2e-4}, "state": "done",
                          "trainable": 100, "parameters": 1000, "seconds": 61.0, "peak_rss_gib": 0.75, "recipe_digest": "",
                          **fields})


def scored(name: str, correct) -> Scored:
    numbers = range(len(correct))
    table = pd.DataFrame({"key": map(str, numbers), "question": numbers, "row_id": numbers, "correct": correct})
    return Scored(name, "sft", "solver", table, table)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_every_trial_is_held_against_the_best_with_holms_correction(seed, count):
    random = np.random.default_rng(seed)
    right = random.random((count, 40)) < random.random((count, 1))
    names = [str(i) for i in range(count)]
    best, trials = judged([trial_record(name) for name in names], {name: scored(name, right[int(name)]) for name in names})
    assert sum(right[int(best)]) == right.sum(axis=1).max()
    others = [trial for trial in trials if trial.name != best]
    assert [trial.versus_best for trial in others] == [
        compare(right[int(best)], right[int(trial.name)], np.arange(40)) for trial in others]
    ascending = sorted(others, key=lambda trial: trial.versus_best.p)  # Holm's step-down by its definition
    least = 0.0
    for place, trial in enumerate(ascending):
        least = max(least, min(1.0, (len(others) - place) * trial.versus_best.p))
        assert trial.p_adjusted == pytest.approx(least)
        assert trial.verdict == ("really worse" if least < 0.05 else "could be chance")


@pytest.fixture
def record() -> SweepRecord:
    """A good trial, one as good with fewer parameters (which is the highest), a worse one, and one that failed."""
    random = np.random.default_rng(0)
    good, other = random.random(200) < 0.8, random.random(200) < 0.3
    found = [trial_record("large", trainable=400), trial_record("small"), trial_record("bad"),
             trial_record("broken", state="failed", error="no module\n→ name one", trainable=None, parameters=None,
                          seconds=None, peak_rss_gib=None)]
    best, trials = judged(found, {"large": scored("l", good), "small": scored("s", good), "bad": scored("b", other)})
    return SweepRecord(name="a Sweep_1", created=datetime(2025, 3, 1, tzinfo=UTC), best=best, trials=trials,
                       base=interval(100, 200), majority=0.6)


def test_the_highest_is_the_best_only_where_all_others_are_really_worse():
    good, bad = np.arange(200) < 160, np.arange(200) < 60
    for others, verdict in ((["b"], "the best"), ([], "highest"), (["b", "a2"], "highest")):
        flags = {"a": good, "b": bad, "a2": good[::-1]}
        names = ["a", *others]
        best, trials = judged([trial_record(name) for name in names], {name: scored(name, flags[name]) for name in names})
        assert (best, trials[0].verdict) == ("a", verdict)


def test_base_and_majority_are_those_that_all_trials_share(record, tmp_path):
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for file in files[:2]:
        file.write_text(verifier_record(rows=300).model_dump_json())
    base = verifier_record(rows=300).base
    found = record.model_copy(update={"base": None, "majority": None}).beside_base(files[:2])
    assert (found.base, found.majority) == (base.accuracy, base.majority)
    files[2].write_text(verifier_record(rows=400).model_dump_json())
    assert found.model_copy(update={"base": None}).beside_base(files).base is None


def test_a_planted_tie_is_no_real_difference_and_the_smaller_one_is_the_highest(record):
    assert record.best == "small"
    assert {trial.name: trial.verdict for trial in record.trials} == {
        "large": "could be chance", "small": "highest", "bad": "really worse", "broken": ""}
    assert record.trials[0].p_adjusted == 1.0 and record.trials[3].accuracy is None
    assert SweepRecord.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_and_the_csv_hold_every_trial(record, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(sweep_table(record))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    wide = ("CPU peak", "(10.00%)", "trained (of all)", "61 s", "0.75 GiB")
    for shown in ("3 of 4 trials, all on the same 200 validation rows", "2e-4", " points,", "p < 0.001", "failed",
                  "highest", "really", *(f"{trial.accuracy.low:.1%} to" for trial in record.trials if trial.accuracy),
                  "base        50.0% (43.1% to 56.9%)", "majority    60.0%", *(wide if width == 120 else ())):
        assert shown in " ".join(text.split()) or shown in text, text
    assert "left out, for the width: CPU peak" in text or width > 60
    lines = list(csv.DictReader(io.StringIO(as_csv(record))))
    assert [line["trial"] for line in lines] == ["large", "small", "bad", "broken"]
    assert (lines[2]["n"], lines[2]["verdict"], lines[3]["error"]) == ("200", "really worse", "no module\n→ name one")


# --- a sweep that goes on ---

def test_a_stopped_rerun_forgets_no_trial_that_an_earlier_one_has_done(write_sweep, monkeypatch, tmp_path):
    """Four trials, of which two were done; stopped when one of the others is: the table still has all three."""
    plan = load_sweep(write_sweep({"lora.rank": [2, 4, 8, 16]}))
    table = scored("", np.arange(50) % 2 == 0)
    monkeypatch.setattr(sweeping, "read_scored", lambda name, folder: table)

    def done(trial) -> TrialRecord:
        metrics = RunFolder(tmp_path / "runs", trial.name).write("metrics.json", "{}")
        return trial_record(trial.name, recipe_digest=recipe_digest(trial), metrics_digest=digest_file(metrics))

    class Submitted:
        def __init__(self, work, trial, trials, earlier):
            self.trial = trial

        def result(self, raise_on_failure):
            return done(self.trial)

    def third_then_signal(futures):
        yield futures[2]
        raise KeyboardInterrupt

    told = []
    monkeypatch.setattr(sweeping, "run_trial", SimpleNamespace(task=SimpleNamespace(submit=Submitted)))
    monkeypatch.setattr(sweeping, "as_completed", third_then_signal)
    work = SimpleNamespace(run=RunFolder(tmp_path / "runs", plan.name), emit=lambda *event, **_: told.append(event))
    earlier = sweeping.write_record(work, plan, [done(plan.trials[0]), done(plan.trials[1])])
    RunFolder(tmp_path / "runs", plan.trials[1].name).write("metrics.json", '{"of": "another run"}')  # no longer what was done
    with pytest.raises(KeyboardInterrupt):
        sweeping.run_trials(work, plan, SimpleNamespace(stop=lambda: True), earlier)
    assert told == [("stopped",)]
    left = sweeping.read_record(work.run)
    assert [trial.state for trial in left.trials] == ["done", "not run", "done", "not run"]
    assert left.trials[0].accuracy.n == 50 and left.best in (plan.trials[0].name, plan.trials[2].name)
    assert [line["state"] for line in csv.DictReader(open(work.run.path / "sweep.csv"))] == [
        trial.state for trial in left.trials]


# --- trials that run ---

@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False])
def test_a_trial_knows_whether_its_server_is_but_the_sweeps_own(write_sweep, tmp_path, monkeypatch, own):
    """Else it would take it for one that people watch."""
    (trial, *_) = load_sweep(write_sweep({"lora.rank": [2, 4]})).trials
    command = tmp_path / "command"
    asks = "from tasks.servers import is_configured; print(is_configured())"
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{asks}'\n")
    command.chmod(0o755)
    token = RUNS_OWN.set(own)
    trials = ChildTrials(tmp_path, [None], "http://127.0.0.1:9/api")
    RUNS_OWN.reset(token)
    monkeypatch.setattr("tasks.trials.sys.executable", str(command))
    trials.run(trial)
    assert (tmp_path / f"{trial.name}.log").read_text() == f"{not own}\n"


SMALL = {"chunks.size": 32, "chunks.end": 32, "sft.learning_rate": 1e-4, "evaluation.words_rows": 0}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_failed_trial_loses_no_other_and_the_same_command_goes_on_with_what_is_missing(write_sweep, tmp_path):
    """Two children at a time; then the same without the trial that failed: nothing is begun."""
    path = write_sweep([{"lora.rank": [2, 4]}, {"lora.rank": 4, "lora.targets": [["no_such_proj"]]}], SMALL)
    failed = sweeping.sweep(load_sweep(path), parallel=2, execution="first")["record"]
    assert [trial["state"] for trial in failed["trials"]] == ["done", "done", "failed"]
    assert "no_such_proj" in failed["trials"][2]["error"] and "→ name modules" in failed["trials"][2]["error"]
    assert all(trial["accuracy"]["n"] == 60 and trial["trainable"] > 0 for trial in failed["trials"][:2])
    events = [json.loads(line) for line in open(tmp_path / "runs/ranks/executions/first/events.jsonl")]
    states = {(event["title"], event["state"]): event["time"] for event in events if event["event"] == "stage"}
    one, other = "trial ranks-rank2", "trial ranks-rank4"
    assert states[one, "started"] < states[other, "done"] and states[other, "started"] < states[one, "done"]
    for name in ("ranks-rank2", "ranks-rank4"):  # made once, before both
        begun = (tmp_path / "runs" / name / "executions").glob("*/events.jsonl")
        seen = {event["title"]: event["state"] for file in begun for event in map(json.loads, open(file))
                if event["event"] == "stage"}
        assert (seen["balance"], seen["split"], seen["evaluate base"]) == ("cached",) * 3

    assert failed["base"]["n"] == 60 and 0.5 <= failed["majority"] < 1

    plan = load_sweep(write_sweep({"lora.rank": [2, 4]}, SMALL))
    served = sweeping.sweep(plan, execution="second")["record"]
    assert [trial["state"] for trial in served["trials"]] == ["done", "done"]
    assert not list((tmp_path / "runs/ranks/executions/second").glob("*.yaml"))
    assert served["trials"][0]["accuracy"] == failed["trials"][0]["accuracy"]
