"""How far the stage at work is, as a progress artifact on its page in Prefect: steps, tokens a second or reward, time left.

It is made from the events of the workspace, and sent by ``tasks.outbox``. Leaves out the terminal (``flows.display``).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from uuid import UUID

from prefect.artifacts import Artifact, ProgressArtifact
from prefect.runtime import task_run

from mathtune.events import Event
from mathtune.report.words import loss
from mathtune.workspace import Workspace
from tasks import outbox
from tasks.artifacts import artifact_key
from tasks.servers import is_configured

WORTH_SECONDS = 5  # scoring that is over before is not worth a line of its own
DOT = " · "


@dataclass(frozen=True)
class Mark:
    """A place from which speed is measured.

    Attributes:
        done: steps or rows.
        time: seconds since the epoch.
        tokens, seconds: what training had counted by then; None where it is not known.
    """

    done: int
    time: float
    tokens: int | None = None
    seconds: float | None = None


class Reading:
    """What a stage's events say of how far it is.

    Attributes:
        percent: from 0 to 100; None before there is something to show.
        text: the same in words, with speed and time left.
        place: the part of it that says how far: ``step 120 of 625``.
    """

    def __init__(self) -> None:
        self.percent: float | None = None
        self.text = self.place = ""
        self._from: Mark | None = None  # where this attempt began
        self._counted: Mark | None = None  # first place of this attempt at which tokens were known
        self._work: tuple[str, int] | None = None  # which rows are gone through

    def heed(self, event: Event) -> bool:
        """Takes an event in. Returns whether there is something new to show."""
        match event:
            case {"event": "phase", "steps": steps, "step": step}:  # training begins, or goes on
                self._from = Mark(step, event["time"])
                self._counted = Mark(0, event["time"], 0, 0.0) if step == 0 else None
                self._at("step", step, steps)
                self.text = self.place + (f"{DOT}goes on from its checkpoint" if step else "")
            case {"event": "phase", "text": text}:
                self.text = f"{text}{DOT}{self.place}"
            case {"event": "step", "step": step, "steps": steps}:
                self._at("step", step, steps)
                value = f"reward {event['reward']:.2f}" if "reward" in event else f"loss {loss(event['loss'])}"
                self.text = DOT.join([self.place, *self._speed(event), *self._left(step, steps, event["time"]), value])
            case {"event": "progress", "text": text, "done": done, "total": total}:
                if self._work != (text, total):
                    self._work, self._from = (text, total), Mark(done, event["time"])
                self._at(text, done, total)
                self.text = DOT.join([self.place, *self._left(done, total, event["time"])])
            case _:
                return False
        return self.percent is not None

    def _at(self, what: str, done: int, total: int) -> None:
        self.percent, self.place = 100 * done / total, f"{what} {done:,} of {total:,}"

    def _speed(self, event: Event) -> list[str]:
        """Tokens a second of this attempt; a reward is worth more than them."""
        if "reward" in event:
            return []
        now = Mark(event["step"], event["time"], event["tokens"], event["seconds"])
        before, self._counted = self._counted, self._counted or now
        return [f"{(now.tokens - before.tokens) / (now.seconds - before.seconds):,.0f} tokens/s"] if before else []

    def _left(self, done: int, total: int, now: float) -> list[str]:
        """By the speed of this attempt alone: the machine may be another one than before."""
        if self._from is None or done <= self._from.done or done == total:
            return []
        return [f"about {about((total - done) * (now - self._from.time) / (done - self._from.done))} left"]


def about(seconds: float) -> str:
    """A time as one says it: ``40 s``, ``4 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class StageProgress:
    """Listens to a workspace while a stage is at work, and shows how far it is from the first event that tells.

    Args:
        work: the workspace.
        title: the stage's.
        show: takes an artifact, and whether it is to be seen at once.
        clock: seconds.
    """

    def __init__(self, work: Workspace, title: str, show: Callable[[Artifact, bool], None] = outbox.show,
                 clock: Callable[[], float] = time.monotonic):
        self._work, self._show, self._clock = work, show, clock
        self._key = artifact_key("progress", f"{work.recipe.name}-{title}")
        self._task_run = UUID(task_run.id) if task_run.id else None
        self._reading, self._began, self._shown = Reading(), clock(), False

    def __enter__(self) -> "StageProgress":
        if is_configured():  # nobody watches a run's own server
            self._work.listeners.append(self._heed)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._heed in self._work.listeners:
            self._work.listeners.remove(self._heed)
        if error is not None and self._shown:
            why = (str(error).splitlines() or [kind.__name__])[0]
            self._put(self._reading.percent, f"stopped at {self._reading.place}: {why}", True)

    def done(self, summary: str) -> None:
        """The stage is done; what came of it takes the place of how far it is."""
        if self._shown:
            self._put(100, summary, True)

    def _heed(self, event: Event) -> None:
        if not self._reading.heed(event):
            return
        if event["event"] == "progress" and not self._shown and self._clock() - self._began < WORTH_SECONDS:
            return
        self._put(self._reading.percent, self._reading.text, not self._shown)

    def _put(self, percent: float, text: str, soon: bool) -> None:
        self._shown = True
        self._show(ProgressArtifact(key=self._key, progress=percent, description=text, task_run_id=self._task_run), soon)
