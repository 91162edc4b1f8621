"""A solver's figures against brute force over subsets, and intervals against simulation."""

import math
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from mathtune.schemas import SAMPLES, SOLUTIONS
from mathtune.solver_metrics import majority_at, mean_share, pass_at, sample_metrics, solver_metrics

# of one problem: for each sample the answer (None: none); answer 0 is right
answers = st.lists(st.sampled_from([None, 0, 1, 2, 3]), min_size=1, max_size=7)


def classes_of(drawn: list[int | None]) -> list[int | None]:
    """``same_as``: place of the first sample with the same answer."""
    return [None if answer is None else drawn.index(answer) for answer in drawn]


def sample_table(problems: list[list[int | None]]) -> pa.Table:
    rows = [{"row_id": 10 + i, "sample": j, "correct": answer == 0, "same_as": same, "completion": "", "outcome": "wrong"}
            for i, drawn in enumerate(problems) for j, (answer, same) in enumerate(zip(drawn, classes_of(drawn), strict=True))]
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def brute_majority(drawn: list[int | None], k: int) -> float:
    """Share of the subsets of k whose most frequent answer is right, a tie counting by its share."""
    won = 0.0
    for subset in combinations(drawn, k):
        counts = {answer: subset.count(answer) for answer in set(subset) - {None}}
        most = [answer for answer, count in counts.items() if count == max(counts.values())]
        won += most.count(0) / len(most) if most else 0.0
    return won / math.comb(len(drawn), k)


@given(answers)
def test_pass_and_majority_agree_with_all_subsets(drawn):
    n, right = len(drawn), [answer == 0 for answer in drawn]
    found = majority_at(np.array(classes_of(drawn), dtype=float), np.array(right))
    for k in range(1, n + 1):
        passed = [any(subset) for subset in combinations(right, k)]
        assert pass_at(np.array([sum(right)]), n, k)[0] == pytest.approx(np.mean(passed))
        assert found[k] == pytest.approx(brute_majority(drawn, k))


@settings(max_examples=20)
@given(st.lists(st.permutations([0, 0, 0, 1, 1, 2, None]), min_size=1, max_size=6))
def test_sample_metrics_average_problems(problems):
    found = sample_metrics(sample_table(problems), 0.8)
    assert (found.rows, found.samples, found.temperature) == (len(problems), 7, 0.8)
    assert list(found.pass_at) == list(found.majority_at) == [1, 2, 4, 7]
    assert found.pass_at[1].value == pytest.approx(3 / 7) and found.majority_at[1].value == pytest.approx(3 / 7)
    assert found.pass_at[7].value == pytest.approx(1)
    assert found.majority_at[7].value == pytest.approx(1)  # 0 is the most frequent answer of all seven
    for k in (1, 2, 4, 7):
        assert found.majority_at[k].value == pytest.approx(brute_majority(problems[0], k))
        assert found.majority_at[k].n == len(problems)


def test_the_sizes_of_few_samples():
    assert [list(sample_metrics(sample_table([[0] * n]), 1.0).pass_at) for n in (1, 2, 3, 8, 9)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 9]]


def test_no_answer_never_wins_and_a_tie_is_shared():
    none, tie = [None, None, None, None, 0], [0, 0, 1, 1]
    assert majority_at(np.array(classes_of(none), dtype=float), np.array([False] * 4 + [True]))[5] == 1.0
    assert majority_at(np.array(classes_of(tie), dtype=float), np.array([True] * 2 + [False] * 2))[4] == 0.5
    silent = sample_metrics(sample_table([[None] * 4]), 1.0)
    assert silent.pass_at[4].value == silent.majority_at[4].value == 0.0


def test_many_samples_stay_exact_and_ordered():
    random = np.random.default_rng(3)
    drawn = random.choice(6, 128, p=[0.3, 0.25, 0.15, 0.1, 0.1, 0.1])
    found = majority_at(np.array(classes_of(drawn.tolist()), dtype=float), drawn == 0)
    subsets = [random.choice(drawn, 16, replace=False).tolist() for _ in range(4000)]
    shares = [brute_majority(subset, 16) for subset in subsets]
    assert found[16] == pytest.approx(np.mean(shares), abs=4 * np.std(shares) / math.sqrt(len(shares)))
    assert (0 <= found).all() and (found <= 1 + 1e-12).all()


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_of_right_and_wrong_alone_it_is_wilsons_interval(right):
    found = mean_share(np.array(right, dtype=float), 8)
    assert (found.low, found.high) == pytest.approx(proportion_confint(sum(right), len(right), method="wilson"))


@settings(max_examples=50)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40))
def test_completions_of_one_problem_count_as_at_most_one_trial_each(right):
    shares = np.array(right) / 8
    found = mean_share(shares, 8)
    low, high = proportion_confint(shares.sum() * 8, len(shares) * 8, method="wilson")
    assert found.low <= low + 1e-9 and high - 1e-9 <= found.high and found.low - 1e-12 <= found.value <= found.high + 1e-12


@pytest.mark.parametrize(("k", "hard"), [(1, 0.3), (4, 0.3), (8, 0.3), (8, 2.0)])
def test_its_interval_covers_the_truth_as_often_as_it_says(k, hard):
    """Problems are drawn with chances of their own, from a beta distribution that is mostly near 0 and 1 or not."""
    random, covered, rounds = np.random.default_rng(11), 0, 600
    chances = random.beta(hard, hard, 400_000)
    truth = np.mean(1 - (1 - chances) ** k)
    for _ in range(rounds):
        right = random.binomial(8, random.choice(chances, 100))
        found = mean_share(pass_at(right, 8, k), 8)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / rounds <= 0.99


def test_solver_metrics_of_nothing():
    found = solver_metrics(SOLUTIONS.empty_table())
    assert math.isnan(found.accuracy.value) and set(found.outcomes.values()) == {0} and found.samples is None


def test_solver_metrics_count_outcomes_and_marks():
    outcomes = ["right", "right", "right", "wrong", "wrong", "unparsed", "cut off", "timed out"]
    rows = [{"row_id": i, "correct": i < 3, "strict": i in (0, 3), "flexible": i < 5, "outcome": outcome}
            for i, outcome in enumerate(outcomes)]
    found = solver_metrics(pa.Table.from_pylist(rows, schema=SOLUTIONS), sample_table([[0, 1], [0, 0]]), 0.7)
    assert found.outcomes == {"right": 3, "wrong": 2, "unparsed": 1, "cut off": 1, "timed out": 1}
    assert (found.accuracy.value, found.strict.value, found.flexible.value) == (3 / 8, 2 / 8, 5 / 8)
    assert found.samples.pass_at[1].value == 0.75 and found.samples.pass_at[2].value == 1.0
    assert found.samples.majority_at[2].value == 0.75
