"""Which answer a completion gives, and when two answers are the same."""

import json
import subprocess
import sys
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathtune.answers import extract_answer, extract_strict, same_answer
from mathtune.expressions import same_expression

SHARED = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"
GSM8K, JUDGED = SHARED / "test.jsonl", SHARED / "model_solutions.parquet"

EXTRACTED = [
    # completion, answer, strict answer
    ("3 * 4 = 12\n#### 12", "12", "12"),
    ("#### 1,000", "1,000", "1,000"),
    ("#### -7", "-7", "-7"),
    ("#### −7", "−7", "−7"),
    ("#### $18", "$18", "$18"),
    ("#### -$18", "-$18", "-$18"),
    ("#### $-18", "$-18", "$-18"),
    ("#### 18.", "18", "18"),
    ("#### 18.50", "18.50", "18.50"),
    ("#### .5", ".5", ".5"),
    ("#### 18%", "18%", "18%"),
    ("#### 3/4", "3/4", "3/4"),
    ("#### 2 1/2", "2 1/2", "2 1/2"),
    ("#### 18 dollars", "18", "18"),
    ("####18", "18", "18"),
    ("#### **18**", "18", "18"),
    ("#### 5\nQuestion: another\n#### 9", "5", "5"),  # GSM8K and strict-match: the first
    ("#### ?\nno, it is\n#### 9", "9", "9"),
    ("#### 12\nThe answer is 13.", "12", "12"),
    ("The answer is 12.", "12", None),
    ("the ANSWER is 1,234 apples", "1,234", None),
    ("The answer is 5. Wait. The answer is 6.", "6", None),
    ("The final answer is: $7.50", "$7.50", None),
    ("The answer is **8**, since 3 + 5 = 8 and 1 < 2", "8", None),
    ("The answer is -3 because 2 - 5", "-3", None),
    ("The answer is $\\boxed{42}$, not 7", "42", None),
    ("The answer is 3 + 4 = 7", "7", None),
    ("The answer is 10 - 3 = 7", "7", None),
    ("so \\boxed{12} and 13", "12", None),
    ("\\boxed{1} or rather \\boxed{2}", "2", None),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", None),
    (r"\boxed{18\text{ dollars}}", r"18\text{ dollars}", None),
    (r"\boxed{12", "12", None),
    (r"\boxed{} 5", "5", None),
    ("I get 3, then 4, so 7.", "7", None),
    ("10-3", "3", None),
    ("it falls to -3", "-3", None),
    ("pairs 3,4", "4", None),
    ("that is 1,00,000 rupees", "1,00,000", None),
    ("costs $1,250.75!", "$1,250.75", None),
    ("in x2 steps: 9 of x2", "9", None),
    ("18km", "18", None),
    ("12 / 4 = 3", "3", None),
    ("none at all", None, None),
    ("####", None, None),
    ("#### unknown", None, None),
    ("", None, None),
    ("   \n", None, None),
    ("9" * 5000, "9" * 5000, None),
]

SAME = [
    ("1000", "1,000"), ("5", "$5"), ("5", "5.0"), ("0.5", "1/2"), ("-5", "-$5"), ("-5", "$-5"), ("-5", "−5"),
    ("5", "+5"), ("5", "5."), ("5", " 5 "), ("5", "05"), ("0.5", ".5"), ("2.5", "2 1/2"), ("18%", "18 %"),
    ("18%", "0.18"), ("18%", "18 percent"), ("18%", r"18\%"), ("5", "5 apples"), ("5 km", "5"), ("5 km", "5 km"),
    ("5 apple", "5 Apples"), ("60", "60 km/h"), ("18", r"18\text{ dollars}"), ("18", r"\$18"), ("18", "$18$"),
    ("18", "**18**"), ("100000", "1,00,000"), ("1/3", "2/6"), ("0", "-0"), ("4.50", "4.5"), ("Monday", "monday"),
    ("9" * 300, "9" * 300), (r"\frac{1}{2}", r"\frac{1}{2}"), ("X+1", "x+1"),
]

SAME_EXPRESSION = [
    (r"\frac{1}{2}", "0.5"), ("1/2", r"\frac12"), ("x+1", "1 + x"), (r"2\sqrt{3}", r"\sqrt{12}"), ("5", "x=5"),
    (r"\{1,2\}", r"\{2,1\}"), ("0.5", r"\( \frac{1}{2} \)"),
]

