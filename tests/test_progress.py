"""How far a stage is, on its page in Prefect: what its events say, and a server that is slow, away, or refuses."""

import socket
import threading
import uuid
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow
from prefect.artifacts import MarkdownArtifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from mathtune.stages import Outcome
from tasks import outbox, progress
from tasks.outbox import Outbox, open_outbox
from tasks.progress import Reading, StageProgress, about
from tasks.states import run_stage, stage_task

SERVER = {PREFECT_API_URL: "http://127.0.0.1:9/api"}


def phase(step, steps, time=0.0):
    return {"event": "phase", "text": "training", "step": step, "steps": steps, "time": time}


def step(number, steps, time, tokens, seconds, **figures):
    return {"event": "step", "step": number, "steps": steps, "time": time, "tokens": tokens, "seconds": seconds,
            **(figures or {"loss": 0.4123})}


def scoring(done, total, time, text="scoring"):
    return {"event": "progress", "text": text, "done": done, "total": total, "time": time}


def read(*events):
    """Percent and text after events."""
    reading = Reading()
    for event in events:
        reading.heed(event)
    return reading.percent, reading.text


def test_training_says_steps_speed_time_left_and_loss():
    begun = [{"event": "phase", "text": "loading base", "time": 0.0}, phase(0, 625, 10.0)]
    assert read(*begun[:1])[0] is None
    assert read(*begun) == (0, "step 0 of 625")
    assert read(*begun, step(120, 625, 70.0, 1_266_540, 60.0)) == (
        19.2, "step 120 of 625 · 21,109 tokens/s · about 4 min left · loss 0.412")
    assert read(*begun, step(625, 625, 70.0, 6250, 60.0)) == (100, "step 625 of 625 · 104 tokens/s · loss 0.412")


def test_what_goes_on_starts_at_its_step_and_counts_this_attempts_speed_alone():
    """The 100 steps before took 10 s each, these take 1 s; the counts of tokens and seconds go on from before."""
    resumed = [{"event": "resumed", "step": 100, "time": 5.0}, phase(100, 200, 10.0)]
    assert read(*resumed) == (50, "step 100 of 200 · goes on from its checkpoint")
    first, later = step(101, 200, 11.0, 101_000, 1001.0), step(120, 200, 30.0, 120_000, 1020.0)
    assert read(*resumed, first)[1] == "step 101 of 200 · about 2 min left · loss 0.412"
    assert read(*resumed, first, later) == (60, "step 120 of 200 · 1,000 tokens/s · about 80 s left · loss 0.412")


def test_an_engine_that_dies_on_the_way_is_not_counted():
    died = [phase(0, 100, 0.0), step(50, 100, 50.0, 50_000, 50.0), {"event": "phase", "text": "loading base", "time": 500.0}]
    assert read(*died) == (50, "loading base · step 50 of 100")
    again = [phase(40, 100, 600.0), step(41, 100, 601.0, 41_000, 42.0), step(60, 100, 620.0, 60_000, 61.0)]
    assert read(*died, *again) == (60, "step 60 of 100 · 1,000 tokens/s · about 40 s left · loss 0.412")


def test_grpo_says_its_reward():
    assert read(phase(0, 20, 0.0), step(5, 20, 100.0, 900, 100.0, loss=0.0, reward=0.618))[1] == (
        "step 5 of 20 · about 5 min left · reward 0.62")


def test_scoring_counts_from_where_it_went_on_and_each_round_anew():
    events = [scoring(4000, 10_000, 0.0), scoring(5000, 10_000, 10.0)]
    assert read(*events[:1]) == (40, "scoring 4,000 of 10,000")
    assert read(*events) == (50, "scoring 5,000 of 10,000 · about 50 s left")
    assert read(*events, scoring(5, 100, 50.0, "words"))[1] == "words 5 of 100"


@given(st.floats(0, 1e7))
def test_a_time_is_short(seconds):
    assert len(about(seconds)) <= 8


class Work:
    """As much of a workspace as a stage asks for."""

    def __init__(self):
        self.listeners, self.events, self.seconds = [], [], {}
        self.recipe, self.artifacts = SimpleNamespace(name="demo"), SimpleNamespace(damaged=[])

    def emit(self, event, **fields):
        self.handle({"event": event, "time": 0.0, **fields})

    def handle(self, event):
        self.events.append(event)
        for listener in self.listeners:
            listener(event)


