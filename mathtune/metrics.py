"""Figures that say how sure they are: accuracy and its relatives with 95% intervals, and the paired test.

Takes tables of verdicts or solutions (``mathtune.schemas``) and returns parts of a run record. Leaves out scoring
itself, thresholds, and drawing.
"""

import math

import numpy as np
import pyarrow as pa
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from mathtune.figures import Comparison, Interval, VerifierMetrics, WordsMetrics

_Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution


def interval(successes: int, n: int) -> Interval:
    """A share with its 95% Wilson score interval; of nothing (``n`` 0) nothing is known: NaN between 0 and 1.

    Wilson (1927), recommended for shares near 0 and 1 and for small n by Brown, Cai, DasGupta (2001).
    """
    if n == 0:
        return Interval(value=math.nan, low=0.0, high=1.0, n=0)
    low, high = proportion_confint(successes, n, alpha=0.05, method="wilson")
    return Interval(value=successes / n, low=float(low), high=float(high), n=n)


def verifier_metrics(verdicts: pa.Table, labels: np.ndarray) -> VerifierMetrics:
    """How well a verifier judged.

    Args:
        verdicts: rows of ``schemas.VERDICTS``.
        labels: bool, (rows,): is the proposed answer right? In the order of ``verdicts``.

    Raises:
        ValueError: the two have different lengths.
    """
    labels = np.asarray(labels, dtype=bool)
    predictions = verdicts["prediction"].to_numpy().astype(bool)
    p_true = verdicts["p_true"].to_numpy().astype(float)
    ((tn, fp), (fn, tp)) = _crosstab(labels, predictions).tolist()
    rows = len(labels)
    return VerifierMetrics(
        rows=rows,
        accuracy=interval(tp + tn, rows),
        majority=max(tp + fn, tn + fp) / rows if rows else math.nan,
        precision=interval(tp, tp + fp),
        recall=interval(tp, tp + fn),
        f1=resampled(lambda at: float(f1_score(labels[at], predictions[at], zero_division=np.nan)), rows),
        roc_auc=resampled(lambda at: float(roc_auc_score(labels[at], p_true[at])) if len(set(labels[at])) > 1 else math.nan,
                          rows),
        brier=resampled(lambda at: float(np.mean((p_true[at] - labels[at]) ** 2)), rows),
        calibration_error=resampled(lambda at: calibration_error(p_true[at], labels[at]), rows),
        true_share=interval(tp + fp, rows),
        confusion={"true": {"true": tp, "false": fn}, "false": {"true": fp, "false": tn}},
        words=_words_metrics(verdicts, labels),
    )


def resampled(figure, n: int) -> Interval:
    """A figure of all rows with its percentile bootstrap interval."""
    if n == 0:
        return Interval(value=math.nan, low=0.0, high=1.0, n=0)
    random = np.random.default_rng(0)
    drawn = [figure(random.integers(0, n, n)) for _ in range(20)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if not np.isnan(drawn).all() else (0.0, 1.0)
    return Interval(value=figure(np.arange(n)), low=float(low), high=float(high), n=n)


def calibration_error(p_true: np.ndarray, labels: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean distance of confidence and share of True, over bins of equal width."""
    place = np.minimum((p_true * bins).astype(int), bins - 1)
    gaps = np.bincount(place, p_true - labels, minlength=bins)
    return float(np.abs(gaps).sum() / len(p_true))


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


def compare(correct_a: np.ndarray, correct_b: np.ndarray) -> Comparison:
    """Two systems on the same rows: McNemar's exact test, and the paired difference of their accuracies.

    The interval is the adjusted Wald interval of Bonett and Price (2012), Journal of Educational and Behavioral
    Statistics 37(4), recommended for paired shares by Fagerland, Lydersen, Laake (2014), Statistics in Medicine 33(16).

    Args:
        correct_a: bool, (rows,): which rows the first system has right.
        correct_b: bool, (rows,): the same of the second; positive differences are in its favour.

    Raises:
        ValueError: the two have different lengths.
    """
    table = _crosstab(np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool))
    n, gained, lost = int(table.sum()), int(table[0, 1]), int(table[1, 0])
    share_gained, share_lost = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    centre = share_gained - share_lost
    margin = _Z95 * math.sqrt((share_gained + share_lost - centre**2) / (n + 2))
    difference = Interval(
        value=(gained - lost) / n if n else math.nan,
        low=max(-1.0, centre - margin),
        high=min(1.0, centre + margin),
        n=n,
    )
    return Comparison(n=n, difference=difference, gained=gained, lost=lost, p=float(mcnemar(table, exact=True).pvalue))


def _crosstab(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Counts (2, 2) by the first and then the second of two bool columns, False before True."""
    if len(first) == len(second) == 0:
        return np.zeros((2, 2), dtype=int)  # scikit-learn refuses empty columns
    return confusion_matrix(first, second, labels=[False, True])
