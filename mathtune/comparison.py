"""Two scored systems on the same rows: read from the folders of their runs, matched row by row, compared.

A run leaves ``validation.parquet`` (the scored rows, once) and ``scores/base.parquet``, ``scores/link-1.parquet`` … (a few
bytes a row, no text of the questions): ``mathtune.stages.compare`` writes them. Rows are the same where their content is,
wherever they stand, so that runs of other chains, models and machines can be compared. Leaves out how it looks.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import xxhash

from mathtune.errors import ChainError, DataError
from mathtune.figures import Comparison, Interval, Part
from mathtune.metrics import compare, share

ROWS = "validation.parquet"
SCORES = "scores"
SHORT = 300  # characters of a question that an example shows
FACTS = b"mathtune"  # under which a score file's metadata says what it is of
_REFERENCE = re.compile(r"(?P<run>.+?)(?::(?P<link>base|\d+))?")


@dataclass(frozen=True)
class Scored:
    """One system's verdicts or solutions on some rows.

    Attributes:
        name: for people: ``demo:2``, ``demo:base``.
        title: of the link: ``sft[0:1200)``, ``grpo``; ``base``.
        task: of the recipe.
        scores: by row: ``key`` (of its content), ``question`` (a key of it), ``correct`` (bool); a verifier's ``prediction``
            and ``p_true``, a solver's ``given`` and ``outcome``.
        rows: ``key``, ``row_id``, ``question``, ``answer``, for a verifier ``is_correct``: for examples.
    """

    name: str
    title: str
    task: Literal["verifier", "solver"]
    scores: pd.DataFrame
    rows: pd.DataFrame


class Side(Part):
    """One of two systems that are compared.

    Attributes:
        name, title: as of ``Scored``.
        accuracy: on the common rows.
        left_out: rows that only this system was scored on.
    """

    name: str
    title: str
    accuracy: Interval
    left_out: int


class ChangedRow(Part):
    """A row that one system has right and the other has not.

    Attributes:
        row_id: in the first system's run.
        question: its beginning.
        answer: proposed (verifier) or right (solver).
        label: verifier: is the answer right?
        first, second: what the two said of it.
    """

    row_id: int
    question: str
    answer: str
    label: bool | None = None
    first: str
    second: str


class RowsCompared(Part):
    """Two systems on the rows that both were scored on.

    Attributes:
        first, second: the systems.
        versus: the second against the first.
        gained, lost: examples of rows that only the second, only the first has right.
    """

    first: Side
    second: Side
    versus: Comparison
    gained: list[ChangedRow]
    lost: list[ChangedRow]


def content_keys(rows: Iterable[tuple]) -> list[str]:
    """A key of each row's content: 32 hex characters, XXH3 of 128 bits over its values as JSON."""
    return [xxhash.xxh3_128_hexdigest(json.dumps(row, ensure_ascii=False).encode()) for row in rows]


def read_scored(reference: str, runs: Path) -> Scored:
    """What ``RUN``, ``RUN:2``, ``RUN:base`` or a path to a run's folder (also with ``:2``) names.

    Args:
        reference: without a link it is the last one that was evaluated, or the base where none was.
        runs: the folder of the runs, for names.

    Raises:
        ChainError: there is no such run, it was not evaluated, or it has no such link.
    """
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise ChainError("it names no run", where=f"{reference!r}", remedy="RUN, RUN:2, RUN:base or a run's folder")
    folder = Path(parts["run"]) if "/" in parts["run"] else runs / parts["run"]
    files = {path.stem.removeprefix("link-"): path for path in folder.glob(f"{SCORES}/*.parquet")}
    if not files:
        raise _not_evaluated(folder)
    link = parts["link"] or max(files, key=lambda name: -1 if name == "base" else int(name))
    if link not in files:
        there = ", ".join(sorted(files, key=lambda name: (name != "base", len(name), name)))
        raise ChainError(f"{'the base' if link == 'base' else f'link {link}'} was not evaluated there", where=str(folder),
                         remedy=f"there are: {there}")
    facts = json.loads(pq.read_schema(files[link]).metadata[FACTS])
    return Scored(f"{parts['run'].rstrip('/')}:{link}", facts["title"], facts["task"], pq.read_table(files[link]).to_pandas(),
                  pq.read_table(folder / ROWS).to_pandas())


