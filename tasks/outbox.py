"""Sends what Prefect's pages show of a run, from a thread of its own: a server that is slow or away holds nothing up.

Only the newest of what is shown under one key waits. What could not be sent is tried again while the run goes on, and given
up at its end; nothing is lost by it, since all that is shown is a copy. Leaves out what is shown (``tasks.artifacts``,
``tasks.progress``).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, copy_context
from uuid import UUID

from httpx import HTTPStatusError, Limits
from prefect.artifacts import Artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.servers import AWAY

PAUSE_SECONDS = 5  # between two updates of what moves
SEND_SECONDS = 5  # for one request
END_SECONDS = 5  # for what still waits when a run ends
AWAY_SECONDS = 1  # the same, where the server was away the last time
GONE, BUSY = 404, (408, 429)


class Outbox:
    """What waits to be sent, and the thread that sends it. ``put`` and ``close`` belong to the thread that made it.

    Args:
        notice: takes a sentence, once, if something cannot be shown.
        flow_run_id: whose artifacts they are.
        client: opens a client of the server, in the sending thread.
        pause: seconds between two batches, unless something is to be shown at once.
    """

    def __init__(self, notice: Callable[[str], None], flow_run_id: UUID,
                 client: Callable[[], AbstractContextManager[SyncPrefectClient]] | None = None, pause: float = PAUSE_SECONDS):
        self._notice, self._flow_run_id, self._client, self._pause = notice, flow_run_id, client or _client, pause
        self._waiting: dict[str, Artifact] = {}  # by key
        self._sent: dict[str, UUID] = {}  # ids of the server's by key
        self._trouble = self._lost = ""  # what is in the way now, and what was dropped for good
        self._told = False
        self._change = threading.Condition()
        self._soon = self._closing = False
        context = copy_context()  # which server is asked is in there
        self._thread = threading.Thread(target=context.run, args=(self._work,), name="outbox", daemon=True)
        self._thread.start()

    def put(self, artifact: Artifact, soon: bool = True) -> None:
        """Has an artifact shown, in place of one that waits under the same key; ``soon``: at once, else with the next batch."""
        with self._change:
            self._waiting[artifact.key] = artifact
            if soon:
                self._soon = True
                self._change.notify()
        if self._trouble or self._lost:
            self._tell()

    def close(self) -> None:
        """Gives what waits a last, bounded time."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join(AWAY_SECONDS if self._trouble else END_SECONDS)
        if self._trouble or self._lost or self._thread.is_alive():
            self._tell()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            why = self._lost or self._trouble or "its server does not answer"
            self._notice(f"Prefect's pages do not show all of this run: {why}")

    def _work(self) -> None:
        try:
            self._send_until_closed()
        except Exception as error:  # nobody else would say that the thread is gone
            self._lost = f"they are not sent any more: {type(error).__name__}: {error}"

    def _send_until_closed(self) -> None:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), self._client() as client:
            closing = False
            while not closing:
                with self._change:
                    self._change.wait_for(lambda: self._soon or self._closing, self._pause)
                    closing, self._soon = self._closing, False
                    batch, self._waiting = self._waiting, {}
                unsent = self._send_all(client, batch)
                with self._change:
                    self._waiting = {**unsent, **self._waiting}

    def _send_all(self, client: SyncPrefectClient, batch: dict[str, Artifact]) -> dict[str, Artifact]:
        """Returns what could not be sent: where the server is away for one it is away for all. What it refuses, or nobody could
        send, is dropped."""
        unsent = dict(batch)
        for key, artifact in batch.items():
            try:
                self._send(client, artifact)
                self._trouble = ""
            except HTTPStatusError as error:
                status = error.response.status_code
                said = f"its server answered {status} to {key}"
                if status >= 500 or status in BUSY:
                    self._trouble = said
                    break
                self._lost = said
            except AWAY as error:
                self._trouble = f"its server is away: {str(error) or type(error).__name__}"
                break
            except Exception as error:
                self._lost = f"{key} cannot be sent: {type(error).__name__}: {error}"
            del unsent[key]
        return unsent

    def _send(self, client: SyncPrefectClient, artifact: Artifact) -> None:
        """Makes the server's artifact of this run and key, or changes it."""
        shown = {"description": artifact.description, "data": artifact.format()}
        if known := self._sent.get(artifact.key):
            try:  # not client.update_artifact: it would send all data a second time, as an event
                client.request("PATCH", "/artifacts/{id}", path_params={"id": known}, json=shown)
                return
            except HTTPStatusError as error:
                if error.response.status_code != GONE:
                    raise
        made = client.create_artifact(ArtifactCreate(key=artifact.key, type=artifact.type, flow_run_id=self._flow_run_id,
                                                     task_run_id=artifact.task_run_id, **shown))
        self._sent[artifact.key] = made.id


def _client() -> AbstractContextManager[SyncPrefectClient]:
    # with settings: no other's client; a connection for each: a server closes one that is idle, at the moment of its use
    return get_client(sync_client=True, httpx_settings={"timeout": SEND_SECONDS, "limits": Limits(max_keepalive_connections=0)})


_open: ContextVar[Outbox | None] = ContextVar("outbox", default=None)


@contextmanager
def open_outbox(notice: Callable[[str], None]) -> Iterator[None]:
    """Within it, a flow run and its tasks can ``show`` artifacts; outside a flow run it does nothing."""
    if not flow_run.id:
        yield
        return
    outbox = Outbox(notice, UUID(flow_run.id))
    token = _open.set(outbox)
    try:
        yield
    finally:
        _open.reset(token)
        outbox.close()


def show(artifact: Artifact, soon: bool = True) -> None:
    """Has an artifact shown on the page of the flow run that this is called in, if its outbox is open. Never waits."""
    if outbox := _open.get():
        outbox.put(artifact, soon)
