"""How well a solver solves: by one greedy completion a problem, and by several that were drawn by chance.

Takes tables of solutions and samples (``mathtune.schemas``). Leaves out grading (``mathtune.grading``) and slices.
"""

from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import comb
from statsmodels.stats.proportion import proportion_confint

from mathtune.figures import Interval, Outcome, SampleMetrics, SolverMetrics
from mathtune.metrics import interval


def solver_metrics(solutions: pa.Table, samples: pa.Table | None = None, temperature: float = 1.0) -> SolverMetrics:
    """How well a solver solved.

    Args:
        solutions: rows of ``schemas.SOLUTIONS``.
        samples: rows of ``schemas.SAMPLES``, as many for each problem; None: none were drawn.
        temperature: they were drawn at.
    """
    rows = len(solutions)
    right, strict, flexible = (int(pc.sum(solutions[name]).as_py() or 0) for name in ("correct", "strict", "flexible"))
    outcomes = solutions["outcome"].to_pylist()
    return SolverMetrics(rows=rows, accuracy=interval(right, rows), strict=interval(strict, rows),
                         flexible=interval(flexible, rows),
                         outcomes={name: outcomes.count(name) for name in get_args(Outcome)},
                         samples=sample_metrics(samples, temperature) if samples else None)


def sample_metrics(samples: pa.Table, temperature: float) -> SampleMetrics:
    """pass@k and majority@k for k = 1, 2, 4, ... and all samples of a problem.

    Args:
        samples: rows of ``schemas.SAMPLES``, the same number for each problem, one problem's together; not empty.
        temperature: they were drawn at.
    """
    rows = len(samples["row_id"].unique())
    correct = samples["correct"].to_numpy(zero_copy_only=False).reshape(rows, -1)
    classes = samples["same_as"].to_numpy(zero_copy_only=False).astype(float).reshape(rows, -1)  # NaN: no answer
    drawn = correct.shape[1]
    majorities = np.array([majority_at(*problem) for problem in zip(classes, correct, strict=True)])
    sizes = [k for k in (2**i for i in range(drawn.bit_length())) if k < drawn] + [drawn]
    return SampleMetrics(
        rows=rows, samples=drawn, temperature=temperature,
        pass_at={k: mean_share(pass_at(correct.sum(axis=1), drawn, k), drawn) for k in sizes},
        majority_at={k: mean_share(majorities[:, k], drawn) for k in sizes})


def pass_at(right: np.ndarray, drawn: int, k: int) -> np.ndarray:
    """Chance that at least one of ``k`` of a problem's completions is right, where ``right`` of ``drawn`` are (rows,).

    Unbiased: one minus the share of the subsets of ``k`` that hold wrong ones only (Chen et al. 2021, "Evaluating Large
    Language Models Trained on Code", section 2.1).
    """
    return 1 - comb(drawn - right, k) / comb(drawn, k)


def majority_at(classes: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Chance that the most frequent answer of k of a problem's n completions is right, for k = 0 to n; (n + 1,).

    Exact, over all subsets of k; a tie is drawn among those who share it, and no answer never wins, however frequent
    (self-consistency; Wang et al. 2022). For a right answer that occurs m times in the subset, the ways are counted in which no
    other occurs more often, by how many completions they take and how many occur m times, too. Up to 1,000 completions, where
    float64 ends.

    Args:
        classes: of each completion, equal where answers mean the same; NaN: no answer (n,).
        correct: whether it is right (n,); of a class, what its first one is.
    """
    n = len(classes)
    answered = ~np.isnan(classes)
    _, first, counts = np.unique(classes[answered], return_index=True, return_counts=True)
    won = np.zeros(n + 1)
    for own in np.flatnonzero(correct[answered][first]):
        for times in range(1, counts[own] + 1):
            ways = _ways(np.delete(counts, own), n - answered.sum(), n, times)
            shared = ways @ (1 / np.arange(1, ways.shape[1] + 1))
            won[times:] += comb(counts[own], times) * shared[:n + 1 - times]
    return won / comb(n, np.arange(n + 1))


def _ways(counts: np.ndarray, free: int, n: int, most: int) -> np.ndarray:
    """Number of ways to take completions of the other answers, none more than ``most`` times, and any of the ``free`` without
    an answer: by how many are taken and how many answers are taken ``most`` times (n + 1, answers + 1)."""
    ways = np.zeros((n + 1, len(counts) + 1))
    ways[:, 0] = comb(free, np.arange(n + 1))
    for count in counts:
        before, ways = ways, np.zeros_like(ways)
        for taken in range(min(count, most) + 1):
            tied = int(taken == most)
            ways[taken:, tied:] += comb(count, taken) * before[:n + 1 - taken, :ways.shape[1] - tied]
    return ways


def mean_share(shares: np.ndarray, drawn: int) -> Interval:
    """Mean of the problems' shares with its 95% interval: Wilson's with the effective number of independent trials, the one
    whose binomial variance is that of the mean over problems (Korn, Graubard 1998; with Wilson's Dean, Pagano 2015).

    For shares of 0 and 1 alone it is Wilson's interval of that many problems. Completions of one problem are no independent
    trials: the interval is that of other problems, not of other completions.

    Args:
        shares: of each problem, 0 to 1 (rows,).
        drawn: completions that each rests on, for the most trials there can be.
    """
    rows, value, variance = len(shares), float(shares.mean()), float(shares.var())
    binomial = value * (1 - value)
    trials = rows * min(binomial / variance, drawn) if variance else rows * (drawn if binomial else 1)
    low, high = proportion_confint(value * trials, trials, alpha=0.05, method="wilson")
    return Interval(value=value, low=float(low), high=float(high), n=rows)
