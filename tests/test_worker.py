"""Our worker in Prefect's own loops, where no server is needed; with one: ``tests/test_deployed_faults.py``."""

from types import SimpleNamespace
from uuid import uuid4

import anyio
import httpx
import pytest
from prefect.workers.process import ProcessWorker

from deployments.worker import SavingWorker

GET = httpx.Request("GET", "http://x")
REFUSED = httpx.HTTPStatusError("forbidden", request=GET, response=httpx.Response(403, request=GET))
BUSY = httpx.HTTPStatusError("busy", request=GET, response=httpx.Response(503, request=GET))


@pytest.fixture
def worker():
    """One that has taken one run of the two that it may take."""
    worker = SavingWorker("gpu", limit=2)
    worker._limiter, worker.is_setup, worker.run_id = anyio.CapacityLimiter(2), True, uuid4()
    anyio.run(worker._limiter.acquire_on_behalf_of, worker.run_id)
    return worker


@pytest.mark.parametrize("loop", ["get_and_submit_flow_runs", "sync_with_backend"])
@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), BUSY], ids=["away", "busy"])
def test_a_server_that_is_away_does_not_end_a_worker_with_runs_at_work(worker, monkeypatch, loop, error):
    async def fail(self):
        raise error

    monkeypatch.setattr(ProcessWorker, loop, fail)
    assert not anyio.run(getattr(worker, loop))
    worker._limiter.release_on_behalf_of(worker.run_id)
    with pytest.raises(type(error)):  # which Prefect's loop counts
        anyio.run(getattr(worker, loop))


def test_a_worker_that_is_refused_ends(worker, monkeypatch):
    async def fail(self):
        raise REFUSED

    monkeypatch.setattr(ProcessWorker, "get_and_submit_flow_runs", fail)
    with pytest.raises(httpx.HTTPStatusError):
        anyio.run(worker.get_and_submit_flow_runs)


def test_a_run_that_is_scheduled_again_while_its_process_ends_is_taken_when_it_has_ended(worker, monkeypatch):
    taken, again = [], SimpleNamespace(flow_run=SimpleNamespace(id=worker.run_id, deployment_id=None))

    async def submit(self, flow_run):
        taken.append(flow_run.id)
        self._submitting_flow_run_ids.remove(flow_run.id)

    monkeypatch.setattr(ProcessWorker, "_submit_run", submit)
    monkeypatch.setattr(ProcessWorker, "get_flow_run_logger", lambda self, run: self._logger)

    async def ask(submit_scheduled) -> None:
        async with anyio.create_task_group() as worker._runs_task_group:
            await submit_scheduled([again])

    async def prefects(entries):
        await ProcessWorker._submit_scheduled_flow_runs(worker, entries)

    with pytest.raises(BaseExceptionGroup, match="unhandled") as died:  # what ours is for
        anyio.run(ask, prefects)
    assert died.group_contains(RuntimeError, match="already holding")
    anyio.run(ask, worker._submit_scheduled_flow_runs)
    assert taken == []
    worker._limiter.release_on_behalf_of(worker.run_id)
    anyio.run(ask, worker._submit_scheduled_flow_runs)
    assert taken == [worker.run_id]
