"""Which Prefect server a run tells of itself: a configured one, or one of its own (``flows.local_server``); and how it asks
there for what it can do without."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

OWN = "MATHTUNE_OWN_SERVER"  # variable that is set for a command whose server is the own one of the run that started it
RUNS_OWN: ContextVar[bool] = ContextVar("RUNS_OWN", default=OWN in os.environ)

ANSWER_SECONDS = 10  # in which a server answers, or is away
RETRIES = 2  # a busy database is asked again
AWAY = (HTTPError, RuntimeError)  # RuntimeError: "Failed to reach API"


def is_configured() -> bool:
    """Whether it is one that people watch and other runs share; a run's own ends with the run."""
    return bool(PREFECT_API_URL.value()) and not RUNS_OWN.get()


def server_environment(url: str) -> dict[str, str]:
    """What tells a child process of this process's server, and whose it is."""
    return {"PREFECT_API_URL": url, **({OWN: "true"} if RUNS_OWN.get() else {})}


@contextmanager
def answering() -> Iterator[SyncPrefectClient]:
    """A client that gives a server up soon, also inside of a flow. Raises one of ``AWAY`` then."""
    with (temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}),
          get_client(sync_client=True, httpx_settings={"timeout": ANSWER_SECONDS}) as client):
        yield client
