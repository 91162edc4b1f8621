"""GSM8K's strict and flexible marks on a table of completions (``data/gsm8k_marks.jsonl``), beside the project's own answer.

The table's marks were made by lm-eval 0.4.13's own ``RegexFilter`` and ``exact_match_hf_evaluate`` from its ``gsm8k.yaml``; the
answers were read by a person. Its completions are the last lines of what models really wrote: ``openai``, the 6B and 175B
models of openai/grade-school-math (MIT licence, Copyright 2021 OpenAI); ``tora``, ToRA-70B of microsoft/ToRA (MIT licence,
Copyright Microsoft Corporation); ``demo base``, this project's demo base, greedy and drawn at temperatures 1.0 and 1.6. Those
of kind ``written`` were made up, for what no model wrote.
"""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathtune.answers import extract_answer
from mathtune.grading import Grader, grade
from mathtune.gsm8k_marks import INVALID, exact_match, flexible_answer, strict_answer

TABLE = [json.loads(line) for line in (Path(__file__).parent / "data" / "gsm8k_marks.jsonl").read_text().splitlines()]

PIECES = ["#### ", "####", " ", "-", "$", ".", ",", "0", "1", "23", "%", "/", "\n", "a", "B", "٣", "−", "x #### 2",
          "\\boxed{", "}"]
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def published(pattern: str, group_select: int, completion: str) -> str:
    """What RegexFilter does with the patterns of gsm8k.yaml."""
    found = re.findall(pattern, completion)
    if not found:
        return "[invalid]"
    match = found[group_select]
    if isinstance(match, tuple):
        match = [group for group in match if group][0]
    return match.strip()


def published_match(prediction: str, reference: str) -> bool:
    """What exact_match does with the settings of gsm8k.yaml."""
    for pattern in (",", "\\$", "(?s).*#### ", "\\.$"):
        prediction, reference = re.sub(pattern, "", prediction), re.sub(pattern, "", reference)
    return prediction.lower() == reference.lower()


def test_the_table_holds_what_it_says():
    real = [row for row in TABLE if row["source"] != "written"]
    assert len(real) >= 100 and len({(row["gold"], row["completion"]) for row in TABLE}) >= 170
    kinds = {"comma": r"\d,\d{3}", "currency": r"\$\d", "percent": r"\d ?%", "unit": r"\d (miles|cups|hours|feet)",
             "none": r"^[^#]+$", "negative": r"\D-\d", "fraction": r"\d/\d",
             "twice": r"(?s)####.*####", "decimal": r"\d\.\d", "boxed": r"\\boxed"}
    assert not [kind for kind, pattern in kinds.items() if not any(re.search(pattern, row["completion"]) for row in real)]


@pytest.mark.parametrize("row", TABLE, ids=range(len(TABLE)))
def test_extraction_is_the_published_one(row):
    completion = row["completion"]
    assert strict_answer(completion) == row["strict"] == published(r"#### (\-?[0-9\.\,]+)", 0, completion)
    assert flexible_answer(completion) == row["flexible"] == published(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1, completion)
    assert extract_answer(completion) == row["answer"]


def test_marks_are_the_published_ones():
    columns = ([row[name] for row in TABLE] for name in ("gold", "completion"))
    with Grader() as grader:
        grades = grade(*columns, [True] * len(TABLE), grader)
    for row, found in zip(TABLE, grades, strict=True):
        assert (found.strict, found.flexible, found.correct) == (row["strict_right"], row["flexible_right"], row["right"]), row
        assert row["strict_right"] == published_match(row["strict"], row["gold"])
        assert row["flexible_right"] == published_match(row["flexible"], row["gold"])


@given(texts, texts)
def test_any_text_is_marked_as_published(completion, gold):
    strict, flexible = strict_answer(completion), flexible_answer(completion)
    assert strict == published(r"#### (\-?[0-9\.\,]+)", 0, completion)
    assert flexible == published(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1, completion)
    assert exact_match(strict, gold) == published_match(strict, gold)
    assert exact_match(flexible, gold) == published_match(flexible, gold)


def test_a_whole_solution_is_a_gold_answer_too():
    assert exact_match("1,080.", "He pays 900 + 180 = $<<900+180=1080>>1,080\n#### 1080")
    assert not exact_match(INVALID, "#### 1080")
