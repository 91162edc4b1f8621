"""Intervals and the paired test against statsmodels, brute force and simulation; a run's record survives its JSON."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from mathtune.metrics import bootstrap, compare, differ, effective_rows, exchange_test, interval, percentile_interval, share
from mathtune.run_record import LinkRecord, RunRecord, TrainingCurve
from tests import record_fixtures

pairs = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60)
shares = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def mean_of(values):
    """The mean as a figure for ``bootstrap``."""
    return lambda weights: (weights @ values / weights.sum(1))[:, None]


@given(shares)
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


def test_columns_of_different_lengths_are_not_compared():
    with pytest.raises(ValueError):
        compare(np.ones(3, bool), np.ones(1, bool))


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


@given(shares, shares)
def test_shares_differ_where_newcombes_interval_of_their_difference_leaves_zero_out(first, second):
    low, high = confint_proportions_2indep(*first, *second, method="newcomb", compare="diff")
    if min(abs(low), abs(high)) > 1e-9:
        one, other = interval(*first), interval(*second)
        assert differ(one, other) == differ(other, one) == (low > 0 or high < 0)


def test_a_share_of_nothing_differs_from_none():
    assert not differ(interval(0, 0), interval(1000, 1000))


@given(pairs)
def test_questions_of_one_row_each_change_nothing(rows):
    first, second = (np.array([row[i] for row in rows], dtype=bool) for i in (0, 1))
    questions = np.arange(len(rows))[::-1]
    plain, by_question = compare(first, second), compare(first, second, questions)
    assert by_question.p == pytest.approx(plain.p) and by_question.model_copy(update={"p": plain.p}) == plain
    assert share(first, questions) == interval(int(first.sum()), len(rows)) == share(first)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 1)), min_size=1, max_size=12))
def test_the_exchange_test_agrees_with_every_exchange(rows):
    questions, change = (np.array(column) for column in zip(*rows, strict=True))
    nets = np.array([change[questions == question].sum() for question in set(questions)])
    sums = [np.dot(signs, nets) for signs in itertools.product((-1, 1), repeat=len(nets))]
    assert exchange_test(change, questions) == pytest.approx(np.mean(np.abs(sums) >= abs(change.sum())))


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 5))
def test_rows_repeated_word_for_word_tell_no_more(flags, times):
    once, questions = np.array(flags), np.arange(len(flags))
    found = share(np.repeat(once, times), np.repeat(questions, times))
    alone = share(once, questions)
    assert found.value == alone.value and found.n == times * alone.n
    assert found.high - found.low >= 0.98 * (alone.high - alone.low)
    assert compare(np.repeat(once, times), np.repeat(~once, times), np.repeat(questions, times)).p == pytest.approx(
        compare(once, ~once, questions).p)


def test_intervals_and_tests_by_question_hold_what_they_promise_where_rows_depend_on_each_other():
    random, rounds, questions = np.random.default_rng(5), 400, np.repeat(np.arange(100), 4)
    covered = narrow = rejected = rejected_by_rows = 0
    for _ in range(rounds):
        ability = np.repeat(random.beta(0.7, 0.7, 100), 4)  # half of the variance lies between questions
        first, second = (random.random(400) < ability for _ in range(2))
        wide, plain = share(first, questions), share(first)
        covered += wide.low <= 0.5 <= wide.high
        narrow += plain.low <= 0.5 <= plain.high
        luck = np.where(np.repeat(random.random(100) < 0.5, 4), first, ~first)  # as good, on whole questions
        rejected += compare(first, luck, questions).p < 0.05
        rejected_by_rows += compare(first, luck).p < 0.05
    assert covered / rounds > 0.92 > narrow / rounds
    assert rejected / rounds < 0.07 < rejected_by_rows / rounds
    assert 1 <= effective_rows(first, questions) < 400



@pytest.mark.slow
def test_bootstrap_of_whole_questions_covers_the_truth_and_of_rows_does_not():
    random, rounds = np.random.default_rng(3), 150
    questions = np.repeat(np.arange(60), 4)
    held = {"questions": 0, "rows": 0}
    for _ in range(rounds):
        values = random.normal(0, 1, 60)[questions] + random.normal(0, 0.3, 240)  # the four answers to a question are alike
        for name, groups in (("questions", questions), ("rows", None)):
            value, drawn = bootstrap(mean_of(values), 240, groups)
            found = percentile_interval(value[0], drawn[:, 0], 240)
            held[name] += found.low <= 0 <= found.high
    assert 0.89 <= held["questions"] / rounds <= 0.99 and held["rows"] / rounds < 0.8


def test_resamples_are_the_same_each_time_and_whatever_the_order_of_the_rows():
    values, questions = np.random.default_rng(0).random(500), np.arange(500) // 3
    order = np.random.default_rng(1).permutation(500)
    first, again = bootstrap(mean_of(values), 500, questions), bootstrap(mean_of(values[order]), 500, questions[order])
    np.testing.assert_allclose(first[1], again[1])
    assert first[1].shape == (1000, 1) and first[1].std() == pytest.approx(values.std() / math.sqrt(500), rel=0.15)


def test_one_question_tells_nothing_of_the_spread():
    value, drawn = bootstrap(mean_of(np.array([0.2, 0.4])), 2, np.array([7, 7]))
    found = percentile_interval(value[0], drawn[:, 0], 2)
    assert found.value == pytest.approx(0.3) and (found.low, found.high) == (0.0, 1.0)


@settings(max_examples=20, deadline=None)
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
