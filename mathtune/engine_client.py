"""The control plane's end of the border: starts engines, sends jobs, reads events. Imports no torch.

What becomes of a job when its engine fails: died or silent → a fresh one goes on from the last checkpoint, so many times;
out of memory → a fresh one with half as much at a time; a bad number → back to the last checkpoint once. A signal to this
process is passed on: the engine saves and stops first.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from mathtune.engine_process import EngineDied, EngineProcess
from mathtune.errors import BadNumbers, EngineError, Interrupted, MathtuneError, OutOfMemory, from_dict
from mathtune.events import Event
from mathtune.gpus import Held, no_gpus
from mathtune.jobs import InspectJob, Job

STOP_SECONDS = 15  # a preempted machine gives 20 to 30; what is not saved by then is done again


class EngineClient:
    """One engine, started by the first job and kept until ``close``, or until a job needs another number of ranks.

    Args:
        log: file that takes the engine's standard output and error.
        on_event: called with every event, in this thread.
        restarts: fresh engines a job may need, because the old one died, before it fails.
        silent_seconds: without an event after which a working engine is taken for dead (a fetch from the Hub may last).
        environment: variables of the process, over those that every engine has.
        nice: how much its priority is below this process's.
        hold: waits for so many GPUs, one a rank, and holds them until the engine is gone.
    """

    def __init__(self, log: Path, on_event: Callable[[Event], None], restarts: int = 2, silent_seconds: float = 1200,
                 environment: dict[str, str] | None = None, nice: int = 0,
                 hold: Callable[[int], AbstractContextManager[Held]] = no_gpus):
        self.log, self.on_event, self.restarts, self.silent_seconds = log, on_event, restarts, silent_seconds
        self.environment, self.nice, self.hold = environment or {}, nice, hold
        self._process: EngineProcess | None = None
        self._gpus = ExitStack()  # that are held
        self._busy = self._ended = False

    def __enter__(self) -> "EngineClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, job: Job) -> dict[str, Any]:
        """The job's result; ``incidents`` in it says what happened on the way.

        Raises:
            MathtuneError: what the job raised in the engine, as its own class.
            EngineError: the engine died more often than ``restarts`` allows.
        """
        deaths, bad_numbers, incidents = 0, 0, []
        while True:
            try:
                return {**self._run_once(job), "incidents": incidents}
            except EngineDied as death:
                deaths += 1
                if deaths > self.restarts:
                    self.close()
                    raise EngineError(f"the engine died {deaths} times in one job, the last time by {death}",
                                      where=str(self.log),
                                      remedy="its output is in that file; the same command goes on") from None
                what = f"the engine died ({death}); a fresh one goes on"
            except OutOfMemory as error:
                smaller = job.halved()
                if smaller is None:
                    self.close()
                    raise
                what = f"{error.what}; a fresh engine goes on with half as much at a time, the step stays the same"
                job = smaller
            except BadNumbers as error:
                bad_numbers += 1
                if bad_numbers > 1:
                    raise
                what = f"{error.where}: {error.what}; a fresh engine tries once more from the last checkpoint"
            except MathtuneError:
                raise
            except BaseException:  # a signal: KeyboardInterrupt, or whatever Prefect raises for SIGTERM
                self._stop()
                raise
            self.close()
            incidents.append(what)
            self.on_event({"event": "notice", "text": what})

    def close(self) -> None:
        """Ends the engine and everything it started."""
        if self._process:
            self._process.close()
        self._process, self._busy = None, False
        self._gpus.close()

    def kill(self) -> None:
        """Kills the engine and all that it started, from whatever thread: the job at work sees it die, and no other begins."""
        self._ended = True
        if process := self._process:
            process.kill()

    def _run_once(self, job: Job) -> dict[str, Any]:
        ranks = job.ranks or (self._process.ranks if self._process else 1)
        if self._process and (self._busy or self._process.ranks != ranks):
            self.close()  # where it is busy, whoever took its events raised, and it works on
        if self._process is None:
            self._start(ranks)
        self._busy = True
        self._process.send(job.model_dump_json())
        while True:
            event = self._process.receive(None if isinstance(job, InspectJob) else self.silent_seconds)
            self._busy = event["event"] not in ("result", "failed")
            if event["event"] == "result":
                return event["result"]
            if event["event"] == "failed":
                if ranks > 1:
                    self.close()  # what one rank failed at, the others may wait in for ever
                raise from_dict(event["error"])
            self.on_event(event)

    def _start(self, ranks: int) -> None:
        if self._ended:
            raise EngineDied("the end of what it was for")
        held = self._gpus.enter_context(self.hold(ranks))
        self._process = EngineProcess(self.log, ranks, {**held.environment, **self.environment}, self.nice, held.descriptors)
        try:
            for event in self._process.await_ready():
                self.on_event(event)
        except EngineError:
            self.close()
            raise

    def _stop(self) -> None:
        """Lets the engine save and stop, and says whether it did; ends it either way."""
        saved = False
        try:
            if self._process and self._process.working:
                self._process.terminate()
                saved = self._await_saved(time.monotonic() + STOP_SECONDS)
        finally:  # also where a second signal is not willing to wait
            what = "the last step is saved" if saved else "the steps after the last checkpoint will be done again"
            text = f"stopped by a signal; {what}; the same command goes on"
            self.on_event({"event": "stopped", "saved": saved, "text": text})
            self.close()

    def _await_saved(self, deadline: float) -> bool:
        saved = False
        try:
            while True:
                event = self._process.receive(max(0.1, deadline - time.monotonic()))
                if event["event"] in ("failed", "result"):
                    return event["event"] == "result" or event["error"]["type"] == Interrupted.__name__
                saved = saved or event["event"] == "checkpoint"  # what follows it, W&B's farewell for one, may take longer
                self.on_event(event)
        except EngineDied:
            return saved
