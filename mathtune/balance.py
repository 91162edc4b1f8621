"""Equal classes: thins the larger class (or both, to ``per_class``), every question in proportion.

Leaves out oversampling: a repeated row teaches nothing new and leaks across a split by row.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mathtune.errors import DataError
from mathtune.questions import scan_questions, scramble
from mathtune.recipe import Balance
from mathtune.schemas import VERIFIER_ROWS
from mathtune.split import count_labels
from mathtune.tables import TableWriter, iterate_batches


def balance_rows(train: Path, settings: Balance, folder: Path) -> dict[str, Any]:
    """Writes ``balanced.parquet``: equally many rows of each class, in their source order.

    Args:
        train: Parquet file of ``VERIFIER_ROWS``.
        settings: at most so many rows a class, and the seed.
        folder: where the file is written.

    Returns:
        facts: ``found`` and ``kept``, rows of each class, and ``rows`` kept in all.

    Raises:
        DataError: one class is empty.
    """
    keys, labels = scan_questions(train)
    found = count_labels(labels)
    for label, count in found.items():
        if count == 0:
            raise DataError(f"no row is labelled {label}: there is nothing to balance", where=str(train),
                            remedy="check source.columns.label and source.label_values")
    keep = np.zeros(len(labels), dtype=bool)
    per_class = min(settings.per_class, *found.values())
    for label in (False, True):
        members = np.flatnonzero(labels == label)
        keep[members[thin_rows(keys[members], per_class, settings.seed)]] = True
    start = 0
    with TableWriter(folder / "balanced.parquet", VERIFIER_ROWS) as writer:
        for batch in iterate_batches(train):
            writer.write(batch.filter(pa.array(keep[start:start + batch.num_rows])))
            start += batch.num_rows
    return {"found": found, "kept": count_labels(labels[keep]), "rows": int(keep.sum())}


def thin_rows(keys: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Chooses ``count`` of n rows, stratified by question: a systematic sample of the rows sorted by question.

    A question with k rows keeps floor(k·count/n) or ceil(k·count/n) of them, so thinning favours no question and
    drops none that has at least n/count rows. (Madow & Madow 1944: a random start, then every n/count-th row.)

    Args:
        keys: uint64 question key of each of n rows.
        count: at most n.
        seed: decides the order of the questions, of the rows within one, and the start.

    Returns:
        int64 positions of the chosen rows, unordered.
    """
    rows = len(keys)
    within = scramble(np.arange(rows), seed)
    order = np.lexsort((within, scramble(keys, seed)))
    start = int(scramble(np.array([rows]), seed)[0]) % rows
    return order[(start + np.arange(count, dtype=np.int64) * rows) // count]
