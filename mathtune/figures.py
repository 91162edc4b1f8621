"""Figures with their intervals, as parts of a run's record: what ``mathtune.metrics`` and its neighbours compute.

``model_dump_json`` writes strict JSON (a figure that is not defined becomes null) and ``model_validate_json`` reads it back.
Leaves out how figures are computed and how they look (``mathtune.report``).
"""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

# NaN is no JSON: a figure that is not defined (a share of nothing) is null in the file and NaN in Python.
Figure = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
]
SURE = 0.05  # p of a comparison below which chance alone would hardly make the difference
Class = Literal["true", "false"]
Outcome = Literal["right", "wrong", "unparsed", "cut off", "timed out"]


class Part(BaseModel):
    """A frozen part of the record that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Part):
    """A figure with its 95% interval.

    Attributes:
        value: the estimate; NaN where ``n`` is 0.
        low, high: ends of the 95% interval.
        n: rows that it rests on.
    """

    value: Figure
    low: Figure
    high: Figure
    n: int


class Comparison(Part):
    """Two systems on the same rows (see ``mathtune.metrics.compare``).

    Attributes:
        n: rows.
        difference: accuracy of the second minus that of the first, with its paired interval.
        gained: rows that only the second has right.
        lost: rows that only the first has right.
        p: exact two-sided p of McNemar's test; where a question has several rows, by whole questions
            (``mathtune.metrics.exchange_test``).
    """

    n: int
    difference: Interval
    gained: int
    lost: int
    p: float


class Slice(Part):
    """Accuracy on some of the rows.

    Attributes:
        by: what the rows are divided by ("answer type", "solution length", "part of the source", "generator").
        value: which of them these are.
        accuracy: on these rows.
        true_share: verifier: share of these rows whose label is True; NaN for a solver.
    """

    by: str
    value: str
    accuracy: Interval
    true_share: Figure = math.nan


class WordsMetrics(Part):
    """What a verifier really says when it generates, on the rows where it was let to.

    Attributes:
        rows: rows with generated words.
        confusion: counts by label, then by what was said; words that are neither label are a class of their own.
        malformed: share of rows whose words are neither label.
        disagree: share of the well-formed rows whose word differs from the prediction by logits.
    """

    rows: int
    confusion: dict[Class, dict[Literal["true", "false", "malformed"], int]]
    malformed: Interval
    disagree: Interval


class ScoreHistogram(Part):
    """Rows by P(True), before any calibration.

    Attributes:
        edges: of the bins, ascending from 0 to 1; one more than bins.
        true, false: rows of each label in each bin.
    """

    edges: list[float]
    true: list[int]
    false: list[int]


class Bin(Part):
    """Rows of like P(True), for a reliability diagram.

    Attributes:
        low, high: of the bin.
        confidence: mean P(True) of its rows; NaN where it is empty.
        true_share: share of its rows whose label is True.
    """

    low: float
    high: float
    confidence: Figure
    true_share: Interval


class Calibration(Part):
    """Temperature and threshold, fitted on the rows of one half of the questions and reported on the other's.

    Attributes:
        temperature: by which the difference of the two logits is divided; P(True) is its sigmoid.
        threshold: on that P(True): a row above it is judged True.
        fitted, reported: rows of the two halves.
        plain: accuracy on the reported rows without either (P(True) > 0.5).
        accuracy: with both.
        versus_plain: the two on the same reported rows.
        true_share: of the reported rows, how many are judged True with both.
        brier_plain, brier: Brier score on the reported rows, without and with the temperature.
        error_plain, error: expected calibration error, likewise.
        bins: of the reported rows by calibrated P(True).
        curve: (threshold, accuracy on the reported rows) at evenly spaced thresholds.
    """

    temperature: float
    threshold: float
    fitted: int
    reported: int
    plain: Interval
    accuracy: Interval
    versus_plain: Comparison
    true_share: Interval
    brier_plain: Interval
    brier: Interval
    error_plain: Interval
    error: Interval
    bins: list[Bin]
    curve: list[tuple[float, Figure]]


class VerifierMetrics(Part):
    """How well a verifier judges, by the logits of the two labels; True is the positive class.

    Attributes:
        rows: rows judged.
        accuracy: share of rows whose prediction equals the label.
        majority: accuracy of always saying the more frequent label.
        precision: of the answers judged right, the share that is right.
        recall: of the right answers, the share that is judged right.
        f1: harmonic mean of precision and recall; NaN where no row is or is judged True.
        roc_auc: area under the ROC curve; NaN where only one label occurs.
        brier: mean squared distance of P(True) from the label.
        calibration_error: expected calibration error of P(True), ten bins of equal width.
        true_share: share of rows judged True.
        confusion: counts by label, then by prediction.
        words: the same by generated words; None where none were generated.
        histogram: rows by P(True) and label.
        calibration: None where a half of the questions has only one label.
        slices: accuracy on parts of the rows.
    """

    rows: int
    accuracy: Interval
    majority: Figure
    precision: Interval
    recall: Interval
    f1: Interval
    roc_auc: Interval
    brier: Interval
    calibration_error: Interval
    true_share: Interval
    confusion: dict[Class, dict[Class, int]]
    words: WordsMetrics | None = None
    histogram: ScoreHistogram | None = None
    calibration: Calibration | None = None
    slices: list[Slice] = []


class SampleMetrics(Part):
    """How well a solver solves when it is asked several times, by chance.

    Attributes:
        rows: problems that were asked so.
        samples: completions of each.
        temperature: they were drawn at.
        pass_at: by k: share of problems that at least one of k completions solves (unbiased; Chen et al. 2021).
        majority_at: by k: share of problems that the most frequent answer of k completions solves, a tie by its share.
    """

    rows: int
    samples: int
    temperature: float
    pass_at: dict[int, Interval]
    majority_at: dict[int, Interval]


class SolverMetrics(Part):
    """How well a solver solves, by one greedy completion a problem.

    Attributes:
        rows: problems.
        accuracy: share with the right final answer, in whatever form it was found.
        strict: share that is right by lm-evaluation-harness's strict mark for GSM8K (the number after ``####``).
        flexible: share that is right by its flexible mark (the last number).
        outcomes: problems by how they ended: right; else timed out (the grader did), cut off by the length limit,
            unparsed (no answer was found), or wrong.
        samples: where several completions were drawn, too.
        slices: accuracy on parts of the rows.
    """

    rows: int
    accuracy: Interval
    strict: Interval
    flexible: Interval
    outcomes: dict[Outcome, int]
    samples: SampleMetrics | None = None
    slices: list[Slice] = []


class Forgetting(Part):
    """Accuracy on fixed rows of every trained chunk, after each chunk.

    Attributes:
        rows: probes of a chunk, drawn from the rows that it was trained on.
        chunks: titles of the probed chunks, in the order of the chain.
        links: numbers of the links that were asked.
        accuracy: by link, then by chunk: those that it and its parents were trained on.
    """

    rows: int
    chunks: list[str]
    links: list[int]
    accuracy: list[list[Interval]]


class LeakExample(Part):
    """Two rows of different parts that ask the same, or nearly.

    Attributes:
        kind: exact (the same text), normalised (but for case, spaces and the format of numbers), near.
        first_row, second_row: their row_ids.
        first, second: the questions.
        similarity: Jaccard similarity of their shingles; 1 where the kind is not near.
    """

    kind: Literal["exact", "normalised", "near"]
    first_row: int
    second_row: int
    first: str
    second: str
    similarity: float = 1.0


class LeakPair(Part):
    """Duplicates of questions between two parts of the data; each row of the second counts once, under its strongest kind.

    Attributes:
        first, second: names of the parts ("training pool", "validation", "test", "GRPO prompts").
        first_rows, second_rows: how many rows they have.
        exact, normalised, near: rows of ``second`` whose question is in ``first``.
        examples: some of each kind.
    """

    first: str
    second: str
    first_rows: int
    second_rows: int
    exact: int
    normalised: int
    near: int
    examples: list[LeakExample] = []


class Lengths(Part):
    """Tokens of the examples that a link was trained on.

    Attributes:
        edges: of the bins, in tokens, ascending; one more than bins.
        counts: examples in each bin.
        limit: ``model.max_length``.
    """

    edges: list[int]
    counts: list[int]
    limit: int
