"""Shows a run on its page in Prefect: the chain as a table and a picture after every link, then report, errors, and where
the report lies.

What it shows is a copy, sent by ``tasks.outbox``: a server that is away loses nothing, and no run fails or waits for it.
"""

import base64
import os
import re
from pathlib import Path
from urllib.parse import quote

from prefect.artifacts import ImageArtifact, LinkArtifact, MarkdownArtifact, TableArtifact

from mathtune.report.accuracy_charts import accuracy_chart
from mathtune.report.error_rows import error_rows
from mathtune.report.markdown import figure, link_rows
from mathtune.report.words import last_evaluated, link_title, trained, verdict
from mathtune.run_record import RunRecord
from mathtune.stages.report import Report
from tasks.outbox import show

# What is shown, as the first part of its key; artifacts of one key are versions of each other.
REPORT, LINKS, ACCURACY, ERRORS, PAGE = "report", "links", "accuracy", "errors", "page"
RUNS_URL = "MATHTUNE_RUNS_URL"  # where the folder storage.runs is served, for example http://gpu1:4300
CHART_SIZE = 760, 380


def show_chain(record: RunRecord) -> None:
    """The chain as it is: its links as a table, accuracy after each as a picture."""
    if rows := link_rows(record):
        show(TableArtifact(key=artifact_key(LINKS, record.name), table=rows, description=chain_text(record)))
    if chart := accuracy_chart(record, *CHART_SIZE):
        picture = "data:image/png;base64," + base64.b64encode(chart.png()).decode()
        show(ImageArtifact(key=artifact_key(ACCURACY, record.name), image_url=picture, description=chart.description))


def show_run(record: RunRecord, report: Report) -> None:
    """The chain, the report, the surest errors and the report's address."""
    show_chain(record)
    show(MarkdownArtifact(key=artifact_key(REPORT, record.name), markdown=report.markdown,
                          description=verdict(record)))
    if rows := error_rows(report.errors):
        file = Path(report.page).absolute().with_name("errors.jsonl")
        whose = link_title(last_evaluated(record))
        show(TableArtifact(key=artifact_key(ERRORS, record.name), table=rows, description=(
            f"{len(rows):,} of the {len(report.errors):,} validation rows that {whose} has wrong, the surest first; "
            f"all of them: {file}")))
    show(report_link(record.name, Path(report.page).absolute()))


def chain_text(record: RunRecord) -> str:
    """How long the chain is and how good its end: what a list of artifacts shows of it."""
    last = last_evaluated(record)
    ended = f", after {link_title(last)} {figure(last.metrics.accuracy)} right" if last else ""
    return f"Chain {record.chain}: {trained(record.links)}{ended}"


def report_link(name: str, page: Path) -> LinkArtifact:
    """Where the report can be opened: on the server of the runs' folder that the environment names, else its path.

    A browser opens no file from a server's page: that link is there to be copied.
    """
    if served := os.environ.get(RUNS_URL):
        link, text, how = f"{served.rstrip('/')}/{quote(name)}/{page.name}", f"report of {name}", ""
    else:
        link, text, how = page.as_uri(), str(page), f", on the worker's machine ({RUNS_URL} would make it a link to open)"
    return LinkArtifact(key=artifact_key(PAGE, name), link=link, link_text=text, description=f"report.html of {name}{how}")


def artifact_key(kind: str, name: str) -> str:
    """``report-nyu-verifier`` of a run's name: what Prefect takes as a key."""
    return re.sub(r"[^a-z0-9]+", "-", f"{kind}-{name}".lower()).strip("-")
