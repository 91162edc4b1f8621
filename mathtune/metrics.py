"""How sure a figure is: shares with Wilson's interval, any other figure with a bootstrap interval, and the paired test.

Returns parts of a run record. Leaves out which figures there are of a verifier (``mathtune.verifier_metrics``) and of a
solver (``mathtune.solver_metrics``), and drawing.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from sklearn.metrics import confusion_matrix
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from mathtune.figures import Comparison, Interval

RESAMPLES = 1000
_AT_ONCE = 500_000  # weights of one part of the resamples: 4 MB, about what a core's cache holds
_Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution


def interval(successes: int, n: int) -> Interval:
    """A share with its 95% Wilson score interval; of nothing (``n`` 0) nothing is known: NaN between 0 and 1.

    Wilson (1927), recommended for shares near 0 and 1 and for small n by Brown, Cai, DasGupta (2001).
    """
    if n == 0:
        return Interval(value=math.nan, low=0.0, high=1.0, n=0)
    low, high = proportion_confint(successes, n, alpha=0.05, method="wilson")
    return Interval(value=successes / n, low=float(low), high=float(high), n=n)


def bootstrap(figures: Callable[[np.ndarray], np.ndarray], rows: int,
              groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Figures of rows, and the same figures of seeded bootstrap resamples of them.

    Whole groups are drawn: answers to one question are not independent of each other, and rows drawn one by one would
    make intervals too narrow (cluster bootstrap, Davison and Hinkley 1997, section 3.8). The resamples follow from the
    groups alone: two systems on the same rows get the same ones.

    Args:
        figures: takes float64 weights (k, rows), how often each of k resamples holds each row, and returns float64
            (k, kinds), NaN where a figure is undefined.
        rows: how many there are.
        groups: group of each row (rows,), of any dtype that can be sorted; None: each row is its own.

    Returns:
        float64 (kinds,) of the rows themselves, and (``RESAMPLES``, kinds) of the resamples; (0, kinds) of fewer than two
        groups, which tell nothing of the spread.
    """
    values = figures(np.ones((1, rows)))[0]
    codes = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    if not rows or codes.max() == 0:
        return values, np.empty((0, len(values)))
    return values, np.concatenate([figures(weights) for weights in _resamples(codes)])


def percentile_interval(value: float, drawn: np.ndarray, n: int) -> Interval:
    """A figure between 0 and 1 with its 95% percentile interval (Efron and Tibshirani 1993, chapter 13).

    A figure that no resample changes, such as F1 without any mistake, has no width here, unlike a share's by Wilson.

    Args:
        value: the figure; NaN where undefined.
        drawn: float64 (resamples,): of each. Those in which it is undefined do not count; without any, 0 to 1.
        n: rows that it rests on.
    """
    known = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not len(known):
        return Interval(value=value, low=0.0, high=1.0, n=n)
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(value=value, low=float(low), high=float(high), n=n)


def _resamples(codes: np.ndarray) -> Iterator[np.ndarray]:
    """Weights (k, rows), in parts; ``codes``: group of each row, from 0 without gaps."""
    random = np.random.default_rng(0)
    groups = int(codes.max()) + 1
    most = max(1, _AT_ONCE // len(codes))
    for start in range(0, RESAMPLES, most):
        k = min(most, RESAMPLES - start)
        drawn = random.integers(0, groups, (k, groups)) + groups * np.arange(k)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=k * groups).reshape(k, groups)
        yield counts.astype(float)[:, codes]


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
    table = crosstab(np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool))
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


def differ(first: Interval, second: Interval) -> bool:
    """Whether two shares of independent rows differ by more than their Wilson intervals allow.

    By the interval of their difference, which both intervals' ends give (Newcombe 1998, Statistics in Medicine 17,
    method 10). Shares of nothing do not differ.
    """
    lower, higher = sorted((first, second), key=lambda share: share.value)
    if not lower.n or not higher.n:
        return False
    return higher.value - lower.value > math.hypot(lower.high - lower.value, higher.value - higher.low)


def crosstab(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Counts (2, 2) by the first and then the second of two bool columns, False before True."""
    if len(first) == len(second) == 0:
        return np.zeros((2, 2), dtype=int)  # scikit-learn refuses empty columns
    return confusion_matrix(first, second, labels=[False, True])
