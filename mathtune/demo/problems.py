"""Seeded maths problems for the demo: rows for a verifier or a solver, and plain text to pretrain on.

The same arguments give the same bytes on every machine and Python version. Left out: torch, files, label words.

Splits never share a question, whatever their seeds: the SHA-256 of a question's normalised text says which split it
belongs to, and a split keeps only its own. Problems of the held-out families belong to the split ``held_out``, all of
them, and to no other.
"""

import hashlib
import re
from collections.abc import Callable, Iterator

import pyarrow as pa

from mathtune.demo import calculations, stories
from mathtune.demo.draw import Draw
from mathtune.demo.mistakes import right, wrong
from mathtune.demo.problem import Problem, work_out
from mathtune.demo.words import PROMPT_WORDS

VERSION = 2  # to be raised whenever the same arguments give other bytes

Family = Callable[[Draw], Problem]
_TRAINED: tuple[Family, ...] = (
    calculations.addition, calculations.subtraction, calculations.multiplication, calculations.division,
    calculations.equations, calculations.conversion, calculations.averages, calculations.time, calculations.geometry,
    stories.money, stories.rates, stories.fractions, stories.percentages, stories.ages, stories.sharing,
    stories.ratios, stories.two_steps, stories.three_steps)
_HELD_OUT: tuple[Family, ...] = (calculations.sequences, stories.workers)

TRAINED_FAMILIES: tuple[str, ...] = tuple(family.__name__ for family in _TRAINED)
HELD_OUT_FAMILIES: tuple[str, ...] = tuple(family.__name__ for family in _HELD_OUT)
FAMILIES: tuple[str, ...] = TRAINED_FAMILIES + HELD_OUT_FAMILIES

_SPLIT_OF_EIGHTH = ("pretrain",) * 4 + ("train",) * 2 + ("test", "validation")
SPLITS: tuple[str, ...] = ("train", "test", "validation", "held_out", "pretrain")

PERCENT_RIGHT = 45  # of the proposals drawn; equal ones of a question count once, which leaves 60/40 False/True as
# in the competition's data
PERCENT_DRILL = 25  # of the pretraining documents that are bare arithmetic
PERCENT_WORDS = 5  # of the pretraining documents that are prompt words in random order
WORDS = 24  # of such a document
PERCENT_REVIEWED = 65  # of the pretraining documents that are problems: those that look at an attempt once more

SOLVER_ROWS = pa.schema([("question", pa.string()), ("answer", pa.string()), ("solution", pa.string()),
                         ("family", pa.string())])
VERIFIER_ROWS = SOLVER_ROWS.append(pa.field("is_correct", pa.bool_()))


def normalise(question: str) -> str:
    """The question in small letters, every run of anything but letters and digits as one space."""
    return " ".join(re.findall(r"[a-z0-9]+", question.lower()))


def split_of(question: str) -> str:
    """The split that a question of the trained families belongs to."""
    return _SPLIT_OF_EIGHTH[hashlib.sha256(normalise(question).encode()).digest()[0] % 8]


def problems(draw: Draw, split: str) -> Iterator[Problem]:
    """Endless problems of a split, all families equally often; a question may come again."""
    families = _HELD_OUT if split == "held_out" else _TRAINED
    while True:
        problem = draw.pick(families)(draw)
        if split == "held_out" or split_of(problem.question) == split:
            yield problem


def rows(task: str, n: int, seed: int, split: str) -> pa.Table:
    """The first ``n`` rows of a stream of rows: fewer rows are a prefix of more.

    Args:
        task: ``"solver"`` (right answers, every question once) or ``"verifier"`` (proposed answers, about 40% of them
            right; half of the questions have one proposal, the others two or three different ones).
        n: number of rows.
        seed: another seed gives other problems of the same split.
        split: ``"train"``, ``"test"``, ``"validation"``, ``"pretrain"`` or ``"held_out"``.

    Returns:
        A table with the string columns ``question``, ``answer``, ``solution`` (step lines, then ``#### N``) and
        ``family``; for a verifier also ``is_correct`` (bool). An unfinished proposal has an empty answer.
    """
    if task not in ("solver", "verifier") or split not in SPLITS:
        raise ValueError(f"no rows of task {task!r} and split {split!r}")
    draw = Draw("mathtune-demo", VERSION, task, split, seed)
    schema = VERIFIER_ROWS if task == "verifier" else SOLVER_ROWS
    columns = list(zip(*_stream(draw, task, split, n), strict=True)) or [()] * len(schema)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)


