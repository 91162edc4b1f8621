"""Divides rows into slices, so that a figure of all rows does not hide where a model is weak.

By the kind of answer, the length of the solution, the part of the source, and who wrote the solution where that is known.
For a verifier the answer and solution are the proposed ones, for a solver the right ones. Leaves out what is measured.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mathtune.answers import NUMBER
from mathtune.figures import Slice
from mathtune.metrics import share

ANSWER_TYPES = ("integer", "decimal", "fraction", "expression", "text", "empty")
QUARTERS = ("shortest", "second", "third", "longest")
FIFTHS = ("first", "second", "third", "fourth", "last")
MOST_GENERATORS = 12

# A unit or other words without another number may follow: "14 years", "-1.8 billion"; but "2 pi" is an expression.
_NUMBER = re.compile(rf"(?P<number>{NUMBER})(?: (?!(?:pi|or|and|to)\b)[^\W\d]{{2,}}[^\d+*/=^\\]*)?", re.ASCII)
_LATEX_FRACTION = re.compile(r"[-+]? ?\\[dtc]?frac ?(?:\{ ?-?\d+ ?\}|\d) ?(?:\{ ?-?\d+ ?\}|\d)")
_DECORATION = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*(?=\{)|\\boxed|\\[,;!: ()\[\]]|[{}*_`]")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_MATHS = re.compile(r"[\d\\+*/=^<>√π|]")


@dataclass(frozen=True)
class Division:
    """One way to divide rows.

    Attributes:
        by: what they are divided by.
        values: the slices' names, in the order in which a person wants to read them.
        place: int64 (rows,): index into ``values`` of each row's slice.
    """

    by: str
    values: list[str]
    place: np.ndarray

    def value_of(self, row: int) -> str:
        return self.values[self.place[row]]


def divide(rows: pa.Table, generators: Sequence[str] | None = None) -> list[Division]:
    """Every way in which rows can be divided; one that would leave them all together is left out, but for the answer type.

    Args:
        rows: of ``schemas.rows_schema``.
        generators: who wrote each row's solution ("" unknown), or None: it is not known of any.
    """
    divisions = [by_answer_type(rows["answer"].to_pylist()), by_solution_length(rows["solution"]),
                 by_part_of_source(rows["row_id"].to_numpy())]
    if generators is not None:
        divisions.append(by_generator(generators))
    return [division for division in divisions if len(division.values) > 1 or division.by == "answer type"]


def slice_figures(divisions: Sequence[Division], correct: np.ndarray, labels: np.ndarray | None = None,
                  questions: np.ndarray | None = None) -> list[Slice]:
    """Accuracy on every slice that has a row.

    Args:
        correct: bool (rows,): which rows the model has right.
        labels: bool (rows,): a verifier's; None for a solver.
        questions: as of ``metrics.compare``.
    """
    slices = []
    for division in divisions:
        for place, value in enumerate(division.values):
            rows = division.place == place
            if rows.any():
                accuracy = share(correct[rows], None if questions is None else questions[rows])
                true = math.nan if labels is None else float(labels[rows].mean())
                slices.append(Slice(by=division.by, value=value, accuracy=accuracy, true_share=true))
    return slices


def answer_type(answer: str) -> str:
    """One of ``ANSWER_TYPES``, by how the answer is written.

    Numbers may have a sign, currency, thousands separators, a percent sign and a unit: ``$1,000`` is an integer, ``14.50
    dollars`` a decimal, ``3 1/2`` and ``\\frac{1}{2}`` fractions. What holds a word is text. Other mathematics is an
    expression: ``x = 5``, ``(3, 4)``, ``2\\pi``.
    """
    if _LATEX_FRACTION.fullmatch(answer.strip(" $.")):
        return "fraction"
    plain = _DECORATION.sub(" ", answer.replace("−", "-").replace(r"\$", "$"))
    plain = re.sub(r"\s+", " ", plain).strip().rstrip(" .")
    if len(plain) > 1 and plain[0] == plain[-1] == "$":
        plain = plain[1:-1].strip()
    if not plain:
        return "empty"
    if found := _NUMBER.fullmatch(plain):
        return "fraction" if "/" in found["number"] else "decimal" if "." in found["number"] else "integer"
    return "expression" if _MATHS.search(plain) and not _WORD.search(plain) else "text"


def by_answer_type(answers: Sequence[str]) -> Division:
    """By ``answer_type``."""
    index = {name: place for place, name in enumerate(ANSWER_TYPES)}
    return Division("answer type", list(ANSWER_TYPES), np.array([index[answer_type(answer)] for answer in answers], dtype=int))


def by_solution_length(solutions: pa.ChunkedArray) -> Division:
    """By characters, into quarters of the rows as even as equal lengths allow; without solutions all rows are together.

    Quarters and not fixed borders: what is a long solution depends on the data, and each quarter has rows enough to say
    something.
    """
    lengths = pc.utf8_length(solutions).to_numpy()
    borders = np.quantile(lengths, [0.25, 0.5, 0.75], method="lower") if len(lengths) else np.zeros(3, dtype=int)
    place = np.searchsorted(borders, lengths)
    spans = ["up to {1:,}", "{0:,} to {1:,}", "{0:,} to {1:,}", "over {2:,}"]
    lows, highs = [0, *borders + 1], [*borders, 0]
    names = [f"{quarter} quarter, {span.format(low, high, low - 1)} characters"
             for quarter, span, low, high in zip(QUARTERS, spans, lows, highs, strict=True)]
    return _occupied("solution length", names, place)


def by_part_of_source(row_ids: np.ndarray) -> Division:
    """By where they stood in the source: five equal stretches up to the last of these rows."""
    edges = np.linspace(0, row_ids.max() + 1 if len(row_ids) else 0, len(FIFTHS) + 1).astype(int)
    names = [f"{fifth} fifth, rows {low:,} to {high - 1:,}"
             for fifth, low, high in zip(FIFTHS, edges[:-1], edges[1:], strict=True)]
    return _occupied("part of the source", names, np.searchsorted(edges[1:], row_ids, side="right"))


def by_generator(generators: Sequence[str]) -> Division:
    """By who wrote the solution, the most frequent first; those beyond ``MOST_GENERATORS`` are together."""
    names, index, counts = np.unique([name or "unknown" for name in generators], return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-counts, kind="stable"))
    shown = names[np.argsort(rank)].tolist()
    if len(shown) > MOST_GENERATORS:
        shown = [*shown[:MOST_GENERATORS], f"{len(shown) - MOST_GENERATORS:,} others"]
    return Division("generator", shown, np.minimum(rank[index], MOST_GENERATORS))


def _occupied(by: str, names: list[str], place: np.ndarray) -> Division:
    """Without the slices that have no row."""
    used, place = np.unique(place, return_inverse=True)
    return Division(by, [names[i] for i in used], place)
