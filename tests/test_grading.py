"""Grading: how completions end, which answers mean the same, and processes that hang, die or are killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathtune import grading
from mathtune.answers import extract_answer, same_answer
from mathtune.errors import EngineError
from mathtune.grading import Grade, Grader, answer_classes, grade

BOMB = "9^{9^{9^9}}"  # sympy computes it in C, which no signal handler of Python's interrupts
HALF = r"\frac{1}{2}"


@pytest.fixture(scope="module")
def grader():
    with Grader(cpu_seconds=0.5) as grader:
        yield grader


def workers(of: int | None = None) -> list[psutil.Process]:
    """Processes of math-verify below a process, this one if None."""
    return [child for child in psutil.Process(of).children(recursive=True) if "mathtune.expressions" in child.cmdline()]


def await_(condition):
    """Waits until a condition holds."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never came true")


@pytest.mark.parametrize(("completion", "finished", "outcome", "answer"), [
    ("#### 12", True, "right", "12"),
    ("#### 12\nand now", False, "right", "12"),  # right wherever it was cut off
    ("#### 13", True, "wrong", "13"),
    ("3 * 4 = 13, so", False, "cut off", "13"),
    ("I wonder", False, "cut off", None),
    ("I wonder", True, "unparsed", None),
    ("", True, "unparsed", None),
    (rf"\boxed{{{BOMB}}} and", False, "timed out", BOMB),  # it had given its answer before it was cut off
])
def test_how_a_completion_ends(grader, completion, finished, outcome, answer):
    (found,) = grade(["12"], [completion], [finished], grader)
    assert (found.outcome, found.given, found.correct) == (outcome, answer, outcome == "right")


def test_marks_stand_side_by_side(grader):
    completions = ["#### 18%", "#### 18\nthen 19", "it is 18.", "#### 18.0", rf"\boxed{{18}} {HALF}"]
    found = grade(["18"] * 5, completions, [True] * 5, grader)
    assert [one.correct for one in found] == [False, True, True, True, True]
    assert [one.strict for one in found] == [True, True, False, False, False]
    assert [one.flexible for one in found] == [True, False, True, False, False]


@pytest.mark.slow
def test_one_that_hangs_times_out_and_the_others_are_graded_in_order():
    with Grader(cpu_seconds=0.5) as grader:
        pairs = [("0.5", HALF), ("1", BOMB), ("0.5", r"\frac{1}{3}"), ("0.5", r"\frac{2}{4}"), ("7", "7"), ("2", r"\sqrt{4}")]
        assert grader.same(pairs) == [True, None, False, True, True, True]
        assert grader.timed_out == 1
        mine = workers()
    assert not any(process.is_running() for process in mine)


@pytest.mark.slow
def test_killed_in_the_middle_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(grading, "PROCESSES", 1)
    before = set(workers())
    with Grader(cpu_seconds=1) as grader:
        assert grader.same([("0.5", HALF)]) == [True]
        (first,) = set(workers()) - before
        started = first.cpu_times().user
        answers = []
        asking = threading.Thread(target=lambda: answers.extend(
            grader.same([("0.5", HALF), ("1", BOMB), ("0.5", r"\frac{2}{4}"), ("3", r"\sqrt{9}")])))
        asking.start()
        await_(lambda: first.cpu_times().user > started + 0.3)  # it is at the second one
        first.kill()
        asking.join()
        assert answers == [True, None, True, True] and grader.timed_out == 1
        idle = set(workers()) - before
        for process in idle:
            process.send_signal(signal.SIGKILL)
        assert grader.same([("0.5", HALF)]) == [True]
        assert not set(workers()) & idle


def test_memory_that_runs_out_is_a_time_out(monkeypatch):
    code = """import sys, mathtune.expressions as program
program.same_expression = lambda gold, given: bytes(program.MEMORY if "frac" in given else 1)
sys.argv[1:] = ["5", "60"]
program.main()"""
    run = subprocess.Popen
    monkeypatch.setattr(grading.subprocess, "Popen", lambda command, **kwargs: run([sys.executable, "-c", code], **kwargs))
    with Grader() as grader:
        assert grader.same([("0.5", HALF)]) == [None]


