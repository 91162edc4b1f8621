"""Proposed answers, right ones and wrong ones, of the kinds that people and models write.

A mistake in a step carries on: every later step is worked out rightly from the wrong result, so that only the wrong
step itself, the question, or the line ``#### N`` gives it away.
"""

from collections.abc import Callable
from typing import NamedTuple

from mathtune.demo.draw import Draw
from mathtune.demo.problem import Problem, Working, work_out
from mathtune.demo.words import WRONG_UNITS

OTHER_OPERATORS = {"+": "-", "-": "+", "*": "+", "/": "-"}
SLIPS = (1, 1, 2, 10, 10, 100)


class Proposal(NamedTuple):
    """What somebody answered: the answer (empty if unfinished), the worked solution, and whether it is right."""

    answer: str
    solution: str
    is_correct: bool


def right(problem: Problem, draw: Draw) -> Proposal:
    """The right answer, now and then with its unit."""
    working = work_out(problem.steps)
    return Proposal(_with_unit(str(working.result), problem, draw), working.text(), True)


def wrong(problem: Problem, draw: Draw) -> Proposal:
    """An answer spoilt by one mistake, of a kind that is possible in this problem. Its number differs from the right
    one unless the mistake is the unit."""
    truth = str(work_out(problem.steps).result)
    while True:
        proposal = draw.pick(_WEIGHTED)(problem, draw)
        if proposal is not None:
            number = proposal.solution.rpartition("#### ")[2]
            if number != truth or not proposal.answer or proposal.answer == f"{truth} {WRONG_UNITS.get(problem.unit)}":
                return proposal


def slip(problem: Problem, draw: Draw) -> Proposal | None:
    """One step has a wrong result: a carry forgotten, a neighbouring product."""
    at, size = draw.below(len(problem.steps)), draw.pick(SLIPS)
    return _wrong(problem, work_out(problem.steps, at, -size if draw.chance(50) else size), draw)


def operation(problem: Problem, draw: Draw) -> Proposal | None:
    """One step uses another operation than the question asks for."""
    at = draw.below(len(problem.steps))
    left, operator, right = problem.steps[at]
    changed = (left, OTHER_OPERATORS[operator], right)
    return _wrong(problem, work_out((*problem.steps[:at], changed, *problem.steps[at + 1:])), draw)


def misread(problem: Problem, draw: Draw) -> Proposal | None:
    """A number is copied from the question with two digits swapped."""
    at, side = draw.below(len(problem.steps)), draw.pick((0, 2))
    step = list(problem.steps[at])
    if not isinstance(step[side], int) or (swapped := _swap_digits(str(step[side]), draw)) is None:
        return None
    step[side] = int(swapped)
    return _wrong(problem, work_out((*problem.steps[:at], tuple(step), *problem.steps[at + 1:])), draw)


def digit_swap(problem: Problem, draw: Draw) -> Proposal | None:
    """The working is right, but two digits change places on the way to the answer."""
    working = work_out(problem.steps)
    swapped = _swap_digits(str(working.result), draw)
    return swapped and _ending(problem, working, swapped, draw)


def off_by_one(problem: Problem, draw: Draw) -> Proposal | None:
    """The working is right, but the answer is one too large or too small."""
    working = work_out(problem.steps)
    near = working.result + draw.pick((-1, 1))
    return _ending(problem, working, str(near), draw) if near >= 0 else None


def wrong_unit(problem: Problem, draw: Draw) -> Proposal | None:
    """The right number of the wrong unit."""
    if problem.unit not in WRONG_UNITS:
        return None
    working = work_out(problem.steps)
    return Proposal(f"{working.result} {WRONG_UNITS[problem.unit]}", working.text(), False)


def unfinished(problem: Problem, draw: Draw) -> Proposal:
    """The working breaks off within a step: no ``####``, no answer."""
    lines = work_out(problem.steps).lines
    kept = draw.below(len(lines))
    return Proposal("", "\n".join([*lines[:kept], lines[kept].partition(" = ")[0] + " ="]), False)


WEIGHTS: dict[Callable[[Problem, Draw], Proposal | None], int] = {
    slip: 36, operation: 22, misread: 10, digit_swap: 10, off_by_one: 8, wrong_unit: 6, unfinished: 8}
_WEIGHTED = tuple(kind for kind, weight in WEIGHTS.items() for _ in range(weight))


def _wrong(problem: Problem, working: Working | None, draw: Draw) -> Proposal | None:
    return working and _ending(problem, working, str(working.result), draw)


def _ending(problem: Problem, working: Working, answer: str, draw: Draw) -> Proposal:
    return Proposal(_with_unit(answer, problem, draw), "\n".join([*working.lines, f"#### {answer}"]), False)


def _with_unit(answer: str, problem: Problem, draw: Draw) -> str:
    return f"{answer} {problem.unit}" if problem.unit and draw.chance(40) else answer


def _swap_digits(number: str, draw: Draw) -> str | None:
    """The number with two neighbouring digits swapped; None where that changes nothing or leads with a zero."""
    places = [i for i in range(len(number) - 1)
              if number[i:i + 2].isdigit() and number[i] != number[i + 1] and (i or number[1] != "0")]
    if not places:
        return None
    i = draw.pick(places)
    return number[:i] + number[i + 1] + number[i] + number[i + 2:]
