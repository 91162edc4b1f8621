"""Metrics against scikit-learn, statsmodels and brute force."""

import json
import math
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint

from mathtune.metrics import compare, interval, verifier_metrics
from mathtune.run_record import LinkRecord, RunRecord, TrainingCurve
from mathtune.schemas import VERDICTS
from tests import record_fixtures

SAID = ["true", "false", "malformed", None]
judged_rows = st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from(SAID)), max_size=60)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60)


def verdict_table(rows: list[tuple[bool, bool, str | None]]) -> tuple[pa.Table, np.ndarray]:
    """Verdicts and labels of (label, prediction, said)."""
    verdicts = [{"row_id": i, "logit_true": 0.0, "logit_false": 0.0, "p_true": 0.5, "prediction": prediction,
                 "said": said, "words": said} for i, (_, prediction, said) in enumerate(rows)]
    return pa.Table.from_pylist(verdicts, schema=VERDICTS), np.array([label for label, _, _ in rows], dtype=bool)


@given(judged_rows)
def test_verifier_metrics_agree_with_scikit_learn(rows):
    table, labels = verdict_table(rows)
    found = verifier_metrics(table, labels)
    assert found.rows == len(rows)
    if not rows:
        assert math.isnan(found.accuracy.value) and math.isnan(found.f1.value) and math.isnan(found.majority)
        return
    predictions = np.array([prediction for _, prediction, _ in rows])
    undefined = {"zero_division": np.nan}
    assert found.accuracy.value == pytest.approx(sk.accuracy_score(labels, predictions))
    assert found.precision.value == pytest.approx(sk.precision_score(labels, predictions, **undefined), nan_ok=True)
    assert found.recall.value == pytest.approx(sk.recall_score(labels, predictions, **undefined), nan_ok=True)
    assert found.f1.value == pytest.approx(sk.f1_score(labels, predictions, **undefined), nan_ok=True)
    assert found.majority == pytest.approx(max(labels.mean(), 1 - labels.mean()))
    assert found.confusion == {
        truth: {said: sum((str(label).lower(), str(pred).lower()) == (truth, said) for label, pred, _ in rows)
                for said in ("true", "false")} for truth in ("true", "false")}


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
        assert words.disagree.value == pytest.approx(np.mean([str(row[1]).lower() != row[2] for row in formed]))


def test_only_malformed_words_leave_the_disagreement_undefined():
    table, labels = verdict_table([(False, False, "malformed")] * 4)
    words = verifier_metrics(table, labels).words
    assert words.confusion["false"] == {"true": 0, "false": 0, "malformed": 4}
    assert words.malformed.value == 1.0
    assert math.isnan(words.disagree.value)


def test_a_word_outside_the_schema_is_refused():
    table, labels = verdict_table([(True, True, "True")])
    with pytest.raises(ValueError, match="'True'"):
        verifier_metrics(table, labels)


def test_labels_of_another_length_are_refused():
    table, labels = verdict_table([(True, True, None)] * 3)
    with pytest.raises(ValueError):
        verifier_metrics(table, labels[:1])
    with pytest.raises(ValueError):
        compare(labels, labels[:1])


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_is_wilsons(counts):
    successes, n = counts
    found = interval(successes, n)
    share, z = successes / n, 1.959963984540054
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    margin = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert (found.low, found.high) == pytest.approx((centre - margin, centre + margin), abs=1e-9)
    assert (found.low, found.high) == proportion_confint(successes, n, method="wilson")
    assert -1e-12 <= found.low <= found.value + 1e-12 <= found.high + 2e-12 <= 1 + 3e-12


