"""The control plane's end of the border: starts engines, sends jobs, reads events. Imports no torch.

What becomes of a job when its engine fails: died or silent → a fresh one goes on from the last checkpoint, so many times;
out of memory → a fresh one with half as much at a time; a bad number → back to the last checkpoint once. A signal to this
process is passed on: the engine saves and stops first.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mathtune.errors import BadNumbers, EngineError, Interrupted, MathtuneError, OutOfMemory, from_dict
from mathtune.events import Event
from mathtune.exit_status import DEVICE_FAULT, GIVEN_UP
from mathtune.jobs import InspectJob, Job

START_SECONDS = 180  # importing torch and transformers on a busy machine
STOP_SECONDS = 15  # a preempted machine gives 20 to 30; what is not saved by then is done again


class EngineClient:
    """One engine process, started by the first job and kept until ``close``.

    Args:
        log: file that takes the engine's standard output and error.
        on_event: called with every event, in this thread.
        restarts: fresh engines a job may need, because the old one died, before it fails.
        silent_seconds: without an event after which a working engine is taken for dead (a fetch from the Hub may last).
    """

    def __init__(self, log: Path, on_event: Callable[[Event], None], restarts: int = 2, silent_seconds: float = 1200):
        self.log, self.on_event, self.restarts, self.silent_seconds = log, on_event, restarts, silent_seconds
        self._process: subprocess.Popen | None = None
        self._connection: socket.socket | None = None
        self._busy = False
        self._received = b""

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
            except _EngineDied as death:
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
        if self._connection:
            self._connection.close()
        if self._process:
            with suppress(ProcessLookupError):  # its children may be there though it is not
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = self._connection = None
        self._busy = False

    def _run_once(self, job: Job) -> dict[str, Any]:
        if self._busy:  # whoever took its events raised, and it works on
            self.close()
        if self._process is None:
            self._start()
        self._busy = True
        self._connection.settimeout(None if isinstance(job, InspectJob) else self.silent_seconds)
        try:
            self._connection.sendall(job.model_dump_json().encode() + b"\n")
        except OSError:
            raise _EngineDied(self._cause()) from None
        for event in self._events():
            self._busy = event["event"] not in ("result", "failed")
            if event["event"] == "result":
                return event["result"]
            if event["event"] == "failed":
                raise from_dict(event["error"])
            self.on_event(event)
        raise _EngineDied(self._cause())

    def _events(self) -> Iterator[Event]:
        """Events until the engine's end. Whole lines only: a signal may fall into any read."""
        while True:
            while b"\n" in self._received:
                line, self._received = self._received.split(b"\n", 1)
                yield json.loads(line)
            try:
                read = self._connection.recv(65536)
            except TimeoutError:
                raise _EngineDied(f"no event for {self.silent_seconds:.0f} s") from None
            except ConnectionError:
                return
            if not read:
                return
            self._received += read

    def _stop(self) -> None:
        """Lets the engine save and stop, and says whether it did; ends it either way."""
        saved = False
        try:
            if self._process and self._process.poll() is None and self._connection:
                self._process.send_signal(signal.SIGTERM)
                saved = self._await_saved(time.monotonic() + STOP_SECONDS)
        finally:  # also where a second signal is not willing to wait
            what = "the last step is saved" if saved else "the steps after the last checkpoint will be done again"
            text = f"stopped by a signal; {what}; the same command goes on"
            self.on_event({"event": "stopped", "saved": saved, "text": text})
            self.close()

    def _await_saved(self, deadline: float) -> bool:
        saved = False
        self._connection.settimeout(STOP_SECONDS)
        try:
            for event in self._events():
                if event["event"] in ("failed", "result"):
                    return event["event"] == "result" or event["error"]["type"] == Interrupted.__name__
                saved = saved or event["event"] == "checkpoint"  # what follows it, W&B's farewell for one, may take longer
                self.on_event(event)
                self._connection.settimeout(max(0.1, deadline - time.monotonic()))
        except _EngineDied:
            pass
        return saved

    def _start(self) -> None:
        folder = tempfile.mkdtemp(prefix="mathtune-")
        try:
            path = os.path.join(folder, "engine")
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen(1)
                listener.settimeout(1)
                self.log.parent.mkdir(parents=True, exist_ok=True)
                with open(self.log, "ab") as log:
                    self._process = subprocess.Popen(
                        [sys.executable, "-m", "mathtune.engine", "--connect", path], stdin=subprocess.DEVNULL,
                        stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=_environment())
                self._connection = self._accept(listener)
        finally:
            shutil.rmtree(folder)
        self._received = b""
        ready = next(self._events(), None)
        if ready is None:
            raise _EngineDied(self._cause())
        self.on_event(ready)

    def _accept(self, listener: socket.socket) -> socket.socket:
        for _ in range(START_SECONDS):
            try:
                connection, _ = listener.accept()
                connection.settimeout(None)
                return connection
            except TimeoutError:
                status = self._process.poll()
                if status is not None and status < 0:
                    raise _EngineDied(self._cause()) from None
                if status is not None:
                    self.close()
                    raise EngineError("the engine does not start", where=str(self.log),
                                      remedy="read that file; mathtune doctor checks the installation") from None
        self.close()
        raise EngineError(f"the engine did not start within {START_SECONDS} s", where=str(self.log))

    def _cause(self) -> str:
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return "its connection, though its process is there"
        if status in _MEANINGS:
            return _MEANINGS[status]
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


class _EngineDied(Exception):
    pass


_MEANINGS = {GIVEN_UP: "SIGTERM, with nothing to save", DEVICE_FAULT: "a fault of the accelerator"}


def _environment() -> dict[str, str]:
    """The child's environment: this one's, with its output unbuffered and one GPU in sight.

    OpenMP's threads wait without spinning: beside a second busy process a small model trained many times slower.
    """
    # one GPU: with several in sight Trainer would wrap the model in DataParallel, which trl refuses
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "true", "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONUNBUFFERED": "1", **os.environ, "CUDA_VISIBLE_DEVICES": gpu}
