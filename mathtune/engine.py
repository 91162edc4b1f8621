"""The engine: a child process that keeps the base loaded, takes jobs and streams events.

    python -m mathtune.engine --job job.json       one job by hand, its events on standard output
    python -m mathtune.engine --connect SOCKET     a run's long-lived engine, started by mathtune.engine_process

Only JSON lines cross the socket: jobs in, events out. A job's result depends on its files alone: nothing but the frozen
base outlives a job, and each job seeds itself. When the other side of the socket goes away, so does the engine.

With several GPUs ``accelerate launch --multi_gpu --num_processes N -m mathtune.engine …`` starts this once for each (a rank).
All take every job: an SFT job they do together, any other the first does alone. Only the first speaks, except of failures:
whichever rank has one tells of it, and that is the end of them all.
"""

import argparse
import json
import os
import queue
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from mathtune.errors import EngineError, Interrupted, MachineError, MathtuneError, OutOfMemory
from mathtune.events import Emit
from mathtune.exit_status import DEVICE_FAULT, ORPHANED, OUT_OF_MEMORY, STOPPED
from mathtune.jobs import JOB, GrpoJob, InspectJob, Job, MeasureJob, ScoreJob, SftJob, TokeniseJob

MOST_FILES = 64  # that the control plane has a rank keep open
PEER_SECONDS = 5  # in which the control plane sees that another rank ended, and ends this one
HOST_MEMORY = "DefaultCPUAllocator: can't allocate memory"


class Engine:
    """Runs jobs one after the other and keeps the last base they asked for.

    Args:
        emit: where events go; of a rank behind the first only failures do.
    """

    def __init__(self, emit: Emit):
        from mathtune.ranks import Ranks

        self.ranks = Ranks.launched()
        self.emit = emit if self.ranks.first else _only_failures(emit)
        self._base_key: str | None = None
        self._base = None

    def run(self, job: Job) -> dict[str, Any]:
        """The job's result; see the job's class for what it holds. On a rank behind the first it is empty."""
        if not (self.ranks.first or isinstance(job, SftJob)):
            return {}
        match job:
            case InspectJob():
                from mathtune.inspect_base import inspect_base
                return inspect_base(job)
            case MeasureJob():
                from mathtune.inspect_base import measure_rows
                return measure_rows(job)
            case TokeniseJob():
                from mathtune.tokenise import tokenise_rows
                return tokenise_rows(job)
            case SftJob():
                from mathtune.devices import choose_compute
                from mathtune.sft import train_chunk
                self.ranks.join(choose_compute(job.model, job.hardware).device)
                return train_chunk(job, self._load(job), self.emit, self.ranks)
            case GrpoJob():
                from mathtune.grpo import refine
                return refine(job, self._load(job), self.emit)
            case ScoreJob():
                from mathtune.scoring import score
                return score(job, self._load(job), self.emit)

    def _load(self, job: SftJob | GrpoJob | ScoreJob):
        import torch

        from mathtune.devices import cap_memory, make_deterministic
        from mathtune.models import load_base

        key = job.model.model_dump_json() + job.hardware.device
        if job.hardware.deterministic:
            make_deterministic()
        if key != self._base_key:
            self._base = self._base_key = None
            self.emit("phase", text=f"loading {job.model.base}")
            try:
                self._base, self._base_key = load_base(job.model, job.hardware, Path(job.cache)), key
            except torch.OutOfMemoryError as error:  # no smaller pack would help
                raise MachineError("the base does not fit the GPU's memory", where=job.model.base,
                                   remedy="end what else runs on the card (nvidia-smi), model.quantization=nf4, or a smaller "
                                   "base") from error
        cap_memory(job.hardware, self._base.compute)
        return self._base


def _only_failures(emit: Emit) -> Emit:
    def failures(event: str, **fields: Any) -> None:
        if event == "failed":
            emit(event, **fields)

    return failures


def run_guarded(engine: Engine, line: str) -> int | None:
    """Runs one job line and emits its result or failure. Returns an exit status where the engine must end."""
    import torch

    from mathtune.ranks import ToldByFirst

    emit = engine.emit
    try:
        emit("result", result=engine.run(JOB.validate_json(line)))
    except ToldByFirst:
        return None
    except MathtuneError as error:
        emit("failed", error=error.to_dict())
        return STOPPED if isinstance(error, Interrupted) else None
    except torch.cuda.OutOfMemoryError as error:
        remedy = "a shorter model.max_length, a larger card, or for GRPO hardware.gradient_checkpointing=true"
        what = str(error).partition(" GPU ")[0]  # torch goes on with a page about this card
        emit("failed", error=OutOfMemory(what.splitlines()[0], where="GPU memory", remedy=remedy).to_dict())
        return OUT_OF_MEMORY
    except torch.AcceleratorError:  # the device's context is broken: nothing more can run in this process
        traceback.print_exc()
        return DEVICE_FAULT
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, MemoryError) or HOST_MEMORY in str(error):
            remedy = "end what else runs on this machine, a shorter model.max_length, or a machine with more memory"
            what = f"the host's memory is exhausted: {str(error) or 'MemoryError'}".splitlines()[0]
            emit("failed", error=OutOfMemory(what, where="host memory", remedy=remedy).to_dict())
            return OUT_OF_MEMORY
        if engine.ranks.size > 1:
            time.sleep(PEER_SECONDS)  # where another rank ended, this is only what it looks like from here
        emit("failed", error=EngineError(f"{type(error).__name__}: {error}", where="engine",
                                         remedy="the traceback is in engine.log").to_dict())
    return None


def serve(path: str) -> int:
    """Takes jobs from a Unix socket until it closes."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    socket.recv_fds(connection, 1, MOST_FILES)  # the locks of its GPUs: held until this process is gone
    lock = threading.Lock()

    def emit(event: str, **fields: Any) -> None:
        with lock:
            connection.sendall(json.dumps({"event": event, **fields}).encode() + b"\n")

    jobs: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        try:
            for line in connection.makefile():
                jobs.put(line)
        finally:  # also where the connection is reset: the control plane is gone, nobody would read a result
            os._exit(ORPHANED)

    engine = Engine(emit)
    emit("ready", pid=os.getpid(), rank=engine.ranks.rank)
    threading.Thread(target=listen, daemon=True).start()
    while True:
        status = run_guarded(engine, jobs.get())
        if status is not None:
            return status


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mathtune.engine", description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--job", type=Path, help="file with one job as JSON")
    mode.add_argument("--connect", help="path of the Unix socket to serve")
    arguments = parser.parse_args()
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # packs differ in size: else memory falls to pieces
    from mathtune.stopping import STOP

    STOP.listen()
    if arguments.connect:
        return serve(arguments.connect)
    failed = []

    def emit(event: str, **fields: Any) -> None:
        failed.append(event == "failed")
        print(json.dumps({"event": event, **fields}), flush=True)

    status = run_guarded(Engine(emit), arguments.job.read_text())
    return status or int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
