"""A verifier's figures against scikit-learn and brute force, and their intervals by simulation."""

import math
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics as sk

from mathtune.calibration import brier_and_error
from mathtune.schemas import VERDICTS
from mathtune.verifier_metrics import area_under_roc, verifier_metrics

SAID = ["true", "false", "malformed", None]
# (label, margin of the logits, said): margins on a grid, so that scores tie
judged_rows = st.lists(st.tuples(st.booleans(), st.integers(-6, 6).map(lambda x: x / 2), st.sampled_from(SAID)), max_size=60)


def verdict_table(rows: list[tuple[bool, float, str | None]]) -> tuple[pa.Table, np.ndarray]:
    """Verdicts and labels of (label, margin, said)."""
    verdicts = [{"row_id": i, "logit_true": margin, "logit_false": 0.0, "p_true": float(expit(margin)),
                 "prediction": margin > 0, "said": said, "words": said} for i, (_, margin, said) in enumerate(rows)]
    return pa.Table.from_pylist(verdicts, schema=VERDICTS), np.array([label for label, _, _ in rows], dtype=bool)


def drawn_rows(rows: int, seed: int, shift: float = 1.0) -> tuple[pa.Table, np.ndarray]:
    """Verdicts of a verifier that tells right from wrong somewhat, and labels."""
    random = np.random.default_rng(seed)
    labels = random.random(rows) < 0.4
    margins = random.normal(np.where(labels, shift, -shift), 1.5)
    nothing = [None] * rows
    columns = [range(rows), margins, np.zeros(rows), expit(margins), margins > 0, nothing, nothing]
    return pa.table(columns, schema=VERDICTS), labels


@settings(max_examples=40, deadline=None)
@given(judged_rows)
def test_figures_agree_with_scikit_learn(rows):
    table, labels = verdict_table(rows)
    found = verifier_metrics(table, labels)
    assert found.rows == found.f1.n == found.brier.n == len(rows)
    if not rows:
        for figure in (found.accuracy, found.f1, found.roc_auc, found.brier, found.calibration_error):
            assert math.isnan(figure.value) and (figure.low, figure.high) == (0, 1)
        assert math.isnan(found.majority) and found.calibration is None
        return
    predictions, p_true = table["prediction"].to_numpy(), table["p_true"].to_numpy()
    undefined = {"zero_division": np.nan}
    assert found.accuracy.value == pytest.approx(sk.accuracy_score(labels, predictions))
    assert found.precision.value == pytest.approx(sk.precision_score(labels, predictions, **undefined), nan_ok=True)
    assert found.recall.value == pytest.approx(sk.recall_score(labels, predictions, **undefined), nan_ok=True)
    assert found.f1.value == pytest.approx(sk.f1_score(labels, predictions, **undefined), nan_ok=True)
    area = sk.roc_auc_score(labels, p_true) if len(set(labels)) == 2 else math.nan
    assert found.roc_auc.value == pytest.approx(area, nan_ok=True)
    assert found.brier.value == pytest.approx(np.mean((p_true - labels) ** 2), abs=1e-6)
    assert found.majority == pytest.approx(max(labels.mean(), 1 - labels.mean()))
    assert found.confusion == {truth: {said: sum((str(label).lower(), str(pred).lower()) == (truth, said) for label, pred in
                                                 zip(labels, predictions, strict=True))
                                       for said in ("true", "false")} for truth in ("true", "false")}


@settings(max_examples=40, deadline=None)
@given(judged_rows.filter(bool), st.randoms(use_true_random=False))
def test_a_resamples_area_is_that_of_the_rows_that_it_holds(rows, random):
    rows = sorted(rows, key=lambda row: row[1])
    table, labels = verdict_table(rows)
    p_true = table["p_true"].to_numpy()
    weights = np.array([random.randrange(3) for _ in rows])
    held = [np.repeat(column, weights) for column in (labels, p_true)]
    area = area_under_roc(labels, p_true)(weights[None].astype(float))[0, 0]
    two = len(set(held[0])) == 2
    assert area == pytest.approx(sk.roc_auc_score(*held) if two else math.nan, nan_ok=True)


@pytest.mark.parametrize("rows", [8, 200])
def test_a_verifier_without_a_mistake_is_not_certain(rows):
    labels = np.arange(rows) % 2 == 0
    table, labels = verdict_table([(label, 2.0 if label else -2.0, None) for label in labels])
    found = verifier_metrics(table, labels)
    for figure in (found.accuracy, found.f1, found.roc_auc):
        assert figure.value == figure.high == 1.0 and 0.5 < figure.low < 1 - 1 / rows
    worst = verifier_metrics(table, ~labels)
    assert worst.roc_auc.value == worst.roc_auc.low == 0.0 < worst.roc_auc.high


