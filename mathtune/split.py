"""Draws rows by whole questions: the fixed validation rows, and the training pool in its fixed order.

Leaves out balancing (before it) and ranges (after it). Everything follows from the rows and the seed.
"""

from pathlib import Path
from typing import Any

import numpy as np

from mathtune.errors import DataError
from mathtune.questions import scan_questions, scramble
from mathtune.recipe import Validation
from mathtune.schemas import rows_schema
from mathtune.tables import TableWriter, reordered


def split_rows(rows: Path, settings: Validation, task: str, folder: Path) -> dict[str, Any]:
    """Splits rows into ``validation.parquet`` and ``pool.parquet``, both in a seeded random order.

    Exactly ``settings.rows`` rows are drawn for validation (see ``draw_rows``). With ``group_by: question`` no
    question of theirs is left in the pool: the drawn questions' surplus rows are set aside.

    Args:
        rows: Parquet file of ``rows_schema(task)``.
        settings: how many rows, grouped by what, which seed.
        task: ``"verifier"`` (stratified by label) or ``"solver"``.
        folder: where the two files are written.

    Returns:
        facts: ``validation``, ``pool`` and ``set_aside`` (rows), ``questions`` (of the validation rows) and, for a
        verifier, ``classes``: rows of each label in validation and pool.

    Raises:
        DataError: too few rows.
    """
    keys, labels = scan_questions(rows)
    groups = keys if settings.group_by == "question" else np.arange(len(keys), dtype=np.uint64)
    drawn, set_aside = draw_rows(groups, labels, settings.rows, settings.seed, where=str(rows),
                                 remedy=f"ask for fewer, e.g. validation.rows={max(1, len(keys) // 10)}")
    order = np.argsort(scramble(np.arange(len(keys)), settings.seed))
    validation, pool = order[drawn[order]], order[~(drawn | set_aside)[order]]
    schema = rows_schema(task)
    with TableWriter(folder / "validation.parquet", schema) as first, TableWriter(folder / "pool.parquet",
                                                                                  schema) as second:
        written = 0
        for table in reordered(rows, np.concatenate([validation, pool]), folder):
            left = max(0, len(validation) - written)
            first.write(table.slice(0, left))
            second.write(table.slice(left))
            written += table.num_rows
    facts = {"validation": len(validation), "pool": len(pool), "set_aside": int(set_aside.sum()),
             "questions": len(np.unique(keys[drawn]))}
    if labels is not None:
        facts["classes"] = {"validation": count_labels(labels[validation]), "pool": count_labels(labels[pool])}
    return facts


def draw_rows(groups: np.ndarray, labels: np.ndarray | None, rows: int, seed: int, *, where: str,
              remedy: str) -> tuple[np.ndarray, np.ndarray]:
    """Draws exactly ``rows`` rows by whole groups, stratified by label.

    Groups come in a seeded order. A group is drawn if one of its labels still has room in its quota; of a drawn group
    the rows for which there is room are kept and its surplus rows are set aside. That is the same as taking, of each
    label, the first rows in that order until its quota is full.

    Args:
        groups: uint64 group of each of n rows.
        labels: bool label of each row, or None: one stratum.
        rows: how many to draw. Quotas are proportional to the labels' frequencies and sum to it (largest remainder).
        seed: decides the order, together with the groups themselves; the order of the rows does not matter to it.
        where: the file, for an error.
        remedy: what to do about too few rows, for an error.

    Returns:
        two bool masks (n): the drawn rows, and the rows set aside.

    Raises:
        DataError: fewer than ``rows`` rows, or none would be left.
    """
    if len(groups) < rows:
        raise DataError(f"{rows} rows asked for, {len(groups)} are there", where=where, remedy=remedy)
    order = np.argsort(scramble(groups, seed), kind="stable")
    strata = np.zeros(len(groups), dtype=np.int64) if labels is None else labels.astype(np.int64)
    drawn = np.zeros(len(groups), dtype=bool)
    for stratum, quota in enumerate(quotas(np.bincount(strata), rows)):
        members = order[strata[order] == stratum]
        drawn[members[:quota]] = True
    set_aside = np.isin(groups, groups[drawn]) & ~drawn
    if (drawn | set_aside).all():
        raise DataError(f"drawing {rows} of {len(groups)} rows by whole questions leaves none", where=where,
                        remedy=remedy)
    return drawn, set_aside


def quotas(counts: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in proportion to ``counts`` that sum to ``total`` (largest remainder, Hamilton's method).

    Args:
        counts: int64 sizes of the strata; ``total`` is at most their sum, so no quota exceeds its stratum.
    """
    shares, remainders = np.divmod(counts * total, counts.sum())
    most = np.argsort(-remainders, kind="stable")[:total - shares.sum()]
    shares[most] += 1
    return shares


def count_labels(labels: np.ndarray) -> dict[str, int]:
    """Rows of each label, ``{"true": n, "false": n}``."""
    true = int(np.count_nonzero(labels))
    return {"true": true, "false": len(labels) - true}
