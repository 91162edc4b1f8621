"""Tasks that measure and publish: evaluate, submit, report."""

from dataclasses import replace
from typing import Any

from mathtune.chain import Link
from mathtune.figures import Interval
from mathtune.run_record import RunRecord
from mathtune.stages import Outcome
from mathtune.stages import evaluate as evaluation
from mathtune.stages import judge as judging
from mathtune.stages import probes as probing
from mathtune.stages import report as reporting
from mathtune.stages import submit as submission
from mathtune.stages.judge import Decision
from mathtune.store import Artifact
from mathtune.workspace import Workspace
from tasks.artifacts import show_run
from tasks.states import run_stage, stage_task


@stage_task("evaluate {title}")
def evaluate(work: Workspace, base: dict[str, Any], parts: Artifact, link: Link | None, raw: Artifact, title: str) -> Artifact:
    """A link (None: the base) → scores on the fixed validation rows."""
    return run_stage(work, f"evaluate {title}", lambda: evaluation.evaluate(work, base, parts, link, raw))


@stage_task("judge {link.title}")
def judge(work: Workspace, base: dict[str, Any], parts: Artifact, link: Link, scores: Artifact, parent_scores: Artifact,
          decision: Decision | None) -> str:
    """A new link and its parent, scored → its place in the chain, or a rejection that stops the run."""
    return run_stage(work, f"judge {link.title}",
                     lambda: judging.judge(work, base, parts, link, scores, parent_scores, decision))


@stage_task("probe {title}")
def probe(work: Workspace, base: dict[str, Any], parts: Artifact, links: list[Link], title: str) -> list[Interval]:
    """A link → its accuracy on fixed rows of every chunk that it grew from."""
    return run_stage(work, f"probe {title}", lambda: probing.probe(work, base, parts, links))


@stage_task("submit")
def submit(work: Workspace, base: dict[str, Any], raw: Artifact, parts: Artifact, link: Link) -> dict[str, Any]:
    """A link → predictions on the test rows and, for a verifier, the submission."""
    return run_stage(work, "submit", lambda: submission.submit(work, base, raw, parts, link))


@stage_task("report")
def report(work: Workspace, record: RunRecord, scores: dict[str, Artifact], data: dict[str, Artifact]) -> str:
    """The run's record → report.html and the files beside it, shown in Prefect, too; returns the report's path."""

    def write_and_show() -> Outcome:
        outcome = reporting.report(work, record, scores, data)
        show_run(record, outcome.value)
        return replace(outcome, value=outcome.value.page)

    return run_stage(work, "report", write_and_show)
