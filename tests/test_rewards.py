"""What a completion earns in GRPO."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathtune.grading import Grader
from mathtune.rewards import correctness_reward, format_reward

RIGHT = "3 * 4 = 12\n#### 12"
GRADER = Grader()  # of numbers, so that no process starts


def test_trl_finds_their_names():
    assert correctness_reward(1.0, GRADER).__name__ == "correctness"
    assert format_reward(0.2).__name__ == "format"


@pytest.mark.parametrize(("completion", "correct", "formatted"), [
    (RIGHT, 1, 1),
    (RIGHT + "\n", 1, 1),
    ("3 * 4 = 13\n#### 13", 0, 1),
    ("#### 12.0", 1, 1),
    ("The answer is 12.", 1, 0),
    ("so it is 12", 1, 0),
    ("#### 12 apples", 1, 0),
    ("####12", 1, 0),
    ("3 * 4 = 12 #### 12", 1, 0),
    ("#### 12\nand so on", 1, 0),
    ("#### 11\n#### 12", 0, 0),
    ("#### 12\n#### 11", 1, 0),
    ("3 * 4 =", 0, 0),
    ("####", 0, 0),
    ("#### nan", 0, 0),
    ("no idea", 0, 0),
    ("", 0, 0),
    ("\n\n", 0, 0),
])
def test_a_completion_earns(completion, correct, formatted):
    for completions in ([completion], [[{"role": "assistant", "content": completion}]]):
        assert correctness_reward(1.0, GRADER)(completions, answer=["12"]) == [correct]
        assert format_reward(0.2)(completions) == [0.2 * formatted]


def test_as_trl_calls_them():
    columns = {"prompts": ["a", "b"], "completion_ids": [[1], [2]], "trainer_state": None, "question": ["?", "?"]}
    completions = [RIGHT, "#### 5"]
    assert correctness_reward(2.0, GRADER)(completions=completions, answer=["12", "6"], **columns) == [2.0, 0.0]
    assert format_reward(0.5)(completions=completions, answer=["12", "6"], **columns) == [0.5, 0.5]


def test_messages_without_content_say_nothing():
    completion = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "assistant", "content": RIGHT}]
    assert correctness_reward(1.0, GRADER)([completion], answer=["12"]) == [1.0]


@pytest.mark.slow
def test_an_expression_is_compared_and_one_that_takes_too_long_earns_nothing_and_is_told_once():
    told = []
    with Grader(cpu_seconds=0.3, notice=told.append) as grader:
        completions = [r"\boxed{\frac{1}{2}}", r"\boxed{9^{9^{9^9}}}", r"\boxed{8^{9^{9^9}}}", r"\boxed{\frac{1}{3}}"]
        rewards = correctness_reward(2.0, grader)(completions, answer=["0.5"] * 4)
    assert rewards == [2.0, 0.0, 0.0, 0.0]
    assert grader.timed_out == 2 and len(told) == 1
    assert "9^{9^9}" in told[0]


@given(st.lists(st.text(), max_size=4))
def test_every_completion_gets_a_number_and_the_same_one_again(completions):
    answers = ["12"] * len(completions)
    for rewards in (correctness_reward(1.0, GRADER)(completions, answer=answers), format_reward(0.2)(completions)):
        assert len(rewards) == len(completions)
        assert all(math.isfinite(reward) for reward in rewards)
    assert format_reward(0.2)(completions) == format_reward(0.2)(completions)
