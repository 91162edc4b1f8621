"""``mathtune`` with Prefect's decorators taken away: what a run costs without it, for ``benchmarks/prefect_share.py``.

The same flow and the same stages as plain functions. Prefect is still imported, by modules that name it.
"""

import logging
from collections.abc import Callable
from typing import Any

from tasks import states


def plain(run_name: str, **options: Any) -> Callable[[Callable], Callable]:
    """In place of ``stage_task``: the stage's function, called; it returns its value."""
    return lambda function: lambda *args, **kwargs: function(*args, **kwargs).data


states.stage_task, states.get_run_logger = plain, logging.getLogger  # before the tasks and flows are imported

from flows import cli, execute, pipeline  # noqa: E402
from tasks import results  # noqa: E402

if __name__ == "__main__":
    results.show_run = lambda *arguments: None
    execute.resolve_name = lambda name: pipeline.pipeline.fn
    execute.supervise = lambda console, events, title, flow: flow()
    cli.main()
