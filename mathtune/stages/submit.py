"""Predictions on the test rows; for a verifier also ``submission.csv``, checked row by row before it is published."""

import hashlib
import io
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mathtune import __version__
from mathtune.chain import Link
from mathtune.errors import DataError, StoreError, TrainingError
from mathtune.metrics import interval
from mathtune.recipe_file import dump_recipe
from mathtune.stages import Outcome
from mathtune.stages.evaluate import range_name, score_rows
from mathtune.store import Artifact
from mathtune.workspace import Workspace


def submit(work: Workspace, base: dict[str, Any], raw: Artifact, link: Link) -> Outcome:
    """Writes ``predictions.parquet`` and, for a verifier, ``submission.csv`` with ``submission.json`` beside it.

    Returns:
        Outcome of facts: rows, digests, and the accuracy where the test rows' truth is known.
    """
    scores = score_rows(work, base, link, raw.path("test.parquet"), raw.files["test.parquet"], limit=None, words_rows=0)
    test = pq.read_table(raw.path("test.parquet"), columns=["row_id", "ID", "is_correct"])
    table = pq.read_table(scores.path("scores.parquet"))
    if not table["row_id"].equals(test["row_id"]):
        raise StoreError("the scores are not one for each test row, in order", where=str(scores.path("scores.parquet")),
                         remedy="remove the folder of this file: the same command scores the rows again")
    predictions = table.add_column(0, "ID", test["ID"]).drop_columns(["said", "words"] if "said" in table.column_names else [])
    facts = {"rows": len(test), "link": link.number, "range": str(link.range or "grpo"), "chain": work.chain.name,
             "adapter_digest": link.adapter_digest, "test_rows_digest": raw.files["test.parquet"],
             "recipe_sha256": hashlib.sha256(dump_recipe(work.recipe).encode()).hexdigest(), "mathtune": __version__}
    files = {"predictions.parquet": parquet_bytes(predictions)}
    if work.recipe.task == "verifier":
        settings = work.recipe.submission
        csv = submission_csv(test["ID"].to_numpy(), table["prediction"].to_numpy(zero_copy_only=False),
                             settings.id_column, settings.label_column)
        facts |= {"true_share": float(np.mean(table["prediction"].to_numpy(zero_copy_only=False))),
                  "sha256": hashlib.sha256(csv).hexdigest()}
        files["submission.csv"] = csv
    if right := known_accuracy(table, test):
        facts["accuracy"] = right.model_dump(mode="json")
    target = work.run.range_folder(range_name(link))
    unchanged = all(same_bytes(folder / name, data) for name, data in files.items() for folder in (target, work.run.path))
    for folder in (f"ranges/{range_name(link)}/", ""):
        for name, data in files.items():
            work.run.write(folder + name, data)
        if "submission.csv" in files:
            work.run.write_json(folder + "submission.json", facts)
    what = f"submission.csv, {facts['true_share']:.1%} True" if "true_share" in facts else "predictions.parquet"
    return Outcome(facts, unchanged and scores.cached, f"{len(test):,} rows → {what}")


def submission_csv(ids: np.ndarray, predictions: np.ndarray, id_column: str, label_column: str) -> bytes:
    """The CSV, read back and checked: every id once and in order, True and False both there, nothing else.

    Raises:
        DataError: ids are missing, repeated or out of order.
        TrainingError: every prediction is the same.
    """
    csv = pd.DataFrame({id_column: ids, label_column: predictions}).to_csv(index=False, lineterminator="\n").encode()
    back = pd.read_csv(io.BytesIO(csv))
    if list(back.columns) != [id_column, label_column] or not np.array_equal(back[id_column].to_numpy(), ids):
        raise DataError("the rows read back are not the rows written", where="submission.csv")
    if len(set(ids.tolist())) != len(ids) or (np.diff(ids) < 0).any():
        raise DataError("the ids are repeated or out of order", where="submission.csv",
                        remedy="sort the test rows by their id column")
    if back[label_column].nunique() < 2:
        raise TrainingError(f"every one of the {len(ids)} predictions is {back[label_column].iloc[0]}", where="submission.csv",
                            remedy="the verifier has not learned to tell them apart: train more chunks, see report.html")
    return csv


def known_accuracy(scores: pa.Table, test: pa.Table):
    """Accuracy on the test rows whose truth is known; None if none is."""
    if "prediction" in scores.column_names:
        known = np.flatnonzero(test["is_correct"].is_valid().to_numpy())
        right = scores["prediction"].take(known).to_numpy(zero_copy_only=False) == test["is_correct"].take(known).to_numpy(
            zero_copy_only=False)
    else:
        right = scores["correct"].to_numpy(zero_copy_only=False)
    return interval(int(right.sum()), len(right)) if len(right) else None


def parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def same_bytes(path, data: bytes) -> bool:
    """Whether a file is there and holds exactly these bytes."""
    return path.is_file() and path.read_bytes() == data