DIFFERENT = [
    ("5", "6"), ("5", "-5"), ("18", "18%"), ("18%", "18"), ("18", r"18\%"), ("18", "18 percent"), ("1/3", "0.33"),
    ("0.3333333333333333", "1/3"), ("5 km", "5 m"), ("5 km", "5 miles"), ("5", "5 million"), ("5", None),
    ("5", ""), ("5", "five"), ("", ""), ("listen", "silent"), ("Monday", "Tuesday"),
    ("12", "12 and 15"), ("1000", "1.000"), ("10000000000000001", "10000000000000000"),
    ("9" * 5000, "9" * 4999 + "8"), ("1", "9" * 5000), ("1", "x" * 5000),
]

DIFFERENT_EXPRESSION = [("5", "x"), ("2", "2 pi"), ("5", "1/0"), (r"\frac{1}{2}", "0.51"), ("5", r"\frac{1"),
                        (r"\{1,2\}", r"\{1,3\}")]


@pytest.mark.parametrize(("completion", "answer", "strict"), EXTRACTED, ids=range(len(EXTRACTED)))
def test_extraction(completion, answer, strict):
    assert extract_answer(completion) == answer
    assert extract_strict(completion) == strict


@pytest.mark.parametrize(("gold", "given"), SAME, ids=range(len(SAME)))
def test_same(gold, given):
    assert same_answer(gold, given) is True


@pytest.mark.parametrize(("gold", "given"), DIFFERENT, ids=range(len(DIFFERENT)))
def test_different(gold, given):
    assert same_answer(gold, given) is False


@pytest.mark.parametrize(("gold", "given", "same"), [(*pair, True) for pair in SAME_EXPRESSION] + [
    (*pair, False) for pair in DIFFERENT_EXPRESSION])
def test_expressions_are_left_to_algebra(gold, given, same):
    assert same_answer(gold, given) is None
    assert same_expression(gold, given) is same


@given(st.integers(), st.sampled_from(("{}", "{:,}", "{}.0", "${}", "{} apples", "{}.", "**{}**")))
def test_integers_come_back_however_they_are_written(number, style):
    completion = f"3 * 4 = 12\n#### {style.format(number)}"
    assert same_answer(str(number), extract_strict(completion))
    assert not same_answer(str(number + 1), extract_strict(completion))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3))
def test_decimals_come_back_exactly(number):
    assert same_answer(str(Fraction(number)), extract_answer(f"The answer is {number:,f}."))
    with localcontext(prec=400):  # the usual 28 digits would round a large one's last place away
        other = number + Decimal("0.001")
    assert not same_answer(f"{other:f}", extract_answer(f"The answer is {number:f}."))


@given(st.fractions(max_denominator=10**6))
def test_fractions_equal_themselves_in_any_terms(number):
    doubled = f"{2 * number.numerator}/{2 * number.denominator}"
    assert same_answer(f"{number.numerator}/{number.denominator}", extract_answer(f"so {doubled}"))


@given(st.text(max_size=200))
def test_any_text_is_survived(text):
    found = extract_answer(text)
    assert found is None or found.strip() and found in text
    assert extract_strict(text) is None or extract_strict(text) == found


@pytest.mark.skipif(not GSM8K.exists(), reason="shared/data is missing")
def test_every_gsm8k_solution_gives_its_answer():
    solutions = [json.loads(line)["answer"] for line in GSM8K.read_text().splitlines()]
    assert len(solutions) == 1319
    for solution in solutions:
        gold = solution.rpartition("#### ")[2]
        assert same_answer(gold, extract_strict(solution))
        assert same_answer(gold, extract_answer(f"It all adds up. The answer is {gold}."))


@pytest.mark.skipif(not JUDGED.exists(), reason="shared/data is missing")
def test_real_solutions_are_judged_as_their_publisher_judged_them():
    rows = map(json.loads, GSM8K.read_text().splitlines())
    gold = {row["question"]: row["answer"].rpartition("#### ")[2] for row in rows}
    judged = pq.read_table(JUDGED).to_pylist()
    assert len(judged) == 3676
    for row in judged:  # "A: 26" ends them, or nothing does
        assert same_answer(gold[row["question"]], extract_answer(row["solution"])) == row["is_correct"]
        assert same_answer(gold[row["question"]], row["answer"]) == row["is_correct"]


def test_numbers_need_neither_torch_nor_sympy():
    code = ("import sys; from mathtune.answers import same_answer; import mathtune.rewards; "
            "assert same_answer('1,000', '$1000'); assert not {'torch', 'sympy', 'math_verify'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
