"""One job a GPU: the GPUs that are in sight, and a lock of each, held by whoever has an engine on it.

A lock is an ``flock`` on a file that all users of the machine share. The kernel keeps it until every process with the
descriptor is gone, so the engine's ranks get it, too: where the control process is killed, the GPU is free when the last of
them has ended. Locks go by the driver's UUID, since CUDA_VISIBLE_DEVICES renumbers. What a folder cannot reach (another
container) is left to ``claim``. There is no queue: of those that wait, whoever looks first is next.
"""

import fcntl
import json
import os
import random
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from mathtune.errors import MachineError
from mathtune.events import Emit
from mathtune.files import HOST

FOLDER = "MATHTUNE_GPU_LOCKS"  # variable that names another folder of locks
POLL_SECONDS = 1.0
CLAIM_SECONDS = 5.0  # between two looks where a claim was refused, which others have to answer
TOOL_SECONDS = 60  # for nvidia-smi, which waits for a driver that hangs


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a part of one (MIG).

    Attributes:
        name: as CUDA_VISIBLE_DEVICES has it: the driver's index, or a UUID.
        uuid: the driver's; None where it tells none.
    """

    name: str
    uuid: str | None = None

    @property
    def identity(self) -> str:
        """The same whatever a process calls it; fit for a file's name."""
        return (self.uuid or self.name).replace("/", "_")


@dataclass(frozen=True)
class Held:
    """GPUs that are nobody else's.

    Attributes:
        names: for CUDA_VISIBLE_DEVICES.
        descriptors: whoever has these open has the GPUs.
    """

    names: list[str] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What lets a process see these GPUs alone, counted as the driver's tool counts them and not by their speed."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.names), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if self.names else {}


class Taken(Exception):
    """A GPU is another's; says whose.

    Args:
        said: for people.
        elsewhere: a claim was refused.
    """

    def __init__(self, said: str, elsewhere: bool = False):
        super().__init__(said)
        self.elsewhere = elsewhere


Claim = Callable[[Gpu], AbstractContextManager]  # holds a GPU elsewhere, too; raises Taken
Hold = Callable[..., AbstractContextManager[Held]]  # hold(count, run=, emit=), as `hold_gpus` without its claim


@contextmanager
def hold_gpus(count: int, run: str, emit: Emit, claim: Claim = nullcontext) -> Iterator[Held]:
    """Waits until ``count`` of the GPUs in sight are free, and holds them; all there are where those are fewer.

    Args:
        run: for whoever waits for them.
        emit: told once whom this one waits for.
        claim: called for each GPU whose lock is held, and held as long.

    Raises:
        MachineError: the locks cannot be used, or the driver's tool fails.
    """
    gpus = gpus_in_sight()
    wanted = min(count, len(gpus))  # an engine that misses some says so
    if not wanted:
        yield Held()
        return
    told = False
    while True:
        try:
            stack, held = _take(gpus, wanted, run, claim)
            break
        except Taken as taken:
            if not told:
                emit("notice", text=f"waiting for {'a GPU' if wanted == 1 else f'{wanted} GPUs'}: {taken}")
            told, pause = True, CLAIM_SECONDS if taken.elsewhere else POLL_SECONDS
        time.sleep(pause * random.uniform(0.5, 1.5))  # two machines that want the same would else meet for ever
    with stack:
        yield held


@contextmanager
def no_gpus(count: int = 0, run: str = "", emit: Emit | None = None) -> Iterator[Held]:
    """Holds nothing: for an engine that computes on the CPU, or hardly at all."""
    yield Held()


def visible_gpus() -> list[str]:
    """The GPUs that a program started here would see, as CUDA_VISIBLE_DEVICES has them."""
    return [gpu.name for gpu in gpus_in_sight()]


