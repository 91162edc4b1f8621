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

    A figure that no resample changes has no width here, unlike a share's by Wilson.

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


def compare(correct_a: np.ndarray, correct_b: np.ndarray, questions: np.ndarray | None = None) -> Comparison:
    """Two systems on the same rows: the paired difference of their accuracies, and an exact test of it.

    The interval is the adjusted Wald interval of Bonett and Price (2012), Journal of Educational and Behavioral
    Statistics 37(4), recommended for paired shares by Fagerland, Lydersen, Laake (2014), Statistics in Medicine 33(16). Where
    questions have several rows it is that of as many independent rows as tell as much (``effective_rows``).

    Args:
        correct_a: bool, (rows,): which rows the first system has right.
        correct_b: bool, (rows,): the same of the second; positive differences are in its favour.
        questions: (rows,), of any dtype that can be sorted: equal where rows ask the same; None: no two do.

    Raises:
        ValueError: the lengths differ.
    """
    table = crosstab(np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool))
    n, gained, lost = int(table.sum()), int(table[0, 1]), int(table[1, 0])
    change = np.asarray(correct_b, dtype=int) - np.asarray(correct_a, dtype=int)
    weight = effective_rows(change, questions) / n if n else 1.0  # of a row
    share_gained, share_lost = ((weight * count + 1) / (weight * n + 2) for count in (gained, lost))
    centre = share_gained - share_lost
    margin = _Z95 * math.sqrt((share_gained + share_lost - centre**2) / (weight * n + 2))
    difference = Interval(
        value=(gained - lost) / n if n else math.nan,
        low=max(-1.0, centre - margin),
        high=min(1.0, centre + margin),
        n=n,
    )
    p = float(mcnemar(table, exact=True).pvalue) if questions is None else exchange_test(change, questions)
    return Comparison(n=n, difference=difference, gained=gained, lost=lost, p=p)


def exchange_test(change: np.ndarray, questions: np.ndarray) -> float:
    """Exact two-sided p of a difference between two systems, by exchanging them on whole questions.

    If both are as good, who gained and who lost a question is a coin's throw for all of its rows at once: p is the share of all
    such throws with a difference as large as the one that was seen (Fisher's randomisation test). Where no two rows share a
    question it is McNemar's exact test.

    Args:
        change: int (rows,): 1 gained, -1 lost, 0 neither.
        questions: as of ``compare``.
    """
    codes = np.unique(questions, return_inverse=True)[1]
    sizes = np.abs(np.bincount(codes, change).astype(int)) if len(codes) else np.zeros(0, int)
    sizes = sizes[sizes > 0]
    chances = np.ones(1)  # of each sum, from the lowest to the highest that the questions so far allow
    for size in sizes:
        grown = np.zeros(len(chances) + 2 * size)
        grown[:len(chances)] += chances / 2
        grown[2 * size:] += chances / 2
        chances = grown
    sums = np.arange(len(chances)) - sizes.sum()
    return min(1.0, float(chances[np.abs(sums) >= abs(int(change.sum()))].sum()))


def share(flags: np.ndarray, questions: np.ndarray | None = None) -> Interval:
    """The share of rows with a flag (bool), with Wilson's interval: of as many independent rows as tell as much as these do
    (``effective_rows``; Dean and Pagano 2015, Journal of Survey Statistics and Methodology 3(4)).

    Args:
        questions: as of ``compare``.
    """
    rows = len(flags)
    if questions is None or not rows:
        return interval(int(np.sum(flags)), rows)
    trials, value = effective_rows(flags, questions), float(np.mean(flags))
    low, high = proportion_confint(value * trials, trials, alpha=0.05, method="wilson")
    return Interval(value=value, low=float(low), high=float(high), n=rows)


def effective_rows(values: np.ndarray, questions: np.ndarray | None) -> float:
    """How many independent rows would tell as much of the mean: the rows over their design effect, that is the variance of the
    mean over questions by that over rows (Kish 1965; linearised for questions of different sizes). At least the number of
    questions where all values are the same, which tells nothing of the effect; never more than the rows.

    Args:
        values: (rows,).
        questions: as of ``compare``.
    """
    rows = len(values)
    if questions is None:
        return float(rows)
    codes = np.unique(questions, return_inverse=True)[1]
    groups = int(codes.max()) + 1
    spread = float(np.var(values))
    if groups == rows:
        return float(rows)
    if spread == 0 or groups == 1:
        return float(groups)
    off = np.bincount(codes, values - np.mean(values))
    effect = groups / (groups - 1) * float(off @ off) / (rows * spread)
    return rows / max(1.0, effect)


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
