"""A problem and its working: steps that can be worked out rightly or, with a slip in one of them, wrongly.

What a step says is kept apart from its result, so that a mistake in one step carries on into the next ones.
"""

from decimal import Decimal
from typing import NamedTuple

LARGEST = 20_000  # results of wrong workings beyond this would give themselves away

Value = int | Decimal


class Result(NamedTuple):
    """Stands for the result of an earlier step (counted from 0) where a step needs a number."""

    step: int


R0, R1, R2 = Result(0), Result(1), Result(2)
Step = tuple[Value | Result, str, Value | Result]


class Problem(NamedTuple):
    """A question with its right working.

    Attributes:
        family: the kind of problem, one of ``mathtune.demo.problems.FAMILIES``.
        question: the text.
        steps: ``(left, operator, right)`` with operators ``+ - * /``; the last step's result is the answer.
        unit: what the answer counts, if a mistake in it is to be thought of (``"minutes"``); else empty.
    """

    family: str
    question: str
    steps: tuple[Step, ...]
    unit: str = ""


class Working(NamedTuple):
    """Lines such as ``"3 * 4 = 12"`` and the last line's result."""

    lines: list[str]
    result: Value

    def text(self) -> str:
        """The lines and ``#### N``, as in GSM8K."""
        return "\n".join([*self.lines, f"#### {self.result}"])


def work_out(steps: tuple[Step, ...], slip_at: int = -1, slip: int = 0) -> Working | None:
    """Works the steps out, adding ``slip`` to the result of step ``slip_at`` and going on with what that gives.

    Returns:
        The working, or None where a result is negative, not whole after a division, or beyond ``LARGEST``.
    """
    lines, results = [], []
    for index, (left, operator, right) in enumerate(steps):
        if isinstance(left, Result):
            left = results[left.step]
        if isinstance(right, Result):
            right = results[right.step]
        if operator == "+":
            result = left + right
        elif operator == "-":
            result = left - right
        elif operator == "*":
            result = left * right
        elif right and not left % right:
            result = left // right
        else:
            return None
        if index == slip_at:
            result += slip
        if not 0 <= result <= LARGEST:
            return None
        results.append(result)
        lines.append(f"{left} {operator} {right} = {result}")
    return Working(lines, results[-1])
