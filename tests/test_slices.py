"""Slices: kinds of answers, quarters, fifths and generators divide the rows, each row once."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathtune.schemas import SOLVER_ROWS
from mathtune.slices import (
    ANSWER_TYPES,
    answer_type,
    by_generator,
    by_part_of_source,
    by_solution_length,
    divide,
    slice_figures,
)


@pytest.mark.parametrize(("kind", "answers"), {
    "integer": ["18", "-5", "−5", "$1,000", "18%", "50\\%", "$18$", "\\boxed{18}", "**18**", "14 years", "5 cm", "18.",
                "18 \\text{ apples}", " 7 "],
    "decimal": ["0.5", "14.50 dollars", "-1.8 billion", "$3,000.25", ".5"],
    "fraction": ["1/2", "3 1/2", "1/2 cup", "\\frac{1}{2}", "$-\\frac{3}{4}$", "\\dfrac12"],
    "expression": ["x = 5", "(3, 4)", "2\\pi", "2 pi", "\\sqrt{2}", "x+1", "2^{10}", "12:30", "3x", "1e5", "5 or 6", "π"],
    "text": ["Tuesday", "no solution", "A", "\\text{even}", "18 apples and 3 pears", "John has 5 apples"],
    "empty": ["", "  ", "\n", "."],
}.items())
def test_answers_are_of_the_kind_they_are_written_as(kind, answers):
    assert {answer: answer_type(answer) for answer in answers} == dict.fromkeys(answers, kind)


@given(st.text(max_size=30))
def test_every_text_is_of_some_kind(answer):
    assert answer_type(answer) in ANSWER_TYPES


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(["1", "0.5", "", "x"]), st.text(max_size=20),
                          st.sampled_from(["a", "b", ""]), st.booleans()), min_size=1, max_size=50))
def test_every_row_is_in_one_slice_of_each_division(rows):
    ids, answers, solutions, generators, correct = zip(*rows, strict=True)
    table = pa.table([ids, ["q"] * len(rows), answers, solutions], schema=SOLVER_ROWS)
    correct = np.array(correct)
    divisions = divide(table, generators)
    figures = slice_figures(divisions, correct, correct)
    for division in divisions:
        mine = [one for one in figures if one.by == division.by]
        assert sum(one.accuracy.n for one in mine) == len(rows)
        assert sum(one.accuracy.value * one.accuracy.n for one in mine) == pytest.approx(correct.sum())
        for one in mine:
            inside = np.array([division.value_of(i) == one.value for i in range(len(rows))])
            assert (one.accuracy.n, one.accuracy.value) == (inside.sum(), pytest.approx(correct[inside].mean()))
            assert one.true_share == one.accuracy.value  # labels and verdicts were the same here


def test_quarters_are_even_and_say_where_they_end():
    solutions = pa.chunked_array([["x" * i for i in np.random.default_rng(0).permutation(np.arange(1, 101))]])
    division = by_solution_length(solutions)
    assert np.bincount(division.place).tolist() == [25, 25, 25, 25]
    assert division.values == ["shortest quarter, up to 25 characters", "second quarter, 26 to 50 characters",
                               "third quarter, 51 to 75 characters", "longest quarter, over 75 characters"]
    assert division.value_of(solutions.to_pylist().index("x" * 76)) == "longest quarter, over 75 characters"


def test_without_solutions_there_is_no_division_by_their_length():
    rows = pa.table([[3, 9], ["q", "q"], ["1", "1"], ["", ""]], schema=SOLVER_ROWS)
    assert [division.by for division in divide(rows)] == ["answer type", "part of the source"]


def test_fifths_of_the_source_are_equal_stretches():
    division = by_part_of_source(np.array([0, 199, 200, 999, 600]))
    assert division.values == ["first fifth, rows 0 to 199", "second fifth, rows 200 to 399", "fourth fifth, rows 600 to 799",
                               "last fifth, rows 800 to 999"]
    assert division.place.tolist() == [0, 0, 1, 3, 2]


def test_the_most_frequent_generators_come_first_and_the_rare_are_together():
    names = [f"g{i}" for i in range(20) for _ in range(20 - i)] + [""] * 30
    division = by_generator(names)
    assert division.values[:3] == ["unknown", "g0", "g1"] and division.values[-1] == "9 others"
    counts = dict(zip(division.values, np.bincount(division.place).tolist(), strict=True))
    assert counts["unknown"] == 30 and counts["g10"] == 10 and counts["9 others"] == sum(range(1, 10))


def test_solvers_have_no_share_of_true_labels():
    rows = pa.table([[0, 1], ["q", "q"], ["1", "x+1"], ["s", "s"]], schema=SOLVER_ROWS)
    figures = slice_figures(divide(rows), np.array([True, False]))
    assert [(one.value, one.accuracy.value) for one in figures[:2]] == [("integer", 1), ("expression", 0)]
    assert all(np.isnan(one.true_share) for one in figures)
