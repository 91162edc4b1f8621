"""A GPU's slot at the Prefect server, over the machine's own lock: for containers that share no folder, and for people to see.

Each GPU is a global concurrency limit, ``gpu:UUID``, of which a job holds a lease. The lease of a killed holder is over after
a minute. A server that does not answer holds up nobody: the job goes on by the machine's lock, and asks again meanwhile.

``prefect.concurrency`` is not used: its slot ends with the task that took it, which an engine outlives, and it gives a lease
up after the third renewal that fails, which a server's restart outlasts.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import flow_run

from mathtune.events import Emit
from mathtune.files import HOST
from mathtune.gpus import Gpu, Held, Taken, hold_gpus
from tasks.servers import AWAY, answering

LEASE_SECONDS = 60  # the shortest that Prefect has
RENEW_SECONDS = 15
END_SECONDS = 5  # for a slot to be given back; else it is free when its lease is over
GPU_LIMIT = "gpu:"  # how the name of a GPU's limit begins
IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"


@contextmanager
def lease_gpus(count: int, run: str, emit: Emit) -> Iterator[Held]:
    """``hold_gpus``, with the slot of each at the Prefect server."""
    with hold_gpus(count, run, emit, Slots(emit).claim) as held:
        yield held


def limit_of(gpu: Gpu) -> str:
    """The name of a GPU's limit: by its UUID it is the same in every container."""
    return f"{GPU_LIMIT}{gpu.uuid or f'{HOST}:{gpu.name}'}".replace("/", "_")


class Slots:
    """What one job has of the server's slots.

    Args:
        emit: told once why there are none, and what went wrong with one.
    """

    def __init__(self, emit: Emit):
        self._emit = emit
        self._alone = False  # by the machine's lock
        self._leases: list[Lease] = []

    @contextmanager
    def claim(self, gpu: Gpu) -> Iterator[None]:
        """Holds the slot of a GPU, as soon as the server gives one. With the first, all of the job are given back.

        Raises:
            Taken: somebody else has it.
        """
        self._leases.append(Lease(limit_of(gpu), self._first(gpu)))
        try:
            yield
        finally:
            self._give_back()

    def _first(self, gpu: Gpu) -> UUID | None:
        if self._alone:
            return None
        try:
            with answering() as client:
                if survive(client):
                    lease = acquire(client, limit_of(gpu))
                    if lease is None:
                        raise Taken(f"{gpu.name} is taken elsewhere (Prefect's limit {limit_of(gpu)})")
                    return lease
            why = "which keeps them in memory (PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE)"
        except AWAY as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
        self._alone = True
        self._emit("notice", text=f"no slot from Prefect's server, {why}: a GPU is held by this machine's lock alone")
        return None

    def _give_back(self) -> None:
        """At once, if the server answers soon: a server that is away is waited for once, not for each."""
        leases, self._leases = self._leases, []
        for lease in leases:
            lease.over.set()
        end = time.monotonic() + END_SECONDS
        for lease in leases:
            lease.thread.join(max(0, end - time.monotonic()))
            if lease.trouble:
                self._emit("notice", text=f"Prefect's limit {lease.limit} was not always held: {lease.trouble!r}")


class Lease:
    """The lease of a limit's slot, renewed by a thread; one that was lost, or could not be had yet, is asked for again. It
    is given back after ``over``.

    Args:
        limit: its name.
        lease: its id, once there is one.

    Attributes:
        trouble: what else than a server that is away went wrong.
    """

    def __init__(self, limit: str, lease: UUID | None):
        self.limit, self._lease = limit, lease
        self.over, self.trouble = threading.Event(), None
        self.thread = threading.Thread(target=copy_context().run, args=(self._keep,), name=f"lease {limit}", daemon=True)
        self.thread.start()

    def _keep(self) -> None:
        while not self.over.wait(RENEW_SECONDS):
            self._ask(self._renew)
        if self._lease is not None:
            self._ask(self._release)

    def _ask(self, what: Callable[[SyncPrefectClient], None]) -> None:
        try:
            with answering() as client:
                what(client)
        except AWAY:
            pass  # asked again at the next renewal; what is not given back is free when its lease is over
        except Exception as error:  # of whatever kind: the thread would end, and the slot be lost without a word
            self.trouble = error

    def _renew(self, client: SyncPrefectClient) -> None:
        if self._lease is None or not renew(client, self._lease):
            self._lease = None
            self._lease = acquire(client, self.limit) if survive(client) else None

    def _release(self, client: SyncPrefectClient) -> None:
        client.release_concurrency_slots_with_lease(self._lease)


def survive(client: SyncPrefectClient) -> bool:
    """Whether leases survive a restart of the server. Else the slot of a job that it met would be taken for ever."""
    return lease_storage(client) != IN_MEMORY


def lease_storage(client: SyncPrefectClient) -> str:
    """Where the server keeps leases: the module's name."""
    return client.request("GET", "/admin/settings").json()["server"]["concurrency"]["lease_storage"]


def acquire(client: SyncPrefectClient, limit: str) -> UUID | None:
    """A lease of one slot of a limit, which is made where it is missing; None: none is free."""
    make_limit(client, limit)
    holder = ConcurrencyLeaseHolder(type="flow_run", id=flow_run.id) if flow_run.id else None
    try:
        answer = client.increment_concurrency_slots_with_lease([limit], 1, "concurrency", LEASE_SECONDS, holder)
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (423, 422):  # locked; 422: somebody set the limit to 0
            return None
        raise
    return UUID(answer.json()["lease_id"])


def make_limit(client: SyncPrefectClient, limit: str) -> bool:
    """Makes the limit of a GPU; one that is there stays as it is. Returns whether it was missing."""
    try:
        client.read_global_concurrency_limit_by_name(limit)
        return False
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=limit, limit=1))
    return True


def renew(client: SyncPrefectClient, lease: UUID) -> bool:
    """Whether the lease was still there."""
    try:
        client.renew_concurrency_lease(lease, LEASE_SECONDS)
    except httpx.HTTPStatusError as error:
        if error.response.status_code == 410:
            return False
        raise
    return True