def compare_scores(first: Scored, second: Scored, examples: int = 3) -> RowsCompared:
    """Compares two systems on the rows that both were scored on.

    Args:
        first, second: differences are the second's minus the first's.
        examples: rows gained, and rows lost, that are shown; a verifier's with the largest change of P(True) first.

    Raises:
        DataError: no row is common, or one verifies and the other solves.
    """
    if first.task != second.task:
        raise DataError(f"one is a {first.task}, the other a {second.task}", where=f"{first.name}, {second.name}",
                        remedy="compare runs of one task")
    pairs = numbered(first.scores).merge(numbered(second.scores), on=["key", "copy"], suffixes=("_first", "_second"))
    if pairs.empty:
        raise DataError(f"no row is common: {len(first.scores):,} rows there, {len(second.scores):,} here, all different",
                        where=f"{first.name}, {second.name}", remedy="evaluate both on the same data: the same source and "
                        "validation section (rows, group_by, seed) in both recipes")
    right = [pairs[f"correct_{side}"].to_numpy(bool) for side in ("first", "second")]
    changed = pairs.sort_values("row_id_first", kind="stable")
    if first.task == "verifier":
        changed = changed.assign(change=(pairs["p_true_second"] - pairs["p_true_first"]).abs()).sort_values(
            "change", ascending=False, kind="stable")
    gained = changed[~changed["correct_first"] & changed["correct_second"]]
    lost = changed[changed["correct_first"] & ~changed["correct_second"]]
    questions = pairs["question_first"].to_numpy()
    sides = [Side(name=one.name, title=one.title, accuracy=share(correct, questions),
                  left_out=len(one.scores) - len(pairs))
             for one, correct in zip((first, second), right, strict=True)]
    return RowsCompared(first=sides[0], second=sides[1], versus=compare(*right, questions),
                        gained=_examples(gained.head(examples), first), lost=_examples(lost.head(examples), first))


def correct_on_common(systems: list[Scored]) -> tuple[np.ndarray, np.ndarray]:
    """Which of the rows that all of them were scored on each has right: bool (systems, rows); and keys of the questions."""
    tables = [numbered(one.scores).set_index(["key", "copy"]) for one in systems]
    common = pd.concat([tables[0]["question"], *(table["correct"] for table in tables)], axis=1, join="inner")
    return common.iloc[:, 1:].to_numpy(bool).T, common["question"].to_numpy()


def numbered(scores: pd.DataFrame) -> pd.DataFrame:
    """With ``copy``: rows of equal content are told apart by their order."""
    return scores.assign(copy=scores.groupby("key").cumcount())


def _examples(pairs: pd.DataFrame, system: Scored) -> list[ChangedRow]:
    rows = system.rows.drop_duplicates("key").set_index("key")
    shown = []
    for pair in pairs.to_dict("records"):
        row = rows.loc[pair["key"]]
        shown.append(ChangedRow(
            row_id=pair["row_id_first"], question=row["question"][:SHORT], answer=row["answer"],
            label=bool(row["is_correct"]) if system.task == "verifier" else None,
            first=said(pair, "first"), second=said(pair, "second")))
    return shown


def said(pair: dict[str, Any], side: str) -> str:
    """What one of two systems said of a row, in words."""
    if f"p_true_{side}" in pair:
        return f"{bool(pair[f'prediction_{side}'])} (P(True) {pair[f'p_true_{side}']:.2f})"
    given = pair[f"given_{side}"]
    return " ".join(given.split()) if isinstance(given, str) else pair[f"outcome_{side}"]


def _not_evaluated(folder: Path) -> ChainError:
    if folder.is_dir():
        return ChainError("the run has no scores to compare", where=str(folder),
                          remedy="mathtune evaluate RECIPE writes them; what was scored already is served")
    others = sorted(path.parent.name for path in folder.parent.glob(f"*/{SCORES}") if any(path.iterdir()))
    return ChainError("there is no such run", where=str(folder),
                      remedy=f"there are: {', '.join(others)}" if others else "--runs names the folder of the runs")