@given(pairs)
def test_comparison_agrees_with_brute_force(rows):
    first, second = (np.array([row[i] for row in rows], dtype=bool) for i in (0, 1))
    found = compare(first, second)
    gained, lost = sum(b and not a for a, b in rows), sum(a and not b for a, b in rows)
    assert (found.n, found.gained, found.lost) == (len(rows), gained, lost)
    discordant = gained + lost  # two-sided exact binomial test of a fair coin, all outcomes at most as likely
    likely = math.comb(discordant, gained)
    extreme = sum(math.comb(discordant, k) for k in range(discordant + 1) if math.comb(discordant, k) <= likely)
    assert found.p == pytest.approx(extreme / 2**discordant)
    if rows:
        assert found.difference.value == pytest.approx(second.mean() - first.mean())
        assert found.difference.low <= found.difference.value <= found.difference.high


@given(pairs)
def test_comparison_the_other_way_round_mirrors(rows):
    first, second = (np.array([row[i] for row in rows], dtype=bool) for i in (0, 1))
    there, back = compare(first, second), compare(second, first)
    assert there.p == back.p
    assert there.difference.low == pytest.approx(-back.difference.high)


def test_planted_tie_and_planted_gain():
    tie = compare(np.array([True] * 7 + [False] * 7 + [True] * 86), np.array([False] * 7 + [True] * 7 + [True] * 86))
    assert tie.p == 1.0 and tie.difference.value == 0.0 and tie.difference.low == pytest.approx(-tie.difference.high)
    same = compare(np.ones(50, bool), np.ones(50, bool))
    assert same.p == 1.0
    gain = compare(np.repeat([True, False], 50), np.repeat([True, True, False], [50, 30, 20]))
    assert gain.p == pytest.approx(2 * 0.5**30) and gain.difference.low > 0


@pytest.mark.parametrize("p_gain, p_loss", [(0.10, 0.10), (0.15, 0.05), (0.02, 0.01)])
def test_paired_interval_covers_the_truth_as_often_as_it_says(p_gain, p_loss):
    n, rounds, random = 200, 400, np.random.default_rng(7)
    covered = 0
    for gained, lost, _ in random.multinomial(n, [p_gain, p_loss, 1 - p_gain - p_loss], rounds):
        first = np.array([False] * gained + [True] * lost + [True] * (n - gained - lost))
        second = np.array([True] * gained + [False] * lost + [True] * (n - gained - lost))
        difference = compare(first, second).difference
        covered += difference.low <= p_gain - p_loss <= difference.high
    assert 0.92 <= covered / rounds <= 0.995


@settings(max_examples=20)
@given(st.integers(0, 4), st.booleans(), st.integers(0, 30))
def test_a_record_survives_its_json_which_is_strict(chunks, base, rows):
    record = record_fixtures.verifier_record(chunks=chunks, rows=rows, base=base, words=rows // 2)
    text = record.model_dump_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert RunRecord.model_validate_json(text).model_dump_json() == text
    dumped = json.dumps(record.model_dump(mode="json"), allow_nan=False)
    assert RunRecord.model_validate_json(dumped).model_dump_json() == text


def test_a_record_keeps_solver_and_verifier_figures_apart():
    record = RunRecord.model_validate_json(record_fixtures.solver_record().model_dump_json())
    assert type(record.links[0].metrics).__name__ == "SolverMetrics"


def test_a_curve_is_read_from_the_engines_result_and_unknown_keys_are_refused():
    curve = {"steps": [{"step": 1, "loss": 0.7, "learning_rate": 1e-4, "grad_norm": 2.0, "tokens": 512.0},
                       {"step": 2, "loss": 0.5, "reward": 0.4, "kl": 0.01, "correctness": 0.3, "format": 0.1,
                        "frac_reward_zero_std": 0.5, "completion_length": 80.0, "clipped_ratio": 0.0}],
             "evals": [{"step": 2, "eval_loss": 0.6}]}
    found = TrainingCurve.model_validate(curve)
    assert (found.steps[0].tokens, found.steps[1].kl, found.evals[0].eval_loss) == (512, 0.01, 0.6)
    with pytest.raises(ValueError, match="rewards"):
        LinkRecord(number=1, kind="sft", adapter_digest="a", link_id="b",
                   training={"steps": [{"step": 1, "rewards": 1.0}]})
