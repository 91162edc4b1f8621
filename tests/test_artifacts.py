"""A run on its page in Prefect: the chain after every link, the errors, the report and where it lies."""

import base64
import json
import logging
import re

import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run

from flows import prepare
from flows.pipeline import pipeline
from mathtune.report.error_rows import SHOWN, error_rows
from mathtune.report.markdown import link_rows
from mathtune.run_record import LeftOut
from mathtune.stages.report import Report
from tasks import artifacts
from tasks.artifacts import artifact_key, report_link, show_run
from tests.record_fixtures import full_verifier, solver_errors, verifier_errors


@pytest.mark.parametrize("name", ["nyu-verifier", "A.b_c", "x" * 64, "-"])
def test_keys_are_valid(name):
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", artifact_key("report", name))
    assert artifact_key("sweep", "a Sweep_1") == "sweep-a-sweep-1"


@pytest.fixture
def shown(monkeypatch) -> dict[str, Artifact]:
    """What is shown, by key."""
    found = {}
    monkeypatch.setattr(artifacts, "show", lambda artifact: found.update({artifact.key: artifact}))
    return found


def test_a_run_shows_chain_picture_report_errors_and_where_the_report_lies(shown, tmp_path, monkeypatch):
    monkeypatch.delenv(artifacts.RUNS_URL, raising=False)
    page = tmp_path / "report.html"
    show_run(full_verifier(rows=100), Report(str(page), "# report", verifier_errors(117)))
    assert list(shown) == [f"{kind}-nyu-verifier" for kind in ("links", "accuracy", "report", "errors", "page")]
    assert shown["links-nyu-verifier"].description.startswith("Chain nyu: 3 chunks, after Chunk 3 ")
    picture = shown["accuracy-nyu-verifier"].format().removeprefix("data:image/png;base64,")
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert shown["errors-nyu-verifier"].description == (
        f"{SHOWN} of the 117 validation rows that Chunk 3 has wrong, the surest first; all of them: {tmp_path}/errors.jsonl")
    assert shown["page-nyu-verifier"].format() == f"[{page}](file://{page})"


def test_the_report_is_linked_where_the_runs_are_served(monkeypatch, tmp_path):
    monkeypatch.setenv(artifacts.RUNS_URL, "http://gpu1:4300/")
    assert report_link("a b", tmp_path / "report.html").format() == "[report of a b](http://gpu1:4300/a%20b/report.html)"


def test_the_surest_errors_stand_first_in_short_lines():
    rows = error_rows([*verifier_errors(100), verifier_errors(1)[0] | {"p_true": 1.0, "question": "long\n" * 100}], 5)
    assert len(rows) == 5 and rows[0]["P(True)"] == "1.000"
    assert rows[0]["question"].startswith("long long ") and rows[0]["question"].endswith("…")
    assert len(rows[0]["question"]) <= 60
    sure = [abs(float(row["P(True)"]) - 0.5) for row in rows]
    assert sure == sorted(sure, reverse=True)
    assert rows[1].keys() == {"row", "P(True)", "it is", "answer", "question", "slices"} and rows[1]["slices"]
    assert error_rows(solver_errors(3))[0] == {
        "row": "0", "outcome": "cut off", "given": "–", "right answer": "5", "question": "What is 0 + 5?", "slices": ""}
    assert error_rows([]) == []


def test_links_that_were_left_out_stand_at_their_place():
    record = full_verifier(rows=100)
    record = record.model_copy(update={"left_out": [
        LeftOut(number=2, title="sft[20000:40000)", verdict="rejected", versus_parent=record.links[1].versus_parent),
        LeftOut(number=9, title="grpo", verdict="skipped")]})
    rows = link_rows(record)
    assert [(row["link"], row["verdict"]) for row in rows] == [
        ("base", ""), ("Chunk 1", "accepted"), ("Chunk 2", "accepted"), ("sft[20000:40000)", "rejected"),
        ("Chunk 3", "accepted"), ("grpo", "skipped")]
    assert rows[3]["p"] == rows[2]["p"] != "" and rows[5]["points vs. parent"] == "–"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_the_page_of_a_pipeline_follows_its_chain_and_its_log_has_a_line_a_stage(make_recipe, monkeypatch):
    told: list[str] = []
    recipe, after_links, runs = make_recipe(), [], []

    def show_chain(record):
        after_links.append(link_rows(record))
        runs.append(flow_run.id)
        artifacts.show_chain(record)

    monkeypatch.setattr(prepare, "show_chain", show_chain)
    listener = logging.Handler()
    listener.emit = lambda record: told.append(record.getMessage())
    log = logging.getLogger("prefect.task_runs")
    monkeypatch.setattr(log, "handlers", [listener])  # a test before may have had Prefect set its own up
    before = log.level
    log.setLevel(logging.INFO)
    quick = recipe.sft.model_copy(update={"learning_rate": 1e-4})
    try:
        final = pipeline(recipe.model_copy(update={"sft": quick}), execution="one")["record"]
    finally:
        log.setLevel(before)
    assert [len(rows) for rows in after_links] == [2, 3]
    mine = runs[0]
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[mine])))
    by_key = {one.key: one for one in found}
    assert len(found) == len(by_key)  # changed in place
    kinds = {one.key: one.type for one in found if not one.key.startswith("progress-")}
    assert kinds == {"links-small": "table", "accuracy-small": "image", "report-small": "markdown", "errors-small": "table",
                     "page-small": "markdown"}
    trained = {key: one.data for key, one in by_key.items() if "train-chunk" in key}
    assert trained == {"progress-small-train-chunk-0-96": 100, "progress-small-train-chunk-96-192": 100}
    digests = [link["adapter_digest"][:8] for link in final["links"]]
    assert [row["adapter"] for row in after_links[-1]] == ["", *digests]
    assert json.loads(by_key["links-small"].data) == after_links[-1]  # read from the chain, and computed by the report
    stages = [line.partition(": ")[0] for line in told]
    assert stages.count("train-chunk[0:96)") == 1 and len(stages) == len(set(stages)) == 16
