"""The report on the page of a Prefect run: what is shown there, and a server that is away."""

import re

import httpx
import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run

from mathtune.report.markdown import run_markdown
from mathtune.report.pictures import charts_of
from tasks import artifacts
from tasks.artifacts import artifact_key, show_run
from tests.record_fixtures import full_verifier


class Work:
    """As much of a workspace as is asked for."""

    def __init__(self):
        self.events = []

    def emit(self, event, **fields):
        self.events.append((event, fields))


@pytest.mark.parametrize("name", ["nyu-verifier", "A.b_c", "x" * 64, "-"])
def test_keys_are_valid(name):
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", artifact_key("report", name))
    assert artifact_key("sweep", "a Sweep_1") == "sweep-a-sweep-1"


@pytest.mark.parametrize("error", [httpx.ConnectError("All connection attempts failed"), RuntimeError("Failed to reach API")])
def test_a_server_that_is_away_fails_no_run(monkeypatch, error):
    def away(*_, **__):
        raise error

    monkeypatch.setattr(artifacts, "create_markdown_artifact", away)
    work = Work()
    show_run(work, full_verifier(), "# report")
    assert work.events == [("notice", {"text": f"Prefect shows no report of this run, its server is away: {error}"})]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_run_has_its_report_and_its_links():
    record, work = full_verifier(), Work()
    text = run_markdown(record, {chart: chart.png() for chart in charts_of(record)[:1]})

    @task
    def show():
        show_run(work, record, text)

    @flow(persist_result=False)
    def shown() -> str:
        show()
        return flow_run.id

    mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[shown()]))
    with get_client(sync_client=True) as client:
        found = {one.key: one for one in client.read_artifacts(artifact_filter=mine)}
    assert work.events == [] and set(found) == {"report-nyu-verifier", "links-nyu-verifier"}
    assert found["report-nyu-verifier"].type == "markdown" and found["report-nyu-verifier"].data == text
    assert found["links-nyu-verifier"].type == "table" and "Chunk 3" in found["links-nyu-verifier"].data
