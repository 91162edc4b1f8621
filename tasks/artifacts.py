"""Shows what came of a run on its page in Prefect: the verdict with tables and pictures, and the links as a table.

Prefect's page shows a picture in markdown from a data URI. What it shows is a copy: a server that is away loses nothing,
and no run fails for it.
"""

import re

from httpx import HTTPError
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from mathtune.report.markdown import link_rows
from mathtune.run_record import RunRecord
from mathtune.workspace import Workspace

REPORT_KEY = "report"  # keys hold lower-case letters, digits and dashes; those of one key are versions of each other
LINKS_KEY = "links"


def show_run(work: Workspace, record: RunRecord, markdown: str) -> None:
    """Makes the artifacts of the Prefect run that this is called in; says so where its server is away."""
    try:
        create_markdown_artifact(markdown, key=artifact_key(REPORT_KEY, record.name), description=f"Report of {record.name}")
        if rows := link_rows(record):
            create_table_artifact(rows, key=artifact_key(LINKS_KEY, record.name), description=f"Links of chain {record.chain}")
    except (HTTPError, RuntimeError) as error:  # RuntimeError: "Failed to reach API"
        work.emit("notice", text=f"Prefect shows no report of this run, its server is away: {error}")


def artifact_key(kind: str, name: str) -> str:
    """``report-nyu-verifier`` of a run's name: what Prefect takes as a key."""
    return re.sub(r"[^a-z0-9]+", "-", f"{kind}-{name}".lower()).strip("-")