def shown_by(body, shown=None, clock=lambda: 0.0):
    """What a stage shows: percent, text, whether at once; in ``shown``, where it ends with an error."""
    work, shown = Work(), [] if shown is None else shown

    def show(artifact, soon):
        assert artifact.key == "progress-demo-train-chunk-0-600"
        shown.append((artifact.progress, artifact.description, soon))

    with temporary_settings(SERVER), StageProgress(work, "train-chunk[0:600)", show, clock) as at_work:
        body(work, at_work)
    assert work.listeners == []
    return shown


def test_a_stage_shows_its_first_step_at_once_and_its_end():
    def train(work, at_work):
        for event in [phase(0, 2), step(1, 2, 1.0, 10, 1.0), step(2, 2, 2.0, 20, 2.0)]:
            work.handle(event)
        at_work.done("2 steps")

    shown = shown_by(train)
    assert [(percent, soon) for percent, _, soon in shown] == [(0, True), (50, False), (100, False), (100, True)]
    assert shown[-1][1] == "2 steps"


def test_a_stage_that_fails_or_is_stopped_shows_where():
    for error, why in ((OSError("disk full\nmore"), "disk full"), (SystemExit(), "SystemExit")):
        def train(work, _, error=error):
            work.handle(phase(0, 4))
            work.handle(step(1, 4, 1.0, 10, 1.0))
            raise error

        shown = []
        with pytest.raises(type(error)):
            shown_by(train, shown)
        assert shown[-1] == (25, f"stopped at step 1 of 4: {why}", True)


def test_short_scoring_and_a_run_without_a_server_show_nothing():
    def score(work, at_work):
        work.handle(scoring(1, 2, 0.0))
        at_work.done("done")

    assert shown_by(score) == []
    times = iter([0.0, progress.WORTH_SECONDS])
    assert [text for _, text, _ in shown_by(score, clock=lambda: next(times))] == ["scoring 1 of 2", "done"]
    work = Work()
    with (temporary_settings(restore_defaults={PREFECT_API_URL}),
          StageProgress(work, "t", lambda *_: pytest.fail("shown"))):
        assert work.listeners == []


class Server:
    """A client that keeps what it is sent; ``answer`` is called before, and may block or raise."""

    def __init__(self, answer=lambda: None):
        self.answer, self.calls, self.arrived = answer, [], threading.Semaphore(0)

    @contextmanager
    def client(self):
        yield self

    def create_artifact(self, artifact):
        self._take("POST", artifact.key, artifact.data)
        return SimpleNamespace(id=uuid.uuid4())

    def request(self, method, path, path_params, json):
        self._take(method, path_params["id"], json["data"])

    def _take(self, method, key, data):
        try:
            self.answer()
        finally:
            self.calls.append((method, key, data))
            self.arrived.release()


def text(key, value):
    return MarkdownArtifact(key=key, markdown=str(value))


def refusal(status):
    response = httpx.Response(status, request=httpx.Request("POST", "http://x"))
    return httpx.HTTPStatusError("refused", request=response.request, response=response)


def test_nothing_waits_for_a_server_that_blocks_and_the_newest_is_sent():
    """All that is put while the first is on its way: the thread that puts goes on, and only the last of each key is sent."""
    free, notices = threading.Event(), []
    server = Server(free.wait)
    box = Outbox(notices.append, uuid.uuid4(), server.client, pause=0)
    box.put(text("progress", "first"))
    for number in range(2000):
        box.put(text("progress", number), soon=False)
        box.put(text("links", number))
    assert server.calls == []
    free.set()
    box.close()
    assert [data for _, _, data in server.calls if data != "first"] == ["1999", "1999"]
    assert notices == []


def test_a_server_that_blocks_for_ever_is_left_when_the_run_ends(monkeypatch):
    monkeypatch.setattr(outbox, "END_SECONDS", 0.05)
    free, notices = threading.Event(), []
    box = Outbox(notices.append, uuid.uuid4(), Server(free.wait).client, pause=0)
    box.put(text("progress", 1))
    box.close()
    assert notices == ["Prefect's pages do not show all of this run: its server does not answer"]
    free.set()


