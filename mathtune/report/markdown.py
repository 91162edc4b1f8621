"""The report's figures as markdown with pictures inside, for whoever shows no HTML: Prefect's page of a run."""

import base64
from typing import Any

from mathtune.figures import Comparison, Interval, SolverMetrics, VerifierMetrics
from mathtune.report import submission, tables, words
from mathtune.report.charts import Chart
from mathtune.run_record import RunRecord


def run_markdown(record: RunRecord, pictures: dict[Chart, bytes]) -> str:
    """The verdict, the tables of links, confusion, slices, and the pictures.

    Args:
        record: the run's figures.
        pictures: PNGs by their chart.
    """
    last = words.last_evaluated(record)
    metrics = last.metrics if last else None
    parts = [f"## {plain(words.verdict(record))}"]
    if test := submission.known_accuracy(record):
        parts.append(f"Test rows: {words.percent(test.value)}; {plain(submission.known_note(record))}.")
    parts += [plain(mixtures)] if (mixtures := submission.mixtures(record)) else []
    parts += [f"**No submission was written:** {plain(refused)}"] if (refused := submission.refusal(record)) else []
    parts += [f"**Leak:** {pair.exact:,} of {pair.second_rows:,} questions of {plain(pair.second)} stand word for word in "
              f"{plain(pair.first)}." for pair in tables.exact_leaks(record.leaks)]
    if links := link_rows(record):
        parts += ["### Links", markdown_table(links)]
    if isinstance(metrics, VerifierMetrics):
        parts += ["### What it confuses", markdown_table(confusion_rows(metrics))]
    elif metrics:
        parts += ["### How its completions end", markdown_table([
            {"outcome": name, "problems": f"{count:,}", "share": words.percent(count / metrics.rows)}
            for name, count in metrics.outcomes.items()])]
    if metrics and metrics.slices:
        parts += ["### Slices", markdown_table([
            {"by": one.by, "slice": one.value, "accuracy": figure(one.accuracy), "n": f"{one.accuracy.n:,}",
             "True": words.percent(one.true_share)} for one in metrics.slices])]
    for chart, png in pictures.items():
        data = base64.b64encode(png).decode()
        parts += [f"### {chart.title}", f"![{plain(chart.description)}](data:image/png;base64,{data})"]
    return "\n\n".join(parts) + "\n"


def link_rows(record: RunRecord) -> list[dict[str, str]]:
    """A row for the base, for every link in the order of the chain, and for what was rejected or skipped on the way."""
    rows = [_link_row("base", "", record.base, None, "", "")] if record.base else []
    placed = [(link.number, _link_row(words.link_title(link), words.link_range(link), link.metrics, link.versus_parent,
                                      link.verdict, link.adapter_digest[:8])) for link in record.links]
    placed += [(link.number, _link_row(link.title, "", None, link.versus_parent, link.verdict, ""))
               for link in record.left_out]
    return rows + [row for _, row in sorted(placed, key=lambda one: one[0])]


def _link_row(title: str, rows: str, metrics: VerifierMetrics | SolverMetrics | None, versus: Comparison | None, verdict: str,
              adapter: str) -> dict[str, str]:
    return {"link": title, "rows": rows, "accuracy": figure(metrics.accuracy) if metrics else words.UNDEFINED,
            "n": f"{metrics.accuracy.n:,}" if metrics else "",
            "points vs. parent": words.points(versus) if versus else "" if title == "base" else words.UNDEFINED,
            "p": words.p_value(versus.p).removeprefix("p ").removeprefix("= ") if versus else "", "verdict": verdict,
            "adapter": adapter}


def confusion_rows(metrics: VerifierMetrics) -> list[dict[str, str]]:
    """By the logits and, where words were generated, by these."""
    rows = [{"by": "logits", "answers": name, "judged right": f"{metrics.confusion[truth]['true']:,}",
             "judged wrong": f"{metrics.confusion[truth]['false']:,}", "malformed": ""}
            for truth, name in (("true", "right"), ("false", "wrong"))]
    if metrics.words:
        rows += [{"by": "words", "answers": name, "judged right": f"{counts['true']:,}", "judged wrong": f"{counts['false']:,}",
                  "malformed": f"{counts['malformed']:,}"}
                 for name, counts in (("right", metrics.words.confusion["true"]), ("wrong", metrics.words.confusion["false"]))]
    return rows


def figure(interval: Interval) -> str:
    """A share with its 95% interval."""
    return f"{words.percent(interval.value)} ({words.bounds(interval)})" if interval.n else words.UNDEFINED


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows of like keys as a table of GitHub's markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([plain(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that markdown shows as it is: what a recipe or a data set names may hold its signs."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return " ".join(text.split())