@settings(max_examples=40, deadline=None)
@given(judged_rows.filter(bool))
def test_calibration_error_and_histogram_agree_with_brute_force(rows):
    table, labels = verdict_table(rows)
    found = verifier_metrics(table, labels)
    p_true = table["p_true"].to_numpy().astype(float)
    error = 0.0
    for low in np.arange(10) / 10:
        inside = (p_true >= low) & (p_true < low + 0.1)
        if inside.any():
            error += inside.mean() * abs(p_true[inside].mean() - labels[inside].mean())
    assert found.calibration_error.value == pytest.approx(error)
    assert found.calibration_error.low <= error + 1e-12 and error <= found.calibration_error.high + 1e-12
    for name, label in (("true", True), ("false", False)):
        counts = getattr(found.histogram, name)
        assert len(counts) == len(found.histogram.edges) - 1 == 20 and sum(counts) == (labels == label).sum()
        assert counts[0] == ((labels == label) & (p_true < 0.05)).sum()


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    table, labels = drawn_rows(100_000, 0)
    rounds = 100
    predictions, p_true = table["prediction"].to_numpy().astype(bool), table["p_true"].to_numpy()
    truth = {"f1": sk.f1_score(labels, predictions), "roc_auc": sk.roc_auc_score(labels, p_true),
             "brier": np.mean((p_true - labels) ** 2)}
    held = dict.fromkeys(truth, 0)
    for start in range(0, 200 * rounds, 200):
        found = verifier_metrics(table.slice(start, 200), labels[start:start + 200])
        for name in truth:
            held[name] += getattr(found, name).low <= truth[name] <= getattr(found, name).high
    assert all(0.88 <= count / rounds <= 1 for count in held.values()), held


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [1.0, 2.0], ids=["calibrated", "overconfident"])
def test_the_calibration_errors_interval_holds_the_truth(confidence):
    random, rounds, rows = np.random.default_rng(5), 100, 300
    margins = random.normal(0, 1.5, (rounds, rows))
    stated, right = expit(confidence * margins), random.random((rounds, rows)) < expit(margins)
    many = random.normal(0, 1.5, 400_000)
    place = (expit(confidence * many) * 10).astype(int)
    truth = np.abs(np.bincount(place, expit(confidence * many) - expit(many))).sum() / len(many)
    found = [brier_and_error(p_true, labels, None)[1] for p_true, labels in zip(stated, right, strict=True)]
    assert (truth == 0) == (confidence == 1)
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.88
    assert confidence == 1 or np.mean([one.low > 0 for one in found]) > 0.9  # an error that is there is seen


def test_rows_of_one_question_widen_the_intervals():
    table, labels = drawn_rows(100, 2)
    four, questions = pa.concat_tables([table] * 4), np.tile(np.arange(100), 4)
    apart, together = verifier_metrics(four, np.tile(labels, 4)), verifier_metrics(four, np.tile(labels, 4), questions)
    once = verifier_metrics(table, labels, np.arange(100))
    for name in ("accuracy", "recall", "f1", "roc_auc", "brier"):
        wide, narrow, plain = (getattr(one, name).high - getattr(one, name).low for one in (together, apart, once))
        assert wide == pytest.approx(plain, rel=0.02) and narrow < 0.65 * wide, name


@pytest.mark.parametrize("rows", [[(True, 1.0, None)], [(False, -1.0, None)] * 3, [(True, 50.0, None), (False, -50.0, None)]])
def test_few_rows_or_one_label_are_told_as_far_as_they_go(rows):
    table, labels = verdict_table(rows)
    found = verifier_metrics(table, labels, np.zeros(len(rows), np.uint64))
    assert found.accuracy.value == 1 and found.calibration is None
    assert math.isnan(found.roc_auc.value) == (len(set(labels)) < 2)
    assert found.brier.low == 0 and found.brier.high == 1  # one question: no spread is known


@settings(max_examples=40, deadline=None)
@given(judged_rows)
def test_words_are_counted_row_by_row_and_malformed_is_its_own_class(rows):
    table, labels = verdict_table(rows)
    words = verifier_metrics(table, labels).words
    heard = [row for row in rows if row[2] is not None]
    if not heard:
        assert words is None
        return
    assert words.rows == len(heard)
    for truth, said in product((True, False), ("true", "false", "malformed")):
        assert words.confusion[str(truth).lower()][said] == sum(row[0] == truth and row[2] == said for row in heard)
    formed = [row for row in heard if row[2] != "malformed"]
    assert words.malformed.n == len(heard)
    assert words.malformed.value == pytest.approx(1 - len(formed) / len(heard))
    assert words.disagree.n == len(formed)
    if formed:
        assert words.disagree.value == pytest.approx(np.mean([str(row[1] > 0).lower() != row[2] for row in formed]))


def test_only_malformed_words_leave_the_disagreement_undefined():
    table, labels = verdict_table([(False, -1.0, "malformed")] * 4)
    words = verifier_metrics(table, labels).words
    assert words.confusion["false"] == {"true": 0, "false": 0, "malformed": 4}
    assert words.malformed.value == 1.0
    assert math.isnan(words.disagree.value)


def test_a_word_outside_the_schema_is_refused():
    table, labels = verdict_table([(True, 1.0, "True")])
    with pytest.raises(ValueError, match="'True'"):
        verifier_metrics(table, labels)


def test_labels_of_another_length_are_refused():
    table, labels = verdict_table([(True, 1.0, None)] * 3)
    with pytest.raises(ValueError):
        verifier_metrics(table, labels[:1])
