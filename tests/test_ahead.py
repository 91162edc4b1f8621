"""The next chunk's tokens, made while a chunk is trained: they are there in time, or their making leaves no trace."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from mathtune.engine import Engine
from mathtune.jobs import TokeniseJob
from mathtune.stages import ahead
from mathtune.stages.ahead import next_tokenised
from tests.faults_fixtures import FIRST, SECOND, extend, ignore, prepared


@pytest.fixture
def run(make_recipe, monkeypatch):
    """Stages up to the pool; the engine in this process notes its jobs in ``run.jobs``, the events go to ``run.events``."""
    monkeypatch.setattr(ahead, "WORTH_ROWS", 1)
    with prepared(make_recipe(chunks={"size": 96, "end": 192, "replay": 0.25})) as run:
        run.jobs, run.events, engine = [], [], Engine(ignore)

        def note(job):
            run.jobs.append(job)
            return engine.run(job)

        run.work.engine.run = note
        run.work.listeners.append(run.events.append)
        yield run


def until(condition):
    """What a condition gives once it gives something."""
    for _ in range(1200):
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail("nothing after 60 s")


def engines() -> list[int]:
    """Engine processes that this one has started."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "mathtune.engine" in line]


def is_over() -> bool:
    return "ahead" not in [thread.name for thread in threading.enumerate()]


def made(run, stage: str) -> set[str]:
    return set(run.work.artifacts.folders.names(stage))


def test_nothing_is_started_where_there_is_nothing_to_gain(run, monkeypatch):
    def start(*_):
        pytest.fail("started")

    monkeypatch.setattr(ahead, "Ahead", start)
    with next_tokenised(run.work, run.base, run.parts, FIRST, None):
        extend(run, FIRST)
    with next_tokenised(run.work, run.base, run.parts, FIRST, SECOND):  # FIRST has its place in the chain
        pass
    monkeypatch.setattr(ahead, "WORTH_ROWS", 97)
    with next_tokenised(run.work, run.base, run.parts, SECOND, FIRST):
        pass
    assert not [event for event in run.events if event["event"] == "ahead"]


@pytest.mark.slow
def test_the_next_chunk_finds_rows_and_tokens_made_by_a_process_out_of_the_engines_way(run):
    with next_tokenised(run.work, run.base, run.parts, FIRST, SECOND):
        pid = until(engines)[0]
        until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + ahead.NICE)
        assert b"CUDA_VISIBLE_DEVICES=\0" in Path(f"/proc/{pid}/environ").read_bytes()
        extend(run, FIRST)
        until(is_over)
        assert not engines()  # it stays no longer than its work takes
    event = run.events[-1]
    assert (event["event"], event["state"], event["title"]) == ("ahead", "done", "[96:192)") and event["seconds"] > 0
    assert [event["event"] for event in run.events].count("ready") == 0  # of the engine alone

    before = made(run, "chunk") | made(run, "tokens")
    run.jobs.clear()
    link = extend(run, SECOND)
    assert not [job for job in run.jobs if isinstance(job, TokeniseJob)]
    assert made(run, "chunk") | made(run, "tokens") == before
    assert link.result["examples"] == 96 + 24  # the replayed rows are of the range that was being trained


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed", "too late", "full disk"])
def test_whatever_becomes_of_it_the_chain_is_the_same(run, make_recipe, monkeypatch, tmp_path, fault):
    alone = make_recipe(chunks={"size": 96, "end": 192, "replay": 0.25}, storage={"root": str(tmp_path / "alone"),
                                                                                "runs": str(tmp_path / "runs")})
    with prepared(alone) as undisturbed:
        expected = [extend(undisturbed, wanted).adapter_digest for wanted in (FIRST, SECOND)]

    if fault == "full disk":
        def no_room(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ahead, "range_rows", no_room)
    with next_tokenised(run.work, run.base, run.parts, FIRST, SECOND):
        if fault == "killed":
            os.kill(until(engines)[0], signal.SIGKILL)
            until(is_over)
        digests = [extend(run, FIRST).adapter_digest]
    told = next(event for event in run.events if event["event"] in ("ahead", "notice"))
    if fault == "too late":
        assert (told["event"], told["state"]) == ("ahead", "given up")
    else:
        assert {"killed": "signal SIGKILL", "full disk": "No space left"}[fault] in told["text"]
    assert not engines() and not [path for path in tmp_path.rglob(".staging-*")]
    assert [*digests, extend(run, SECOND).adapter_digest] == expected


@pytest.mark.slow
def test_it_ends_with_whatever_ends_the_training(run):
    with pytest.raises(KeyboardInterrupt):
        with next_tokenised(run.work, run.base, run.parts, FIRST, SECOND):
            until(engines)
            began = time.monotonic()
            raise KeyboardInterrupt
    assert time.monotonic() - began < 3 and not engines()
    assert run.events[-1]["state"] == "given up"