def gpus_in_sight() -> list[Gpu]:
    """Those that a program started here would see. Asks the driver's own tool, since torch stays out of this process.

    CUDA takes the devices named before the first that is none, such as -1 (its programming guide, CUDA_VISIBLE_DEVICES).

    Raises:
        MachineError: the driver's tool fails.
    """
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return [Gpu(index, uuid) for index, uuid in _listed().items()]
    names = (name.strip() for name in os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    if not (visible := list(takewhile(lambda name: name and not name.startswith("-"), names))):
        return []
    listed = _listed()
    gpus = [Gpu(name, _uuid(name, listed)) for name in visible]
    return list({gpu.identity: gpu for gpu in gpus}.values())


def _listed() -> dict[str, str]:
    """UUIDs by index. None without the tool; where it is there but fails, the GPUs cannot be told apart, nor be locked."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TOOL_SECONDS).stdout
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = f"{error}: {error.stdout or ''}{error.stderr or ''}".strip(": \n")
        raise MachineError(said, where="nvidia-smi",
                           remedy="mend the driver, or CUDA_VISIBLE_DEVICES= to compute without GPUs") from error
    return dict(line.split(", ") for line in listed.splitlines() if ", " in line)


def _uuid(name: str, listed: dict[str, str]) -> str | None:
    """CUDA takes the beginning of a UUID for the whole; a MIG part's is not listed, and stands for itself."""
    return listed.get(name) or next((uuid for uuid in listed.values() if uuid.startswith(name)), None)


def _take(gpus: list[Gpu], wanted: int, run: str, claim: Claim) -> tuple[ExitStack, Held]:
    """The first ``wanted`` that are free, or none at all. A claim may take long, so it holds up nobody's turn.

    Raises:
        Taken: too few are free.
    """
    refused: dict[Gpu, str] = {}
    while True:
        locks, files = _lock(gpus, wanted, run, refused)
        with locks:
            try:
                for gpu in files:
                    locks.enter_context(claim(gpu))
                return locks.pop_all(), Held([gpu.name for gpu in files], list(files.values()))
            except Taken as taken:
                refused[gpu] = str(taken)


def _lock(gpus: list[Gpu], wanted: int, run: str, refused: dict[Gpu, str]) -> tuple[ExitStack, dict[Gpu, int]]:
    """Locks the first ``wanted`` that are free and not ``refused``, or none at all. Returns their descriptors.

    Raises:
        Taken: too few are.
    """
    files, others = {}, []
    with _turn(), ExitStack() as locks:
        for gpu in gpus:
            if len(files) == wanted:
                break
            try:
                if gpu in refused:
                    raise Taken(refused[gpu])
                files[gpu] = locks.enter_context(_slot(gpu, run))
            except Taken as taken:
                others.append(str(taken))
        if len(files) == wanted:
            return locks.pop_all(), files
    raise Taken(", ".join(others), elsewhere=bool(refused))


@contextmanager
def _slot(gpu: Gpu, run: str) -> Iterator[int]:
    file = _open(f"mathtune-gpu-{gpu.identity}.lock")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Taken(f"{gpu.name} is taken by {_holder(file)}") from None
        with suppress(OSError):  # it is for people only
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps({"pid": os.getpid(), "run": run, "host": HOST}).encode(), 0)
        yield file
    finally:
        os.close(file)  # not unlocked: an engine that is still there keeps it


@contextmanager
def _turn() -> Iterator[None]:
    """One process at a time looks for free GPUs: two that want two of two would else each find one, and give it back."""
    file = _open("mathtune-gpus.lock")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _open(name: str) -> int:
    """A lock file for every user of the machine, in a folder where everybody may put what he likes: only a plain file that
    has this one name is written to.

    Raises:
        MachineError: it is something else, or cannot be opened.
    """
    path = _folder() / name
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        try:
            file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(file, 0o666)  # whatever the umask
        except FileExistsError:
            file = os.open(path, flags)  # without O_CREAT, which Linux forbids for another's file in a shared folder
        found = os.fstat(file)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            return file
        os.close(file)
        why = "it is no plain file of one name"
    except OSError as error:
        why = str(error.strerror)
    raise MachineError(f"cannot be used as a GPU's lock: {why}", where=str(path),
                       remedy=f"remove it, or name a folder that all users of the GPUs share in {FOLDER}")


def _folder() -> Path:
    """The same for all users, and in a systemd unit with a /tmp of its own: so neither TMPDIR nor what this one may write."""
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    standard = Path("/run/lock")
    return standard if standard.is_dir() and standard.stat().st_mode & stat.S_IWOTH else Path("/tmp")


def _holder(file: int) -> str:
    """Who has a lock, by what he wrote there: another user may have written anything."""
    try:
        holder = json.loads(os.pread(file, 4096, 0))
        return f"process {int(holder['pid'])} (run {ascii(holder['run'])[1:-1]})"
    except (ValueError, KeyError, TypeError):
        return "another process"
