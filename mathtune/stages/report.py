"""What a run leaves for people: ``metrics.json``, ``manifest.json``, ``errors.jsonl``, ``recipe.yaml``, ``report.html``."""

import json
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mathtune import __version__
from mathtune.chain import Chain, Link
from mathtune.digests import digest_value
from mathtune.figures import Forgetting, SolverMetrics, VerifierMetrics
from mathtune.metrics import compare
from mathtune.recipe_file import dump_recipe
from mathtune.report.build import build_report
from mathtune.report.markdown import run_markdown
from mathtune.report.pictures import charts_of
from mathtune.report.tables import key_figures
from mathtune.run_record import LeftOut, LinkRecord, Redone, RunRecord, TrainingCurve
from mathtune.stages import Outcome
from mathtune.stages.compare import write_scores
from mathtune.stages.evaluate import correct_rows, metrics_of, validation_questions, wrong_rows
from mathtune.stages.leaks import read_pairs
from mathtune.store import Artifact
from mathtune.tracking import log_report
from mathtune.workspace import Workspace

COUNTS = ("examples", "tokens", "label_tokens", "shortened", "dropped", "left_out", "timed_out")


def make_record(work: Workspace, links: list[Link], served: set[str], scores: dict[str, Artifact], base: dict[str, Any],
                data: dict[str, Artifact], submission: dict[str, Any] | None, forgetting: Forgetting | None) -> RunRecord:
    """The run as one record.

    Args:
        links: of the chain, in order.
        served: keys of the links that this execution found.
        scores: score artifacts on the validation rows by link key; ``""`` is the base's.
        base: the result of ``inspect_base``.
        data: artifacts of the data stages by name; ``download`` and ``split`` among them.
        submission: facts of ``submit``.
        forgetting: accuracy on rows of every chunk after each (``mathtune.stages.probes``).
    """
    parts, raw = data["split"], data["download"]
    verdicts = {entry.link.key: entry.verdict for entry in work.chain.entries()}
    correct = {key: correct_rows(artifact, parts.path("validation.parquet")) for key, artifact in scores.items()}
    questions = validation_questions(parts, max((len(one) for one in correct.values()), default=0))
    records = []
    for link in links:
        both = link.key in correct and link.parent in correct
        records.append(LinkRecord(
            number=link.number, kind=link.kind, start=link.start, end=link.end, adapter_digest=link.adapter_digest,
            link_id=link.key, served=link.key in served,
            training=TrainingCurve.model_validate(link.result["curve"]),
            facts={name: link.result[name] for name in COUNTS if name in link.result},
            metrics=metrics_of(work, scores[link.key], parts, raw) if link.key in scores else None,
            versus_parent=compare(correct[link.parent], correct[link.key], questions) if both else None,
            adapter=str(work.chain.adapter(link)), seconds=link.result["seconds"],
            verdict=verdicts[link.key], incidents=link.result["incidents"],
            redone=Redone.model_validate(link.result["redone"]), pack_tokens=link.result.get("pack_tokens"),
            micro_batch=link.result.get("micro_batch"), lengths=link.result.get("lengths"),
            trainable=link.result.get("trainable"), parameters=link.result.get("parameters"),
            peak_gib=link.result.get("peak_gib"), peak_rss_gib=link.result.get("peak_rss_gib")))
    last = next((link.key for link in reversed(links) if link.key in correct), None)
    builtin = work.recipe.model.base.startswith("builtin:")
    return RunRecord(
        name=work.recipe.name, chain=work.chain.name, task=work.recipe.task, created=datetime.now(UTC),
        base_model=base["folder"] if builtin else work.recipe.model.base,
        base=metrics_of(work, scores[""], parts, raw) if "" in scores else None,
        links=records, left_out=left_out(work.chain),
        exact=base["device"] == "cpu" or work.recipe.hardware.deterministic,
        versus_base=compare(correct[""], correct[last], questions) if last and "" in correct else None,
        forgetting=forgetting,
        leaks=[pair for name in ("leaks", "prompt-leaks") if name in data for pair in read_pairs(data[name])],
        data={name: artifact.facts for name, artifact in data.items()}, submission=submission,
        versions={"mathtune": __version__, "python": platform.python_version(), **base["versions"]},
        pins=work.chain.pins() or {}, seconds=work.seconds)


