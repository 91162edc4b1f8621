"""A verifier's P(True) put right: temperature and threshold fitted on half of the questions, reported on the other half.

Also what tells how far P(True) is off: Brier score, expected calibration error, reliability bins. Knows margins (logit of
True minus logit of False) and labels only; leaves out where they come from and what the threshold is used for.
"""

import numpy as np
import pyarrow as pa
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from mathtune.figures import Bin, Calibration, Interval
from mathtune.metrics import bootstrap, compare, interval, percentile_interval, share
from mathtune.questions import scramble

BINS = 10
TEMPERATURES = (0.05, 20.0)  # a verifier without a mistake would ask for 0, one at chance for infinity
CURVE_POINTS = 51
HALVES_SEED = 20  # not a recipe's: the halves of a validation set are the same for every link of every run


def margins_of(verdicts: pa.Table) -> np.ndarray:
    """Logit of True minus logit of False (float64) of rows of ``schemas.VERDICTS``."""
    return verdicts["logit_true"].to_numpy().astype(float) - verdicts["logit_false"].to_numpy().astype(float)


def calibrated(margins: np.ndarray, temperature: float) -> np.ndarray:
    """P(True) (float64) at a temperature."""
    return expit(margins / temperature)


def calibrate(margins: np.ndarray, labels: np.ndarray, questions: np.ndarray) -> Calibration | None:
    """Fits temperature and threshold on the first half of the questions, and reports both on the other half.

    Args:
        margins: float64 (rows,), see ``margins_of``.
        labels: bool (rows,).
        questions: uint64 (rows,): keys of the rows' questions.

    Returns:
        None where a half has only one label.
    """
    fitted = first_half(questions, labels)
    if any(labels[half].all() or not labels[half].any() for half in (fitted, ~fitted)):
        return None
    temperature = fit_temperature(margins[fitted], labels[fitted])
    threshold = fit_threshold(margins[fitted], labels[fitted], temperature)

    labels, questions = labels[~fitted], questions[~fitted]
    before, after = calibrated(margins[~fitted], 1.0), calibrated(margins[~fitted], temperature)
    correct_before, correct_after = (before > 0.5) == labels, (after > threshold) == labels
    (brier_plain, error_plain), (brier, error) = (brier_and_error(p, labels, questions) for p in (before, after))
    rows = len(labels)
    return Calibration(
        temperature=temperature, threshold=threshold, fitted=int(fitted.sum()), reported=rows,
        plain=share(correct_before, questions), accuracy=share(correct_after, questions),
        versus_plain=compare(correct_before, correct_after, questions), true_share=share(after > threshold, questions),
        brier_plain=brier_plain, brier=brier, error_plain=error_plain, error=error,
        bins=reliability_bins(after, labels),
        curve=[(float(at), float(np.mean((after > at) == labels))) for at in np.arange(CURVE_POINTS) / (CURVE_POINTS - 1)])


def first_half(questions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which rows (bool) ask the first half of the different questions.

    Every second question of those with as many rows and as many True ones, in a seeded order of their keys: both halves have
    the same mixture, and are the same for every link.

    Args:
        questions: uint64 (rows,), keys.
        labels: bool (rows,).
    """
    different, codes = np.unique(questions, return_inverse=True)
    order = np.lexsort([scramble(different, HALVES_SEED), np.bincount(codes, labels, minlength=len(different)),
                        np.bincount(codes, minlength=len(different))])
    first = np.zeros(len(different), dtype=bool)
    first[order[1::2]] = True
    return first[codes]


def fit_temperature(margins: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of least negative log-likelihood within ``TEMPERATURES`` (Guo et al. 2017); 1 if none is better."""
    signed = np.where(labels, margins, -margins)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signed / np.exp(log_temperature)).mean())

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def fit_threshold(margins: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The threshold on P(True) at a temperature where True and False are as likely, by logistic regression on the margin (Platt
    1999).

    Not the one of most rows right: that follows single rows. In simulations with a known best threshold it lost up to 0.7
    points of accuracy on 150 rows and 0.25 on 1,000, this one 0.2 and 0.03. A verifier that is not better than chance, or whose
    rows would all be judged alike, keeps 0.5.

    Args:
        margins: float64 (rows,).
        labels: bool (rows,).
    """
    signs = np.where(labels, -1.0, 1.0)

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        signed = signs * (line[0] * margins + line[1])
        pull = signs * expit(signed) / len(labels)
        return float(np.logaddexp(0, signed).mean()), np.array([pull @ margins, pull.sum()])

    slopes = tuple(1 / at for at in reversed(TEMPERATURES))
    slope, intercept = minimize(loss, [1 / temperature, 0.0], jac=True, bounds=[slopes, (None, None)]).x
    threshold = float(calibrated(np.array(-intercept / slope), temperature))
    judged = calibrated(margins, temperature) > threshold
    return 0.5 if slope <= slopes[0] or judged.all() or not judged.any() else threshold


def brier_and_error(p_true: np.ndarray, labels: np.ndarray, questions: np.ndarray | None) -> tuple[Interval, Interval]:
    """Brier score and expected calibration error (ten bins of equal width), with 95% intervals over whole questions.

    The error of chance alone makes the expected calibration error too large, in a sample and once more in its resamples:
    the percentile interval of a perfectly calibrated verifier never holds the truth, 0. So the lower end is that of the
    basic bootstrap interval, which takes this bias off, and 0 where a verifier without any error would show as much in
    5% of samples. In simulations of 100 to 4,000 rows the interval held the truth in 90 to 98% of them.

    Args:
        p_true: float64 (rows,).
        labels: bool (rows,).
        questions: uint64 (rows,), or None: no two rows share one.
    """
    rows = len(labels)
    gaps = np.zeros((rows, 1 + BINS))  # squared distance, and distance by bin
    gaps[:, 0] = (p_true - labels) ** 2
    gaps[np.arange(rows), 1 + bin_of(p_true)] = p_true - labels

    def means(weights: np.ndarray) -> np.ndarray:
        return weights @ gaps / weights.sum(1, keepdims=True) if rows else np.full((1, 1 + BINS), np.nan)

    values, drawn = bootstrap(means, rows, questions)
    brier = percentile_interval(float(values[0]), drawn[:, 0], rows)
    error = percentile_interval(float(np.abs(values[1:]).sum()), np.abs(drawn[:, 1:]).sum(1), rows)
    if len(drawn):
        by_chance = np.percentile(np.abs(drawn[:, 1:] - values[1:]).sum(1), 95)
        low = 0.0 if error.value <= by_chance else max(0.0, 2 * error.value - error.high)
        error = error.model_copy(update={"low": min(low, error.value), "high": max(error.high, error.value)})
    return brier, error


def reliability_bins(p_true: np.ndarray, labels: np.ndarray) -> list[Bin]:
    """Rows by P(True), ten bins of equal width: what a reliability diagram draws."""
    place, edges = bin_of(p_true), np.arange(BINS + 1) / BINS
    rows, confidence, true = (np.bincount(place, weight, minlength=BINS) for weight in (None, p_true, labels))
    return [Bin(low=float(edges[i]), high=float(edges[i + 1]), confidence=confidence[i] / rows[i] if rows[i] else np.nan,
                true_share=interval(int(true[i]), int(rows[i]))) for i in range(BINS)]


def bin_of(p_true: np.ndarray) -> np.ndarray:
    """Bin (int64, 0 to 9) of each P(True); 1 is in the last."""
    return np.minimum((p_true * BINS).astype(int), BINS - 1)
