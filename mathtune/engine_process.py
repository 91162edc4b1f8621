"""An engine as the control plane sees it: one process, or several ranks under ``accelerate launch``, and a connection to each.

Every rank connects to the same Unix socket. So this side sees at once that one of them ended (torchrun's agent, below
accelerate, first gives the others half a minute to end, and keeps the exit status to itself), and every rank sees that this
side did: the agent gives each a session of its own, which no signal to this one's process group reaches.
"""

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mathtune.errors import EngineError
from mathtune.events import Event
from mathtune.exit_status import DEVICE_FAULT, GIVEN_UP

START_SECONDS = 180  # importing torch and transformers on a busy machine
END_SECONDS = 15  # for a process that ended, or was killed, to be gone
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # what a launcher tells its ranks

_MEANINGS = {GIVEN_UP: "SIGTERM, with nothing to save", DEVICE_FAULT: "a fault of the accelerator"}


class EngineDied(Exception):
    """An engine, or a rank of it, ended or fell silent; says by what."""


@dataclass
class _Peer:
    """The other end of a connection: its rank, once it said it, and the beginning of a line from it."""

    rank: int = 0
    received: bytes = b""


class EngineProcess:
    """An engine that was started; ``await_ready`` before anything else.

    Args:
        log: file that takes the standard output and error of all its processes.
        ranks: processes that train together.
        variables: of its environment, over those that every engine has.
        nice: how much its priority is below this process's.
        descriptors: of files that every rank keeps open.

    Attributes:
        pid: of the engine, or of the launcher of its ranks.
    """

    def __init__(self, log: Path, ranks: int, variables: dict[str, str], nice: int,
                 descriptors: Sequence[int] = ()):
        self.log, self.ranks, self._descriptors = log, ranks, descriptors
        self._pids: list[int] = []  # of the ranks that are ready
        self._connections = selectors.DefaultSelector()
        self._pending: list[Event] = []
        self._folder = Path(tempfile.mkdtemp(prefix="mathtune-"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._folder / "engine"))
        self._listener.listen(ranks)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                command(ranks, self._folder), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, env={**environment(ranks), **variables})
        self.pid = self._process.pid
        if nice:
            os.setpriority(os.PRIO_PROCESS, self.pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)

    def await_ready(self) -> list[Event]:
        """Waits for every rank to be ready for jobs. Returns what each said.

        Raises:
            EngineDied: a signal ended it.
            EngineError: it does not start.
        """
        self._listener.settimeout(1)
        deadline = time.monotonic() + START_SECONDS
        while len(self._connections.get_map()) < self.ranks:
            try:
                connection, _ = self._listener.accept()
                with suppress(OSError):  # it ended, which its connection says
                    # not inherited, for a rank gets nothing from its launcher but standard input and output
                    socket.send_fds(connection, [b"\n"], self._descriptors)
                self._connections.register(connection, selectors.EVENT_READ, _Peer())
            except TimeoutError:
                self._check_starting(deadline)
        ready = [self.receive(START_SECONDS) for _ in range(self.ranks)]
        self._pids = [event["pid"] for event in ready]
        return ready

    def send(self, line: str) -> None:
        """Sends a job to every rank.

        Raises:
            EngineDied: one of them is gone.
        """
        for key in self._connections.get_map().values():
            try:
                key.fileobj.sendall(line.encode() + b"\n")
            except OSError:
                raise EngineDied(self._cause(key.data)) from None

    def receive(self, seconds: float | None) -> Event:
        """The next event of any rank.

        Raises:
            EngineDied: a rank ended, or nobody said anything for so many seconds (None: wait for ever).
        """
        while not self._pending:
            ready = self._connections.select(seconds)
            if not ready:
                raise EngineDied(f"no event for {seconds:.0f} s")
            ended = [key.data for key, _ in ready if not self._read(key)]
            if ended and not self._pending:  # what a rank said last may be why another ended
                raise EngineDied(self._cause(ended[0]))
        return self._pending.pop(0)

    @property
    def working(self) -> bool:
        """Whether it is there and takes jobs."""
        return bool(self._pids) and self._process.poll() is None

    def terminate(self) -> None:
        """Asks it to save and stop; a launcher passes that on to the ranks."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills it and everything it started, from whatever thread."""
        for pid in dict.fromkeys([self.pid, *self._pids]):  # the launcher first: it would wait for the ranks
            with suppress(ProcessLookupError):  # its children may be there though it is not
                os.killpg(pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends it and everything it started, and waits for that."""
        self.kill()
        self._process.wait()
        deadline = time.monotonic() + END_SECONDS
        while self._connections.get_map() and time.monotonic() < deadline:
            for key, _ in self._connections.select(1):
                if not self._read(key):
                    self._connections.unregister(key.fileobj)
                    key.fileobj.close()
        self._connections.close()
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, key: selectors.SelectorKey) -> bool:
        """Takes what a rank sent: whole lines only, for a signal may fall into any read. False at its end."""
        peer = key.data
        try:
            read = key.fileobj.recv(65536)
        except ConnectionError:
            read = b""
        *lines, peer.received = (peer.received + read).split(b"\n")
        for line in lines:
            event = json.loads(line)
            peer.rank = event.get("rank", peer.rank)
            self._pending.append(event)
        return bool(read)

    def _check_starting(self, deadline: float) -> None:
        status = self._process.poll()
        if status is not None and status < 0:
            raise EngineDied(self._exit_cause())
        if status is not None:
            raise EngineError("the engine does not start", where=str(self.log),
                              remedy="read that file; mathtune doctor checks the installation")
        if time.monotonic() > deadline:
            raise EngineError(f"the engine did not start within {START_SECONDS} s", where=str(self.log))

    def _cause(self, peer: _Peer) -> str:
        return f"the end of rank {peer.rank} of {self.ranks}" if self.ranks > 1 else self._exit_cause()

    def _exit_cause(self) -> str:
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "its connection, though its process is there"
        if status in _MEANINGS:
            return _MEANINGS[status]
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def command(ranks: int, folder: Path) -> list[str]:
    """What starts an engine of so many ranks that connects to ``folder/engine``."""
    engine = ["-m", "mathtune.engine", "--connect", str(folder / "engine")]
    if ranks == 1:
        return [sys.executable, *engine]
    # --multi_gpu on a CPU, too: accelerate's --cpu starts several processes by mpirun only. The file of settings is ours,
    # for a user's own would add to the arguments.
    settings = folder / "accelerate.json"
    settings.write_text(json.dumps({"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU"}))
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(settings), "--multi_gpu",
            "--num_processes", str(ranks), "--num_machines", "1", "--machine_rank", "0", "--gpu_ids", "all",
            "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no", "--log_dir", str(folder), *engine]


def environment(ranks: int) -> dict[str, str]:
    """The environment of an engine: this one's, with its output unbuffered and a GPU for every rank in sight.

    OpenMP's threads wait without spinning: beside a second busy process a small model trained many times slower.
    """
    # one GPU a rank: with more in sight Trainer would wrap the model in DataParallel, which trl refuses
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(ranks)))).split(",")[:ranks]
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHED}  # a cluster's may be set
    together = {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // ranks)),
                # between processes of one machine; gloo would take the network that the host's name belongs to
                "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    return {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "true", "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONUNBUFFERED": "1", **(together if ranks > 1 else {}), **inherited, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
