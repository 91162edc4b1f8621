"""Reward functions for GRPO in the shape that trl's ``GRPOTrainer`` calls: one float for every completion.

trl passes every column of the data set as a list, repeated for each generation; ``answer`` is the right answer. A
completion is plain text, or a list of chat messages where the prompt was one. Left out: weighing against each other,
which the factories' ``weight`` does.
"""

import functools
import math
import re
from collections.abc import Callable

from mathtune.answers import NUMBER, extract_answer
from mathtune.errors import TrainingError
from mathtune.grading import Grader

Completion = str | list[dict]
Reward = Callable[..., list[float]]

_ANSWER_LINE = re.compile(rf"#### {NUMBER}", re.ASCII)


def correctness_reward(weight: float, grader: Grader) -> Reward:
    """Rewards a completion whose extracted answer (``mathtune.answers``) is the right one.

    Args:
        weight: what a right completion gets; a wrong, empty or malformed one gets 0, and so does one whose grading timed out.
        grader: compares answers, and counts those that timed out.

    Returns:
        ``correctness(completions, answer, **columns) -> list[float]``.
    """

    def correctness(completions: list[Completion], answer: list[str], **_) -> list[float]:
        given = [extract_answer(_text(completion)) for completion in completions]
        return [weight * (same is True) for same in grader.same(list(zip(answer, given, strict=True)))]

    return correctness


def format_reward(weight: float = 0.2) -> Reward:
    """Rewards a completion that ends as GSM8K's solutions do: one line ``#### N``, the last one, and no other ``####``
    (many guesses must not earn more than one).

    Args:
        weight: what such a completion gets, whether N is right or not; any other gets 0.

    Returns:
        ``format(completions, **columns) -> list[float]``.
    """

    def format(completions: list[Completion], **_) -> list[float]:
        return [weight * _ends_with_answer(_text(completion)) for completion in completions]

    return format


def checked(reward: Reward) -> Reward:
    """The same reward, stopping the run where it raises or gives something that is no finite number: trl would take NaN
    for "not applicable" and train on the rest.

    Raises:
        TrainingError: names the reward, how many completions it concerns, and the first of them.
    """

    @functools.wraps(reward)
    def watched(completions: list[Completion], **columns) -> list[float]:
        try:
            rewards = reward(completions, **columns)
        except Exception as error:
            raise TrainingError(f"the reward {reward.__name__} raised {type(error).__name__}: {error}",
                                where=f"one of {len(completions)} completions, the first: {_text(completions[0])[:80]!r}",
                                remedy="mend the reward; the last checkpoint is kept") from error
        bad = [i for i, value in enumerate(rewards) if value is None or not math.isfinite(value)]
        if bad:
            raise TrainingError(f"the reward {reward.__name__} gave {rewards[bad[0]]}, one of {len(bad)} of {len(rewards)}",
                                where=f"completion {_text(completions[bad[0]])[:80]!r}",
                                remedy="mend the reward; the last checkpoint is kept")
        return rewards

    return watched


def _ends_with_answer(text: str) -> bool:
    last_line = text.rstrip().rpartition("\n")[2]
    return text.count("####") == 1 and _ANSWER_LINE.fullmatch(last_line) is not None


def _text(completion: Completion) -> str:
    """A completion's text: itself, or what its messages say (a message of tool calls alone says nothing)."""
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] or "" for message in completion)