def test_a_server_that_was_away_gets_what_waited_and_it_is_said_once():
    away, notices = threading.Event(), []
    away.set()

    def answer():
        if away.is_set():
            raise httpx.ConnectError("refused")

    server = Server(answer)
    box = Outbox(notices.append, uuid.uuid4(), server.client, pause=0)
    box.put(text("links", "old"))
    server.arrived.acquire()
    server.arrived.acquire()  # again and again; the first has failed by now
    for value in ("newer", "newest"):
        box.put(text("links", value))
    assert notices == ["Prefect's pages do not show all of this run: its server is away: refused"]
    away.clear()
    box.close()
    assert server.calls[-1][2] == "newest" and len(notices) == 1


def test_what_is_refused_is_dropped_and_what_is_gone_is_made_again():
    answers, notices = [None, refusal(404), None, refusal(422), None], []

    def answer():
        if error := answers.pop(0):
            raise error

    server = Server(answer)
    box = Outbox(notices.append, uuid.uuid4(), server.client, pause=600)
    box.put(text("links", 1))
    server.arrived.acquire()
    box.put(text("links", 2))  # changed; the server does not know it any more; made
    server.arrived.acquire(), server.arrived.acquire()
    box.put(text("big", 3))
    server.arrived.acquire()
    box.put(text("links", 4))
    box.close()
    assert [(method, data) for method, _, data in server.calls] == [
        ("POST", "1"), ("PATCH", "2"), ("POST", "2"), ("POST", "3"), ("PATCH", "4")]
    assert notices == ["Prefect's pages do not show all of this run: its server answered 422 to big"]


def test_what_cannot_be_sent_is_said_and_the_rest_is_shown():
    """A mistake in one artifact does not end the thread; where the thread cannot work at all, that is said."""
    class Broken(MarkdownArtifact):
        def format(self):
            raise TypeError("not to be had as JSON")

    notices, server = [], Server()
    box = Outbox(notices.append, uuid.uuid4(), server.client, pause=600)
    box.put(Broken(key="bad", markdown=""), soon=False)
    box.put(text("links", 1))
    server.arrived.acquire()
    box.put(text("links", 2))
    box.close()
    assert [data for _, _, data in server.calls] == ["1", "2"]
    assert notices == ["Prefect's pages do not show all of this run: bad cannot be sent: TypeError: not to be had as JSON"]

    @contextmanager
    def no_client():
        raise ValueError("not a URL")
        yield

    box = Outbox(notices.append, uuid.uuid4(), no_client, pause=0)
    box.close()
    assert notices[1:] == ["Prefect's pages do not show all of this run: they are not sent any more: ValueError: not a URL"]


def test_a_real_connection_that_is_never_answered(monkeypatch):
    """The port listens, and nobody ever reads: as a server that is stopped."""
    monkeypatch.setattr(outbox, "END_SECONDS", 0.05)
    notices = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{silent.getsockname()[1]}/api"}):
            box = Outbox(notices.append, uuid.uuid4())
            box.put(text("links", 1))
            connection, _ = silent.accept()
            box.close()
        connection.close()
    assert len(notices) == 1


@stage_task("train-chunk[0:4)")
def train(work, events, fail):
    def body():
        for event in events:
            work.handle(event)
        if fail:
            raise OSError("the disk is full")
        return Outcome(None, False, "4 steps")

    return run_stage(work, "train-chunk[0:4)", body)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_the_servers_page_shows_the_attempt_that_stopped_and_the_one_that_went_on():
    work, runs = Work(), []

    @flow(persist_result=False)
    def run(events, fail):
        runs.append(flow_run.id)
        with open_outbox(lambda notice: pytest.fail(notice)):
            train(work, events, fail)

    with pytest.raises(OSError):
        run([phase(0, 4, 0.0), step(1, 4, 1.0, 10, 1.0), step(2, 4, 2.0, 20, 2.0)], fail=True)
    run([phase(2, 4, 9.0), step(3, 4, 10.0, 30, 3.0)], fail=False)
    with get_client(sync_client=True) as client:
        shown = [[one for one in client.read_artifacts(artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))) if one.key] for run_id in runs]  # without: Prefect's own
        titles = [client.read_task_run(one.task_run_id).name for [one] in shown]
    assert [(one.key, one.type, one.data, one.description) for [one] in shown] == [
        ("progress-demo-train-chunk-0-4", "progress", 50, "stopped at step 2 of 4: the disk is full"),
        ("progress-demo-train-chunk-0-4", "progress", 100, "4 steps")]
    assert titles == ["train-chunk[0:4)"] * 2
