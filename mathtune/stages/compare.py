"""Leaves in the run's folder what ``mathtune compare`` reads: the validation rows once, and small scores of base and links."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mathtune.comparison import FACTS, ROWS, SCORES, content_keys
from mathtune.files import disk_errors, same_bytes
from mathtune.questions import question_keys
from mathtune.run_record import RunRecord
from mathtune.stages.evaluate import correct_rows
from mathtune.store import Artifact
from mathtune.tables import parquet_bytes
from mathtune.workspace import Workspace

# What makes two rows the same row: a verifier judges all of it, a solver is asked the question alone.
CONTENT = {"verifier": ["question", "answer", "solution", "is_correct"], "solver": ["question", "answer"]}
SAID = {"verifier": ["prediction", "p_true"], "solver": ["given", "outcome"]}


def write_scores(work: Workspace, record: RunRecord, scores: dict[str, Artifact], parts: Artifact) -> None:
    """Writes ``validation.parquet`` and ``scores/``; scores of links that the chain no longer has are removed.

    Args:
        record: of the run: says which links there are.
        scores: score artifacts on the validation rows by link key; ``""`` is the base's.
        parts: the split.
    """
    task = work.recipe.task
    scored = {"base": ("base", "")} | {f"link-{link.number}": (link_title(link), link.link_id) for link in record.links}
    tables = {name: (title, scores[key]) for name, (title, key) in scored.items() if key in scores}
    rows = pq.read_table(parts.path("validation.parquet")).slice(0, max(artifact_rows(one) for _, one in tables.values()))
    keys = pa.array(content_keys(zip(*(rows[name].to_pylist() for name in CONTENT[task]), strict=True)))
    known = pa.table({"key": keys, "question": question_keys(rows["question"])})
    shown = rows.select([name for name in ("row_id", "question", "answer", "is_correct") if name in rows.column_names])
    files = {ROWS: parquet_bytes(shown.add_column(0, "key", keys))}
    for name, (title, artifact) in tables.items():
        facts = {"task": task, "title": title, "base": record.base_model}
        files[f"{SCORES}/{name}.parquet"] = parquet_bytes(small_scores(task, artifact, parts, known, facts))
    for name, data in files.items():
        if not same_bytes(work.run.path / name, data):
            work.run.write(name, data)
    with disk_errors(work.run.path):
        for path in work.run.path.glob(f"{SCORES}/*.parquet"):
            if f"{SCORES}/{path.name}" not in files:
                path.unlink()


def small_scores(task: str, artifact: Artifact, parts: Artifact, known: pa.Table, facts: dict[str, Any]) -> pa.Table:
    """``key``, ``question`` (a key), ``row_id``, ``correct`` and what was said in a word or number, by row.

    Args:
        known: the first two of these of every row.
    """
    table = pq.read_table(artifact.path("scores.parquet"), columns=["row_id", *SAID[task]])
    table = table.add_column(1, "correct", pa.array(correct_rows(artifact, parts.path("validation.parquet"))))
    for name in ("question", "key"):
        table = table.add_column(0, name, known[name].slice(0, len(table)))
    return table.replace_schema_metadata({FACTS: json.dumps(facts)})


def artifact_rows(scores: Artifact) -> int:
    return pq.read_metadata(scores.path("scores.parquet")).num_rows


def link_title(link) -> str:
    """``sft[0:1200)`` or ``grpo``."""
    return f"sft[{link.start}:{link.end})" if link.start is not None else link.kind
