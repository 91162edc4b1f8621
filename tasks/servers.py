"""Which Prefect server a run tells of itself: a configured one, or one of its own (``flows.local_server``)."""

from contextvars import ContextVar

from prefect.settings import PREFECT_API_URL

RUNS_OWN: ContextVar[bool] = ContextVar("RUNS_OWN", default=False)


def is_configured() -> bool:
    """Whether it is one that people watch and other runs share; a run's own ends with the run."""
    return bool(PREFECT_API_URL.value()) and not RUNS_OWN.get()
