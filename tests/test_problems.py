"""The generator: same bytes everywhere, no question in two splits, right workings right and wrong ones wrong."""

import hashlib
import subprocess
import sys
from fractions import Fraction

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from mathtune.answers import extract_strict, same_answer
from mathtune.demo.draw import Draw
from mathtune.demo.mistakes import WEIGHTS, wrong
from mathtune.demo.problem import R0, Problem, work_out
from mathtune.demo.problems import (
    FAMILIES,
    HELD_OUT_FAMILIES,
    SPLITS,
    TRAINED_FAMILIES,
    corpus,
    normalise,
    problems,
    rows,
)
from mathtune.demo.words import PROMPT_WORDS, WRONG_UNITS


def digest(texts) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def table_digest(table: pa.Table) -> str:
    return digest(str(value) for column in table.columns for value in column.to_pylist())


def check_line(line: str) -> bool:
    """Whether a step line such as ``3 * 4 = 12`` is true."""
    left, operator, right, equals, result = line.split(" ")
    a, b = Fraction(left), Fraction(right)
    assert equals == "="
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[operator] == Fraction(result)


def test_splitmix64_gives_the_published_numbers():
    draw = Draw()
    draw.state = 1234567  # reference values of Vigna's splitmix64.c for this seed
    assert [draw.bits() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_bytes_of_version_2():
    # A change here is a change of VERSION: a pretrained base and whoever compares figures depend on these bytes.
    assert table_digest(rows("verifier", 500, 7, "train")) == "58f91ba776cb8b82"
    assert table_digest(rows("solver", 500, 7, "validation")) == "b5c3803d4c90818e"
    assert table_digest(rows("solver", 500, 7, "held_out")) == "98cc6084b556bc91"
    assert digest(corpus(500, 7)) == "d05ff616bec07ee0"


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", ["verifier", "solver"])
def test_fewer_rows_are_a_prefix_of_more(task, split):
    assert rows(task, 300, 3, split).slice(0, 101).equals(rows(task, 101, 3, split))
    assert not rows(task, 100, 3, split).equals(rows(task, 100, 4, split))
    assert rows(task, 0, 3, split).num_rows == 0


def test_no_question_stands_in_two_splits():
    questions = {split: {normalise(question) for task in ("verifier", "solver") for seed in (0, 1)
                         for question in rows(task, 2500, seed, split)["question"].to_pylist()} for split in SPLITS}
    questions["pretrain"] |= {normalise(text.split("\n")[0]) for text in corpus(10_000, 0) if "####" in text}
    for one in SPLITS:
        assert len(questions[one]) > 7000
        for other in SPLITS:
            assert one == other or not questions[one] & questions[other]


def test_the_same_question_drawn_elsewhere_is_turned_away():
    # Small families repeat themselves all the time: without the rule the splits would overlap at once.
    drawn = {split: {problem.question for _, problem in zip(range(20_000), problems(Draw("x"), split), strict=False)
                     if problem.family == "division"} for split in ("train", "test")}
    assert not drawn["train"] & drawn["test"]


def test_families():
    assert len(TRAINED_FAMILIES) >= 14 and len(HELD_OUT_FAMILIES) == 2
    assert set(FAMILIES) == set(TRAINED_FAMILIES) | set(HELD_OUT_FAMILIES)
    assert not set(TRAINED_FAMILIES) & set(HELD_OUT_FAMILIES)
    for split in SPLITS:
        expected = HELD_OUT_FAMILIES if split == "held_out" else TRAINED_FAMILIES
        found = rows("solver", 4000, 0, split)["family"].to_pylist()
        assert set(found) == set(expected)
        assert min(map(found.count, expected)) > 0.7 * 4000 / len(expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(SPLITS))
def test_a_solver_s_solutions_are_right(seed, split):
    for row in rows("solver", 200, seed, split).to_pylist():
        *lines, last = row["solution"].split("\n")
        assert 1 <= len(lines) <= 4 and all(map(check_line, lines))
        assert last == f"#### {row['answer']}" == f"#### {lines[-1].split(' = ')[1]}"
        assert len(row["question"]) < 160 and row["question"].isascii()


def test_a_verifier_s_rows():
    table = rows("verifier", 20_000, 0, "train")
    assert table.schema.names == ["question", "answer", "solution", "family", "is_correct"]
    labels = table["is_correct"].to_pylist()
    assert 0.38 < sum(labels) / len(labels) < 0.42
    found = table.to_pylist()
    proposals = {}
    for row in found:
        proposals.setdefault(row["question"], []).append((row["answer"], row["solution"], row["is_correct"]))
    counts = [len(each) for each in proposals.values()]
    assert set(counts) == {1, 2, 3} and all(len(set(each)) == len(each) for each in proposals.values())
    for row in found:
        *lines, last = row["solution"].split("\n")
        stated = extract_strict(row["solution"])
        consistent = all(line.endswith("=") or check_line(line) for line in lines)
        if row["is_correct"]:
            assert consistent and last == f"#### {stated}" and same_answer(stated, row["answer"])
        if not row["answer"]:
            assert not row["is_correct"] and stated is None and last.endswith(" =")


@settings(deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(("train", "held_out")))
def test_a_wrong_proposal_is_wrong(seed, split):
    draw = Draw("wrong", seed)
    problem = next(problems(draw, split))
    truth = str(work_out(problem.steps).result)
    proposal = wrong(problem, draw)
    assert not proposal.is_correct
    unit = proposal.answer.partition(" ")[2]
    assert not same_answer(truth, proposal.answer) or unit == WRONG_UNITS[problem.unit] != problem.unit


def test_a_mistake_that_changes_nothing_is_not_made():
    problem, draw = Problem("multiplication", "What is 2 * 2?", ((2, "*", 2),)), Draw("twice two")
    assert not any(same_answer("4", wrong(problem, draw).answer) for _ in range(300))  # 2 + 2 = 4 is no mistake


@pytest.mark.parametrize("kind", WEIGHTS, ids=lambda kind: kind.__name__)
def test_every_kind_of_mistake_happens_in_many_families(kind):
    draw = Draw("kinds")
    stream = problems(draw, "train")
    met = {problem.family for problem, _ in zip(stream, range(2000), strict=False) if kind(problem, draw)}
    assert len(met) >= 6


def test_a_slip_carries_on():
    steps = ((3, "*", 4), (R0, "+", 5))
    assert work_out(steps).text() == "3 * 4 = 12\n12 + 5 = 17\n#### 17"
    assert work_out(steps, slip_at=0, slip=1).text() == "3 * 4 = 13\n13 + 5 = 18\n#### 18"
    assert work_out(((3, "-", 4),)) is None and work_out(((7, "/", 2),)) is None and work_out(((7, "/", 0),)) is None


def test_the_corpus_is_of_four_kinds():
    texts = list(corpus(5000, 1))
    drills = [text for text in texts if " = " in text and "\n#### " not in text and "\nAnswer: " not in text]
    words = [text for text in texts if not any(sign.isdigit() for sign in text)]
    attempts = [text for text in texts if "\nAnswer: " in text]
    assert 0.2 < len(drills) / len(texts) < 0.28 and 0.03 < len(words) / len(texts) < 0.08
    assert 0.4 < len(attempts) / len(texts) < 0.52
    assert all(check_line(line) for text in drills for line in text.split("\n"))
    assert {word.strip("?:") for text in words for word in text.split()} == set(PROMPT_WORDS)
    for text in texts:
        if text not in drills and text not in words and text not in attempts:
            *lines, last = text.split("\n")[1:]
            assert all(map(check_line, lines)) and last == f"#### {lines[-1].split(' = ')[1]}"


def test_the_corpus_solves_again_what_went_wrong_and_never_says_so():
    attempts = [text for text in corpus(60_000, 1) if "\nAnswer: " in text]
    spoilt = [text for text in attempts if "\nAgain:\n" in text]
    assert 0.47 < len(spoilt) / len(attempts) < 0.53
    for text in spoilt:
        attempt, again = text.split("\nAgain:\n")
        *lines, last = again.split("\n")
        assert all(map(check_line, lines)) and last == f"#### {lines[-1].split(' = ')[1]}"
        assert not attempt.partition("\n")[2].startswith(f"{again}\nAnswer: {last[5:]}\n")
    words = {True: [], False: []}
    for text in attempts:
        between = text.partition("\nAnswer: ")[2].partition("\nAgain:\n")[0].split("\n", 1)[1]
        words["\nAgain:\n" in text] += [word.strip("?:") for word in between.split()]
    for label in ("True", "False", "true", "false", "Right", "Wrong", "right", "wrong", "Correct", "correct"):
        counts = [[found.count(label), len(found) - found.count(label)] for found in words.values()]
        assert min(count[0] for count in counts) > 500
        assert chi2_contingency(counts).pvalue > 0.001, label  # as often behind a right attempt as behind a spoilt one


def test_the_bytes_depend_neither_on_hashing_nor_on_the_locale():
    code = ("import hashlib; from mathtune.demo.problems import corpus; import sys;"
            "print(hashlib.sha256('\\0'.join(corpus(300, 7)).encode()).hexdigest()[:16], 'torch' in sys.modules)")
    for environment in ({"PYTHONHASHSEED": "1", "LC_ALL": "C"}, {"PYTHONHASHSEED": "2", "LC_ALL": "C.UTF-8"}):
        found = subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.PIPE)
        assert found.stdout.decode().split() == [digest(corpus(300, 7)), "False"]