def test_a_math_verify_that_cannot_start_is_an_error_and_no_verdict(monkeypatch):
    monkeypatch.setattr(grading.sys, "executable", "/bin/false")
    with Grader() as grader, pytest.raises(EngineError, match="math-verify ended with status 1"):
        grader.same([("0.5", HALF)])


@pytest.mark.slow
def test_several_threads_share_a_grader(grader):
    answers = {}

    def ask(number):
        answers[number] = grader.same([(str(number), rf"\frac{{{2 * number}}}{{2}}"), (str(number), r"\frac{1}{7}")] * 3)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [True, False] * 3 for number in range(6)}
    assert len(workers()) <= grading.PROCESSES


def test_numbers_start_no_process():
    before = set(workers())
    with Grader() as grader:
        assert grader.same([("1,000", "$1000"), ("5", None), ("Monday", "monday"), ("5", "6")]) == [True, False, True, False]
        assert set(workers()) <= before


def test_nothing_is_left_when_the_grader_is_closed_in_the_middle():
    grader = Grader(cpu_seconds=30)
    asking = threading.Thread(target=lambda: pytest.raises(CancelledError, grader.same, [("1", BOMB)] * 20))
    before = set(workers())
    asking.start()
    await_(lambda: set(workers()) - before)
    grader.close()
    asking.join()
    assert set(workers()) <= before


@pytest.mark.slow
def test_nothing_is_left_of_a_killed_parent():
    code = (f"from mathtune.grading import Grader; grader = Grader(cpu_seconds=1.5); grader.same([('0.5', {HALF!r})]);"
            f"print('at work', flush=True); grader.same([('1', {BOMB!r})] * 9)")
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "at work\n"
    await_(lambda: any(process.cpu_times().user > 1 for process in workers(parent.pid)))
    left = workers(parent.pid)
    parent.kill()
    parent.wait()
    await_(lambda: not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left))


def test_workers_hold_no_torch():
    code = "import sys, mathtune.expressions, math_verify; assert not {'torch', 'pydantic', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.getcwd())


def graded(given, bombs=()):
    """Grades of answers; only what ``answer_classes`` looks at."""
    return [Grade(answer, False, False, False, "timed out" if answer in bombs else "wrong") for answer in given]


def test_answers_that_mean_the_same_are_one_class(grader):
    given = ["12", None, BOMB, "$12.00", "13", HALF, "0.5", "13.0", None, "12", r"\frac{2}{4}", BOMB, "x+1", "1+x"]
    before = grader.timed_out
    assert answer_classes(graded(given, [BOMB]), grader) == [0, None, 2, 0, 4, 5, 5, 4, None, 0, 5, 2, 12, 12]
    assert grader.timed_out == before  # it is not compared again
    assert answer_classes([], grader) == [] and answer_classes(graded([None]), grader) == [None]


@given(st.lists(st.one_of(st.none(), st.sampled_from(["1", "1.0", "2", "$2", "4/2", "-1", "50%", "1/2", "five"])), max_size=12))
def test_classes_of_plain_answers(given):
    found = answer_classes(graded(given), Grader())
    for place, (answer, first) in enumerate(zip(given, found, strict=True)):
        assert first == next((i for i in range(place + 1) if answer is not None and given[i] is not None
                              and same_answer(given[i], answer)), None)


@settings(deadline=None)  # an answer like 0/0 is an expression
@given(st.lists(st.tuples(st.sampled_from(["1", "-2.5", "1/3"]), st.text(max_size=30), st.booleans()), max_size=5))
def test_every_completion_ends_in_one_of_the_ways(grader, rows):
    golds, completions, finished = ([row[i] for row in rows] for i in range(3))
    for completion, ended, found in zip(completions, finished, grade(golds, completions, finished, grader), strict=True):
        assert found.given == extract_answer(completion) and found.correct == (found.outcome == "right")
        assert found.outcome != "unparsed" or (found.given is None and ended)
        assert found.outcome != "cut off" or not ended
