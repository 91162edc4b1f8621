"""How well a verifier judges: its figures with their intervals, what it says in words, how its P(True) is spread.

Takes a table of verdicts and the labels, returns a part of a run record. Leaves out the fit of temperature and threshold
(``mathtune.calibration``) and the division of the rows (``mathtune.slices``).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from mathtune.calibration import brier_and_error, calibrate, margins_of
from mathtune.figures import Interval, ScoreHistogram, VerifierMetrics, WordsMetrics
from mathtune.metrics import bootstrap, crosstab, interval, percentile_interval, share
from mathtune.slices import Division, slice_figures

HISTOGRAM_BINS = 20


def verifier_metrics(verdicts: pa.Table, labels: np.ndarray, questions: np.ndarray | None = None,
                     slices: Sequence[Division] = ()) -> VerifierMetrics:
    """How well a verifier judged.

    All intervals count rows of one question as what they are: not independent. Shares, and F1 through one, have Wilson's; ROC
    AUC, Brier score and calibration error one of 1,000 bootstrap resamples of whole questions.

    Args:
        verdicts: rows of ``schemas.VERDICTS``.
        labels: bool, (rows,): is the proposed answer right? In the order of ``verdicts``.
        questions: uint64, (rows,): keys of the rows' questions (``questions.question_keys``); None: no two rows share one.
        slices: ways to divide the rows.

    Raises:
        ValueError: the lengths differ, or a word is none of the schema's.
    """
    labels = np.asarray(labels, dtype=bool)
    predictions = verdicts["prediction"].to_numpy().astype(bool)
    p_true = verdicts["p_true"].to_numpy().astype(float)
    ((tn, fp), (fn, tp)) = crosstab(labels, predictions).tolist()
    rows = len(labels)
    roc_auc = _roc_auc(labels, p_true, questions)
    brier, error = brier_and_error(p_true, labels, questions)
    return VerifierMetrics(
        rows=rows,
        accuracy=share(predictions == labels, questions),
        majority=max(tp + fn, tn + fp) / rows if rows else math.nan,
        precision=share_of(labels, predictions, questions),
        recall=share_of(predictions, labels, questions),
        f1=_f1(labels, predictions, questions), roc_auc=roc_auc, brier=brier, calibration_error=error,
        true_share=share(predictions, questions),
        confusion={"true": {"true": tp, "false": fn}, "false": {"true": fp, "false": tn}},
        words=_words_metrics(verdicts, labels),
        histogram=_histogram(p_true, labels),
        calibration=calibrate(margins_of(verdicts), labels, np.arange(rows) if questions is None else questions),
        slices=slice_figures(slices, predictions == labels, labels, questions),
    )


def share_of(flags: np.ndarray, among: np.ndarray, questions: np.ndarray | None) -> Interval:
    """The share of rows with a flag (bool) among some of them (bool)."""
    return share(flags[among], None if questions is None else questions[among])


def _f1(labels: np.ndarray, predictions: np.ndarray, questions: np.ndarray | None) -> Interval:
    """F1 through the share of hits among all rows that are or are judged True, of which it is a rising function:
    F1 = 2 s / (1 + s), so that the ends of the share's interval are those of its own."""
    hits = share_of(labels & predictions, labels | predictions, questions)
    value, low, high = (2 * end / (1 + end) for end in (hits.value, hits.low, hits.high))
    return Interval(value=value, low=low, high=high, n=len(labels))


def area_under_roc(labels: np.ndarray, p_true: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """ROC AUC of weighted rows, for ``metrics.bootstrap``; the rows must be sorted by ``p_true``.

    The area is the share of pairs of a True and a False row that ``p_true`` puts in order, ties counting half (Mann and
    Whitney 1947; Hanley and McNeil 1982).
    """
    starts = np.flatnonzero(np.diff(p_true, prepend=-np.inf))

    def area(weights: np.ndarray) -> np.ndarray:
        true = weights * labels
        false = weights - true
        if len(starts) < len(p_true):
            true, false = (np.add.reduceat(part, starts, axis=1) for part in (true, false))
        below = np.cumsum(false, axis=1)
        ordered = np.einsum("ij,ij->i", true, below - false / 2)
        return _ratio(ordered, true.sum(1) * false.sum(1))[:, None]

    return area


def _roc_auc(labels: np.ndarray, p_true: np.ndarray, questions: np.ndarray | None) -> Interval:
    """Where no resample changes it (all pairs in order, or none), it is as sure as so many rows of the rarer label make a
    share."""
    order = np.argsort(p_true, kind="stable")
    groups = None if questions is None else questions[order]
    values, drawn = bootstrap(area_under_roc(labels[order], p_true[order]), len(labels), groups)
    found = percentile_interval(float(values[0]), drawn[:, 0], len(labels))
    if found.value not in (0.0, 1.0):
        return found
    rarer = labels == (2 * labels.sum() <= len(labels))
    bound = share_of(np.full(len(labels), found.value == 1.0), rarer, questions)
    return found.model_copy(update={"low": bound.low, "high": bound.high})


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Quotients, NaN where the divisor is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _histogram(p_true: np.ndarray, labels: np.ndarray) -> ScoreHistogram:
    edges = np.arange(HISTOGRAM_BINS + 1) / HISTOGRAM_BINS
    true, false = (np.histogram(p_true[labels == label], edges)[0].tolist() for label in (True, False))
    return ScoreHistogram(edges=edges.tolist(), true=true, false=false)


def _words_metrics(verdicts: pa.Table, labels: np.ndarray) -> WordsMetrics | None:
    """By the words that were generated, where they were."""
    generated = verdicts["said"].is_valid().to_numpy()
    if not generated.any():
        return None
    said = verdicts["said"].filter(generated).to_numpy()
    labels = labels[generated]
    predictions = verdicts["prediction"].to_numpy().astype(bool)[generated]
    classes = ("true", "false", "malformed")
    if unknown := set(said) - set(classes):
        raise ValueError(f"said must be one of {classes} or null, not {sorted(unknown)[0]!r}")

    formed = said != "malformed"
    return WordsMetrics(
        rows=len(said),
        confusion={
            name: {word: int(np.sum((labels == truth) & (said == word))) for word in classes}
            for name, truth in (("true", True), ("false", False))
        },
        malformed=interval(int(np.sum(~formed)), len(said)),
        disagree=interval(int(np.sum((said == "true")[formed] != predictions[formed])), int(formed.sum())),
    )
