"""Temperature and threshold: planted ones are found, ties are settled as documented, the reported half stays out of the fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from mathtune.calibration import (
    TEMPERATURES,
    calibrate,
    calibrated,
    first_half,
    fit_temperature,
    fit_threshold,
    reliability_bins,
)

scored_rows = st.lists(st.tuples(st.integers(0, 16), st.booleans()), min_size=2, max_size=40)


def drawn(rows: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Margins that are off by a temperature, and labels."""
    random = np.random.default_rng(seed)
    true_margins = random.normal(0, 2, rows)
    return temperature * true_margins, random.random(rows) < expit(true_margins)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 4.0])
def test_a_planted_temperature_is_found(temperature):
    assert fit_temperature(*drawn(20_000, temperature)) == pytest.approx(temperature, rel=0.06)


def test_temperatures_without_an_optimum_stay_within_bounds():
    margins = np.array([3.0, -3.0, 2.0, -1.0])
    low, high = TEMPERATURES
    assert fit_temperature(margins, margins > 0) == pytest.approx(low, rel=1e-3)  # no mistake: as sure as can be
    assert fit_temperature(margins, margins < 0) == pytest.approx(high, rel=1e-3)  # worse than chance: as unsure
    assert fit_temperature(np.zeros(4), margins > 0) == 1.0  # nothing is better


@pytest.mark.parametrize("temperature", [0.5, 3.0])
@pytest.mark.parametrize("bias", [-2.0, 0.0, 1.5])
def test_a_planted_threshold_is_found(temperature, bias):
    margins, labels = drawn(20_000, temperature)
    assert fit_threshold(margins + bias, labels, temperature) == pytest.approx(expit(bias / temperature), abs=0.02)


@settings(deadline=None)
@given(scored_rows)
def test_a_threshold_agrees_with_scikit_learns_logistic_regression(rows):
    margins, labels = np.array([p / 4 - 2 for p, _ in rows]), np.array([label for _, label in rows])
    found = fit_threshold(margins, labels, 2.0)
    judged = calibrated(margins, 2.0) > found
    assert 0 < found < 1 and (found == 0.5 or 0 < judged.sum() < len(rows))
    if found == 0.5 or len(set(labels)) == 1:
        return
    fitted = LogisticRegression(C=1e9, tol=1e-9, max_iter=2000).fit(margins[:, None], labels)
    slope, intercept = fitted.coef_[0, 0], fitted.intercept_[0]
    if slope < 5:  # steeper where a threshold parts the labels: then any between them is as good
        assert found == pytest.approx(expit(-intercept / slope / 2.0), abs=5e-3)


def test_a_threshold_that_tells_nothing_apart_stays_at_a_half():
    margins = np.array([3.0, 2.0, -1.0, -2.0])
    assert fit_threshold(margins, margins < 0, 1.0) == 0.5  # worse than chance
    assert fit_threshold(np.full(4, 3.0), margins > 0, 1.0) == 0.5  # all rows alike
    assert fit_threshold(margins, np.ones(4, bool), 1.0) == 0.5


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.booleans()), min_size=2, max_size=50))
def test_halves_are_of_whole_questions_do_not_depend_on_the_rows_order_and_have_one_mixture(rows):
    different = dict(rows)
    questions, labels = np.array([*different] * 2, dtype=np.uint64), np.array([*different.values()] * 2)
    half = first_half(questions, labels)
    fitted, reported = set(questions[half].tolist()), set(questions[~half].tolist())
    assert not fitted & reported and 0 <= len(reported) - len(fitted) <= 1
    assert set(questions[::-1][first_half(questions[::-1], labels[::-1])].tolist()) == fitted
    assert abs(int(labels[half].sum()) - int(labels[~half].sum())) <= 2  # a question has two rows here


def test_the_reported_half_never_influences_the_fit():
    margins, labels = drawn(400, 3.0)
    questions = np.arange(400, dtype=np.uint64) // 4
    reported = ~first_half(questions, labels)
    first = calibrate(margins, labels, questions)
    second = calibrate(np.where(reported, -margins, margins), labels, questions)
    assert (first.temperature, first.threshold) == (second.temperature, second.threshold)
    assert first.accuracy != second.accuracy and first.brier != second.brier


def test_what_is_reported_is_measured_on_the_other_half_alone():
    margins, labels = drawn(2000, 4.0)
    margins += 6.0  # says True too often
    questions = np.arange(2000, dtype=np.uint64) // 4
    found = calibrate(margins, labels, questions)
    other = ~first_half(questions, labels)
    p_true = calibrated(margins[other], found.temperature)
    judged = p_true > found.threshold
    assert (found.fitted, found.reported) == (int((~other).sum()), int(other.sum())) == (1000, 1000)
    assert found.accuracy.value == np.mean(judged == labels[other]) and found.true_share.value == judged.mean()
    assert found.plain.value == np.mean((margins[other] > 0) == labels[other])
    assert found.versus_plain.difference.value == pytest.approx(found.accuracy.value - found.plain.value)
    assert found.versus_plain.difference.low > 0 and found.brier.high < found.brier_plain.low
    assert found.error.high < found.error_plain.low
    assert found.brier.value == pytest.approx(np.mean((p_true - labels[other]) ** 2))
    assert [at for at, _ in found.curve] == [i / 50 for i in range(51)]
    assert dict(found.curve)[0.3] == np.mean((p_true > 0.3) == labels[other])
    assert sum(one.true_share.n for one in found.bins) == 1000


def test_a_half_of_one_label_fits_nothing():
    questions = np.arange(100, dtype=np.uint64)
    margins = np.linspace(-1, 1, 100)
    assert calibrate(margins, questions == 7, questions) is None  # one True row cannot be in both halves
    assert calibrate(margins[:1], np.ones(1, bool), questions[:1]) is None
    assert calibrate(margins[:0], np.ones(0, bool), questions[:0]) is None


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80))
def test_reliability_bins_agree_with_scikit_learn(rows):
    p_true, labels = np.array([p for p, _ in rows]), np.array([label for _, label in rows])
    if np.isin(p_true, np.arange(1, 10) / 10).any():  # on an edge: ours begins the upper bin, scikit-learn's ends the lower
        return
    bins = [one for one in reliability_bins(p_true, labels) if one.true_share.n]
    shares, confidences = calibration_curve(labels, p_true, n_bins=10)
    assert [one.true_share.value for one in bins] == pytest.approx(shares)
    assert [one.confidence for one in bins] == pytest.approx(confidences)
