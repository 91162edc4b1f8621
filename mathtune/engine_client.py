"""The control plane's end of the border: starts engines, sends jobs, reads events. Imports no torch.

A dead engine is replaced by a fresh one, and the job goes on from its last checkpoint, ``restarts`` times a job at most.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mathtune.errors import EngineError, OutOfMemory, from_dict
from mathtune.events import Event
from mathtune.jobs import Job

START_SECONDS = 180  # importing torch and transformers on a busy machine


class EngineClient:
    """One engine process, started by the first job and kept until ``close``.

    Args:
        log: file that takes the engine's standard output and error.
        on_event: called with every event, in this thread.
        restarts: fresh engines a job may need before it fails.
    """

    def __init__(self, log: Path, on_event: Callable[[Event], None], restarts: int = 2):
        self.log, self.on_event, self.restarts = log, on_event, restarts
        self._process: subprocess.Popen | None = None
        self._connection: socket.socket | None = None

    def __enter__(self) -> "EngineClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, job: Job) -> dict[str, Any]:
        """The job's result.

        Raises:
            MathtuneError: what the job raised in the engine, as its own class.
            EngineError: the engine died more often than ``restarts`` allows.
        """
        for attempt in range(self.restarts + 1):
            try:
                return self._run_once(job)
            except _EngineDied as death:
                self.on_event({"event": "phase", "text": f"the engine died ({death}); "
                               f"{'a fresh one goes on' if attempt < self.restarts else 'giving up'}"})
                self.close()
                last = str(death)
        raise EngineError(f"the engine died {self.restarts + 1} times in one job, the last time by {last}",
                          where=str(self.log), remedy="its output is in that file; the same command goes on")

    def close(self) -> None:
        """Ends the engine and everything it started."""
        if self._connection:
            self._connection.close()
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process:
            self._process.wait()
        self._process = self._connection = None

    def _run_once(self, job: Job) -> dict[str, Any]:
        if self._process is None:
            self._start()
        try:
            self._connection.sendall(job.model_dump_json().encode() + b"\n")
        except OSError:
            raise _EngineDied(self._cause()) from None
        for line in self._lines:
            event = json.loads(line)
            if event["event"] == "result":
                return event["result"]
            if event["event"] == "failed":
                error = from_dict(event["error"])
                if isinstance(error, OutOfMemory):
                    self.close()
                raise error
            self.on_event(event)
        raise _EngineDied(self._cause())

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
        self._lines = self._connection.makefile()
        self.on_event(json.loads(next(self._lines)))

    def _accept(self, listener: socket.socket) -> socket.socket:
        for _ in range(START_SECONDS):
            try:
                connection, _ = listener.accept()
                connection.settimeout(None)
                return connection
            except TimeoutError:
                if self._process.poll() is not None:
                    self.close()
                    raise EngineError("the engine does not start", where=str(self.log),
                                      remedy="read that file; mathtune doctor checks the installation") from None
        self.close()
        raise EngineError(f"the engine did not start within {START_SECONDS} s", where=str(self.log))

    def _cause(self) -> str:
        status = self._process.wait()
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


class _EngineDied(Exception):
    pass


def _environment() -> dict[str, str]:
    """The child's environment: this one's, with its output unbuffered and one GPU in sight.

    OpenMP's threads wait without spinning: beside a second busy process a small model trained many times slower.
    """
    # one GPU: with several in sight Trainer would wrap the model in DataParallel, which trl refuses
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "true", "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONUNBUFFERED": "1", **os.environ, "CUDA_VISIBLE_DEVICES": gpu}
