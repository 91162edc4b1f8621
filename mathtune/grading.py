"""Grades completions: the project's own answer and its equivalence beside GSM8K's two marks, and how each one ended.

Expressions are compared by math-verify in processes of their own (``mathtune.expressions``), which may take too long, run out
of memory or be killed without anything else being lost. Numbers and words need none of them: GSM8K starts no process.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from mathtune.answers import extract_answer, same_answer
from mathtune.errors import EngineError
from mathtune.expressions import CPU_SECONDS, OUT_OF_MEMORY, READY, WALL_SECONDS
from mathtune.figures import Outcome
from mathtune.gsm8k_marks import exact_match, flexible_answer, strict_answer

PROCESSES = min(4, os.cpu_count() or 1)
GAVE_UP = (-signal.SIGPROF, -signal.SIGALRM, OUT_OF_MEMORY)  # exit statuses that trying again would repeat


@dataclass(frozen=True)
class Grade:
    """What is found in one completion; the fields are columns of ``schemas.SOLUTIONS``."""

    given: str | None
    correct: bool
    strict: bool
    flexible: bool
    outcome: Outcome


class Ended(Exception):
    """A process ended before it answered; says with which exit status (negative: by which signal)."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


class Grader:
    """Compares answers. Processes start when the first expression comes; ``close`` ends them. Any thread may use it, several at
    a time.

    Args:
        cpu_seconds: of one comparison of expressions, on a processor.
        notice: told once, when the first comparison times out.

    Attributes:
        timed_out: comparisons that took too long or too much memory.
    """

    def __init__(self, cpu_seconds: float = CPU_SECONDS, notice: Callable[[str], None] | None = None):
        self.cpu_seconds, self.notice, self.timed_out = cpu_seconds, notice, 0
        self._threads = ThreadPoolExecutor(PROCESSES, thread_name_prefix="grading")
        self._mine = threading.local()  # each thread keeps its process
        self._processes: set[_Process] = set()
        self._lock, self._closed = threading.Lock(), False

    def same(self, pairs: Sequence[tuple[str, str | None]]) -> list[bool | None]:
        """For each pair of a right and a given answer whether they mean the same (``answers.same_answer``); None: it timed out.

        Raises:
            EngineError: math-verify cannot be started.
        """
        verdicts = [same_answer(gold, given) for gold, given in pairs]
        expressions = [i for i, verdict in enumerate(verdicts) if verdict is None]
        for i, verdict in zip(expressions, self._threads.map(self._same_expression, [pairs[i] for i in expressions]),
                              strict=True):
            verdicts[i] = verdict
        return verdicts

    def close(self) -> None:
        """Ends all processes, and comparisons that still wait for one."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            running, self._processes = self._processes, set()
        for process in running:
            process.kill()
        self._threads.shutdown()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _same_expression(self, pair: tuple[str, str]) -> bool | None:
        for _ in range(2):  # once more where something else killed the process
            process = self._process()
            try:
                return process.ask(pair)
            except Ended as ended:
                self._forget(process)
                if ended.status in GAVE_UP or self._closed:
                    break
        self._count_time_out(pair)
        return None

    def _process(self) -> "_Process":
        """This thread's process, a new one where it has none that lives."""
        process = getattr(self._mine, "process", None)
        if process is None or not process.alive:
            process = self._mine.process = _Process(self.cpu_seconds)
            with self._lock:
                self._processes.add(process)
            if self._closed:
                process.kill()
        return process

    def _forget(self, process: "_Process") -> None:
        with self._lock:
            self._processes.discard(process)

    def _count_time_out(self, pair: tuple[str, str]) -> None:
        with self._lock:
            self.timed_out += 1
            first = self.timed_out == 1
        if first and self.notice and not self._closed:
            self.notice(f"math-verify took too long over {pair[1]!r} (is it {pair[0]!r}?): such an answer counts as not right")


class _Process:
    """One process of ``mathtune.expressions``, which answers one question at a time.

    Raises:
        EngineError: it ended before it was ready.
    """

    def __init__(self, cpu_seconds: float):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mathtune.expressions", str(cpu_seconds), str(WALL_SECONDS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._process.stdout.readline().strip() != READY:
            raise EngineError(f"the process of math-verify ended with status {self._process.wait()}", where="grading",
                              remedy="python -c 'import math_verify' says why")

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def ask(self, pair: tuple[str, str]) -> bool:
        """Whether two expressions are equal.

        Raises:
            Ended: it ended instead.
        """
        with suppress(BrokenPipeError):
            print(json.dumps(pair), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer.endswith("\n"):
            raise Ended(self._process.wait())
        return json.loads(answer)

    def kill(self) -> None:
        """Ends it, whatever it does."""
        self._process.kill()
        self._process.wait()


def grade(golds: Sequence[str], completions: Sequence[str], finished: Sequence[bool], grader: Grader) -> list[Grade]:
    """Grades completions; ``finished``: which of them were not cut off by the length limit.

    How one ended is the first that holds: it is *right*; its grading *timed out*; it was *cut off*; it is *unparsed* (no answer
    was found); else it is *wrong*. So a right answer counts wherever the completion was cut off, and a wrong number in one that
    was cut off is not held against it as an answer.
    """
    given = [extract_answer(completion) for completion in completions]
    verdicts = grader.same(list(zip(golds, given, strict=True)))
    return [
        Grade(given=answer, correct=same is True, strict=exact_match(strict_answer(completion), gold),
              flexible=exact_match(flexible_answer(completion), gold), outcome=_outcome(same, ended, answer))
        for gold, completion, answer, same, ended in zip(golds, completions, given, verdicts, finished, strict=True)]


def answer_classes(grades: Sequence[Grade], grader: Grader) -> list[int | None]:
    """For each of several graded answers the place of the first one that means the same (its own, where none before does); None
    where there is no answer. One that timed out before is the same as its own text alone, since it would time out again."""
    places: dict[str, int] = {}  # of each text, the first of its class
    firsts: list[str] = []  # of each class that can be compared
    for place, found in enumerate(grades):
        if found.given is None or found.given in places:
            continue
        places[found.given] = place
        if found.outcome == "timed out":
            continue
        verdicts = grader.same([(first, found.given) for first in firsts])
        same = next((first for first, verdict in zip(firsts, verdicts, strict=True) if verdict), None)
        if same is None:
            firsts.append(found.given)
        else:
            places[found.given] = places[same]
    return [None if found.given is None else places[found.given] for found in grades]


def _outcome(same: bool | None, ended: bool, answer: str | None) -> Outcome:
    if same:
        return "right"
    if same is None:
        return "timed out"
    if not ended:
        return "cut off"
    return "unparsed" if answer is None else "wrong"