def chain_so_far(work: Workspace, base: VerifierMetrics | SolverMetrics | None) -> RunRecord:
    """What the chain itself knows of its links, read and not computed: what is shown between two links.

    Args:
        base: figures of the base without an adapter, where they are known.
    """
    entries = [(entry, work.chain.record(entry.link)) for entry in work.chain.entries() if entry.accepted]
    links = [LinkRecord(number=entry.link.number, kind=entry.link.kind, start=entry.link.start, end=entry.link.end,
                        adapter_digest=entry.link.adapter_digest, link_id=entry.link.key, verdict=entry.verdict,
                        metrics=known.get("metrics"), versus_parent=known.get("versus_parent")) for entry, known in entries]
    return RunRecord(name=work.recipe.name, chain=work.chain.name, task=work.recipe.task, created=datetime.now(UTC),
                     base_model=work.recipe.model.base, base=base, links=links, left_out=left_out(work.chain))


def left_out(chain: Chain) -> list[LeftOut]:
    """The links that were skipped, and those that wait for a person's word."""
    links = [(entry.link, "skipped") for entry in chain.entries() if entry.verdict == "skipped"]
    links += [(link, "rejected") for link in chain.rejected()]
    return [LeftOut(number=link.number, title=link.title, verdict=verdict,
                    versus_parent=chain.record(link).get("versus_parent")) for link, verdict in links]


@dataclass(frozen=True)
class Report:
    """What was written for people.

    Attributes:
        page: the HTML file in the run's folder.
        markdown: its figures and pictures for whoever shows no HTML.
        errors: every wrong answer of the last evaluated link.
    """

    page: str
    markdown: str
    errors: list[dict[str, Any]]


def report(work: Workspace, record: RunRecord, scores: dict[str, Artifact], data: dict[str, Artifact]) -> Outcome:
    """Writes the run folder's files; the report is drawn, and logged to W&B, again only if something it shows has changed.

    Returns:
        Outcome of a ``Report``.
    """
    parts = data["split"]
    shown = [link.link_id for link in record.links if link.link_id in scores]
    errors = wrong_rows(work, scores[shown[-1]], parts, data["download"]) if shown else []
    recipe = dump_recipe(work.recipe)
    seen = record.model_dump(mode="json", exclude={"created", "seconds"})
    for link in seen["links"]:
        del link["served"]
    key = digest_value({"stage": "report", "version": 5, "record": seen, "errors": errors, "recipe": recipe})
    page = work.artifacts.get_or_build("report", key, lambda folder: draw(record, errors, recipe, folder))
    work.save_recipe()
    work.run.write("metrics.json", record.model_dump_json(indent=2) + "\n")
    work.run.write("errors.jsonl", "".join(json.dumps(error, ensure_ascii=False) + "\n" for error in errors))
    work.run.write_json("manifest.json", manifest(record, data))
    write_scores(work, record, scores, parts)
    target = work.run.write("report.html", page.path("report.html").read_bytes())
    if work.recipe.tracking and not page.cached:
        pictures = {title: page.path(name) for title, name in page.facts["pictures"].items()}
        log_report(work.recipe.tracking, record, key_figures(record), pictures, work.emit)
    return Outcome(Report(str(target), page.path("report.md").read_text(), errors), page.cached, str(target))


def draw(record: RunRecord, errors: list[dict[str, Any]], recipe: str, folder: Path) -> dict[str, Any]:
    """Writes the report as ``report.html`` and ``report.md``, and its pictures as PNG. Returns their names by title."""
    build_report(record, errors, recipe, folder / "report.html")
    pictures = {chart: chart.png() for chart in charts_of(record)}
    for chart, png in pictures.items():
        (folder / f"{chart.name}.png").write_bytes(png)
    (folder / "report.md").write_text(run_markdown(record, pictures))
    return {"pictures": {chart.title: f"{chart.name}.png" for chart in pictures}}


def manifest(record: RunRecord, data: dict[str, Artifact]) -> dict[str, Any]:
    """Versions and digests from which every figure of the run can be traced."""
    return {"name": record.name, "chain": record.chain, "created": record.created.isoformat(), "versions": record.versions,
            "pins": record.pins, "artifacts": {name: {"key": artifact.key, "files": artifact.files}
                                              for name, artifact in data.items()},
            "links": [{"number": link.number, "kind": link.kind, "start": link.start, "end": link.end,
                       "key": link.link_id, "adapter": link.adapter_digest} for link in record.links],
            "submission": record.submission}
