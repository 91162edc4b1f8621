"""A worker that lets its runs save before it ends: ``prefect worker start`` for machines that are preempted.

    python -m deployments.worker [--pool gpu] [--limit 1] [--name NAME]

Prefect's own kills its flow processes within a second of a SIGTERM, and their runs stay Running. This one, told to stop by
SIGTERM, SIGINT or the end of its terminal, takes no more runs, sends SIGTERM to those at work, waits until they have saved and
are Crashed at the server, whose automation starts them again, and ends. Runs that had not begun are Scheduled as before. A
second signal has it not wait.

Prefect's worker ends, and its runs with it, when its server was away for some twenty minutes. This one asks on while runs are
at work: they train without a server, and give it up by themselves. Nothing being at work, it ends as Prefect's does.

Exit status: 0 where all had ended in time, 143 where one had to be killed, 1 where it could not work. A worker that is killed
by SIGKILL tells nobody: its runs see that it is gone, save and end (``mathtune.parent``).
"""

import argparse
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import anyio
import httpx
from anyio.abc import TaskStatus
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.states import Scheduled
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from deployments.command import run_command
from flows.remedies import BOOTSTRAP
from flows.server_state import read_state
from mathtune.exit_status import GIVEN_UP
from mathtune.parent import PARENT

STOP_SECONDS = 25  # of the 30 that a preempted machine gives; a run needs at most 20 (mathtune.engine_client)
POLL_SECONDS = 0.1
AWAY = "The server is away; the runs at work go on"


class SavingWorker(ProcessWorker):
    """Prefect's worker of a process pool, whose runs save before it ends.

    Args:
        pool: whose runs it takes.
        limit: runs at a time.
        name: by which the server knows it.

    Attributes:
        given_up: runs at work when it ended, which are killed with it.
    """

    def __init__(self, pool: str, limit: int, name: str | None = None):
        super().__init__(work_pool_name=pool, limit=limit, name=name)
        self.given_up = 0
        self._stopping = False
        self._processes: set[int] = set()

    @classmethod
    def __dispatch_key__(cls) -> str:
        return "saving-process"  # in Prefect's table of worker types beside ProcessWorker, not instead of it

    @property
    def at_work(self) -> int:
        """Runs that it has taken and whose end the server has not been told yet."""
        return self.limiter.borrowed_tokens if self.is_setup else 0

    async def get_and_submit_flow_runs(self) -> list[Any]:
        if not self._stopping:
            with self._patience():
                return await super().get_and_submit_flow_runs()
        return []

    async def sync_with_backend(self) -> None:
        with self._patience():
            await super().sync_with_backend()

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """While runs are at work, hides from Prefect's loops, which would end the worker, that the server is away."""
        try:
            yield
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
            if refused or not self.at_work:
                raise
            self._logger.warning("%s: %s", AWAY, str(error) or type(error).__name__)

    async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        """Leaves out runs that it still has, which are scheduled again before their process has ended: Prefect's worker would
        die of them. They are there still when the server is asked the next time."""
        held = self.limiter.statistics().borrowers
        return await super()._submit_scheduled_flow_runs([one for one in flow_run_response if one.flow_run.id not in held])

    async def run(self, flow_run: FlowRun, configuration: ProcessJobConfiguration,
                  task_status: TaskStatus[int] | None = None) -> ProcessWorkerResult:
        status = _Noted(task_status, self._processes)
        try:
            result = await super().run(flow_run, configuration, status)
        finally:
            self._processes.discard(status.pid)
        return await self._give_back(flow_run, result) if self._stopping else result

    async def _give_back(self, flow_run: FlowRun, result: ProcessWorkerResult) -> ProcessWorkerResult:
        """Has a run that was stopped before its flow began wait for another worker: the automation leaves such ones Crashed."""
        found = await self.client.read_flow_run(flow_run.id)
        if found.run_count > flow_run.run_count or not found.state or not found.state.is_crashed():
            return result
        await self.client.set_flow_run_state(flow_run.id, Scheduled(message="its worker was stopped"), force=True)
        return result.model_copy(update={"status_code": 0})  # Prefect would have it Crashed once more

    async def stop_runs(self) -> None:
        """Takes no more runs, has those at work save and end, and waits for them, so long as ``STOP_SECONDS``."""
        self._stopping = True
        told: set[int] = set()
        with anyio.move_on_after(STOP_SECONDS):
            while self.at_work:
                for pid in self._processes - told:  # one that was taken just before has its process a moment later
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                    told.add(pid)
                await anyio.sleep(POLL_SECONDS)

    async def __aexit__(self, *exc_info: Any) -> None:
        try:
            await self.stop_runs()  # also where it ends by itself: the server was away for too long
        finally:
            self.given_up = self.at_work
            await super().__aexit__(*exc_info)


class _Noted:
    """A task's status that notes the process which it is told of as the start."""

    def __init__(self, status: TaskStatus[int] | None, processes: set[int]):
        self.status, self.processes, self.pid = status, processes, 0

    def started(self, pid: int) -> None:
        self.pid = pid
        self.processes.add(pid)
        if self.status:
            self.status.started(pid)


async def work(worker: SavingWorker) -> None:
    """Has a worker work until a signal tells it to stop, or its server was away for too long."""
    stops = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # it is under nohup
        stops.append(signal.SIGHUP)
    with anyio.open_signal_receiver(*stops) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(heed, signals, worker, tasks.cancel_scope)
            await worker.start(printer=partial(print, flush=True))


async def heed(signals: AsyncIterator[signal.Signals], worker: SavingWorker, scope: anyio.CancelScope) -> None:
    """At the first signal has the runs save, then ends ``scope``; at a second one ends it at once."""

    async def hurry() -> None:
        async for number in signals:
            if number != signal.SIGHUP:  # shell and kernel both tell of a closed terminal
                scope.cancel()

    if await anext(signals) == signal.SIGHUP:
        for stream in (sys.stdout, sys.stderr):  # what is written to a closed terminal is an error, here and in the runs
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    print("Stopping: no more runs are taken, those at work save and end; a second signal does not wait for them", flush=True)
    async with anyio.create_task_group() as hurrying:
        hurrying.start_soon(hurry)
        await worker.stop_runs()
        scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pool", default="gpu", help="work pool whose runs it takes")
    parser.add_argument("--limit", type=int, default=1, help="runs at a time")
    parser.add_argument("--name", help="by which the server knows it; default: a new one")
    arguments = parser.parse_args()
    if not read_state().deployments:  # it answers and accepts the login: Prefect's worker would say "started" in any case
        print(f"nothing is deployed yet: {BOOTSTRAP}", flush=True)
    os.environ[PARENT] = str(os.getpid())
    worker = SavingWorker(arguments.pool, arguments.limit, arguments.name)
    anyio.run(work, worker)
    sys.exit(GIVEN_UP if worker.given_up else 0)


if __name__ == "__main__":
    run_command(main)
