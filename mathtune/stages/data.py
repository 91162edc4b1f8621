"""The data stages: source → raw rows → balanced rows → validation rows and training pool → a chunk's rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mathtune.balance import balance_rows
from mathtune.digests import digest_value
from mathtune.errors import StoreError
from mathtune.questions import question_keys, scan_questions
from mathtune.sources import pin_source, read_source, source_identity
from mathtune.split import split_rows
from mathtune.stages import Outcome
from mathtune.store import Artifact
from mathtune.tables import take_rows
from mathtune.workspace import Workspace

# A stage's number is raised when the same inputs give other bytes than before.
VERSIONS = {"download": 1, "balance": 1, "split": 1, "chunk": 1, "tokens": 2, "leaks": 1}


def download(work: Workspace) -> Outcome:
    """``train.parquet`` and ``test.parquet``: rows of the source, columns mapped, values checked."""
    source, task = pin_source(work.recipe.source), work.recipe.task
    key = stage_key("download", identity=source_identity(source, task), task=task)
    raw = work.artifacts.get_or_build("download", key, lambda folder: read_source(source, task, folder))
    classes = raw.facts.get("classes")
    found = f", {classes['true']:,} True and {classes['false']:,} False" if classes else ""
    return Outcome(raw, raw.cached, f"{raw.facts['rows']:,} rows{found}; {raw.facts['test_rows']:,} test rows")


def balance(work: Workspace, raw: Artifact) -> Outcome:
    """``balanced.parquet``: equal classes (verifier only)."""
    settings = work.recipe.balance
    key = stage_key("balance", rows=raw.files["train.parquet"], settings=settings.model_dump(mode="json"))
    rows = work.artifacts.get_or_build(
        "balance", key, lambda folder: balance_rows(raw.path("train.parquet"), settings, folder))
    kept = rows.facts["kept"]
    return Outcome(rows, rows.cached, f"kept {kept['true']:,} True and {kept['false']:,} False")


def split(work: Workspace, rows: Artifact, name: str) -> Outcome:
    """``validation.parquet`` and ``pool.parquet``; ``name`` is the file of ``rows`` to split."""
    settings, task = work.recipe.validation, work.recipe.task
    key = stage_key("split", rows=rows.files[name], settings=settings.model_dump(mode="json"), task=task)
    parts = work.artifacts.get_or_build(
        "split", key, lambda folder: split_rows(rows.path(name), settings, task, folder))
    facts = parts.facts
    aside = f", {facts['set_aside']:,} siblings set aside" if facts["set_aside"] else ""
    return Outcome(parts, parts.cached, f"{facts['validation']:,} validation rows, pool of {facts['pool']:,}{aside}")


def pool_rows(work: Workspace, parts: Artifact, positions: np.ndarray) -> Artifact:
    """``rows.parquet``: the training pool's rows at the given positions (int64), in that order.

    Raises:
        StoreError: a validation row's question is among them.
    """
    key = stage_key("chunk", pool=parts.files["pool.parquet"], validation=parts.files["validation.parquet"],
                    positions=digest_value(positions.tolist()))

    def build(folder: Path) -> dict[str, int]:
        rows = take_rows(parts.path("pool.parquet"), positions)
        if work.recipe.validation.group_by == "question":
            refuse_leak(rows, parts)
        pq.write_table(rows, folder / "rows.parquet", compression="zstd")
        return {"rows": len(positions)}

    return work.artifacts.get_or_build("chunk", key, build)


def refuse_leak(rows: pa.Table, parts: Artifact) -> None:
    """Holds, without trusting the split, that rows to train on ask no question of the validation rows."""
    validation, _ = scan_questions(parts.path("validation.parquet"))
    leaked = np.isin(question_keys(rows["question"]), validation)
    if leaked.any():
        ids = rows["row_id"].filter(pa.array(leaked)).slice(0, 5).to_pylist()
        raise StoreError(f"{leaked.sum()} of {len(rows)} rows to train on ask a validation row's question; "
                         f"row_id {', '.join(map(str, ids))}", where=str(parts.path("pool.parquet")),
                         remedy="remove the folder of this file: the same command splits the rows again")


def stage_key(stage: str, **decides) -> str:
    """Key of an artifact: digest of the stage, its version, and all that decides its content."""
    return digest_value({"stage": stage, "version": VERSIONS[stage], **decides})