def corpus(n: int, seed: int) -> Iterator[str]:
    """Text to pretrain on: ``n`` documents, all of whose questions are of the split ``pretrain``.

    About one in four is bare arithmetic, one in twenty the words of prompts in random order, so that their tokens are
    known but mean nothing. Of the others some are a problem with its right solution (question, step lines, ``#### N``);
    in the rest somebody looks at an attempt once more and, if it is spoilt, solves the problem again (``_reviewed``).
    """
    draw = Draw("mathtune-demo", VERSION, "corpus", "pretrain", seed)
    stream = problems(draw, "pretrain")
    for _ in range(n):
        if draw.chance(PERCENT_WORDS):
            yield _words(draw, WORDS)
        elif draw.chance(PERCENT_DRILL):
            yield "\n".join(_drill(draw) for _ in range(4))
        elif draw.chance(PERCENT_REVIEWED):
            yield _reviewed(next(stream), draw)
        else:
            problem = next(stream)
            yield f"{problem.question}\n{work_out(problem.steps).text()}"


def _reviewed(problem: Problem, draw: Draw) -> str:
    """An attempt with its answer on a line of its own, then words of prompts that mean nothing. If a mistake spoilt the
    attempt the problem is solved again, after ``Again:``; if none did the text ends. So a model that is to foretell how
    the text goes on must look for mistakes, and no word ever says what it found."""
    attempt = (wrong if draw.chance(50) else right)(problem, draw)
    words = _words(draw, draw.between(1, 6)).strip()
    text = f"{problem.question}\n{attempt.solution}\nAnswer: {attempt.answer}\n{words}\n"
    return text if attempt.is_correct else f"{text}Again:\n{work_out(problem.steps).text()}"


def _words(draw: Draw, n: int) -> str:
    """``n`` words of prompts in random order, some with a sign behind them."""
    return " ".join(draw.pick(PROMPT_WORDS) + draw.pick(("", "", "", "?", ":", "\n")) for _ in range(n))


def _stream(draw: Draw, task: str, split: str, n: int) -> Iterator[tuple]:
    """``n`` rows as tuples in the order of the columns; no question comes again later."""
    seen, made = set(), 0
    for problem in problems(draw, split):
        if made == n:
            return
        if (key := normalise(problem.question)) in seen:
            continue
        seen.add(key)
        for answer, solution, is_correct in _proposals(problem, draw, task)[:n - made]:
            made += 1
            row = problem.question, answer, solution, problem.family
            yield (*row, is_correct) if task == "verifier" else row


def _proposals(problem: Problem, draw: Draw, task: str) -> list[tuple[str, str, bool]]:
    """The right answer for a solver; for a verifier one to three different proposals."""
    if task == "solver":
        working = work_out(problem.steps)
        return [(str(working.result), working.text(), True)]
    many = draw.pick((1, 1, 2, 3))
    made = [(right if draw.chance(PERCENT_RIGHT) else wrong)(problem, draw) for _ in range(many)]
    return list(dict.fromkeys(made))


def _drill(draw: Draw) -> str:
    """One line of arithmetic, of the sizes that the problems' steps have."""
    operator = draw.pick("+-*/")
    if operator == "+":
        a, b = draw.between(1, 999), draw.between(1, 999)
        return f"{a} + {b} = {a + b}"
    if operator == "-":
        a, b = draw.between(1, 999), draw.between(0, 999)
        return f"{a + b} - {b} = {a}"
    a, b = draw.between(1, 99), draw.between(2, 12)
    return f"{a} * {b} = {a * b}" if operator == "*" else f"{a * b} / {b} = {a}"
