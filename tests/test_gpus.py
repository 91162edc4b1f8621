"""One job a GPU: real locks, held by real processes. No GPU is needed: what CUDA_VISIBLE_DEVICES names is taken for there."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathtune import gpus
from mathtune.engine_client import EngineClient
from mathtune.errors import MachineError
from mathtune.gpus import Held, hold_gpus, visible_gpus
from tests.jobs_fixtures import CPU, sft_job, tokenise_job

ROOT = Path(__file__).parents[1]
HOLDER = """
import os, subprocess, sys
from mathtune.gpus import hold_gpus
if "another" in sys.argv:
    os.umask(0o077)
    os.setuid(int(sys.argv[-1]))
with hold_gpus(1, "its run", print) as held:
    child = subprocess.Popen(["sleep", "600"], pass_fds=held.descriptors) if "child" in sys.argv else None
    print(child.pid if child else 0, flush=True)
    sys.stdin.read()
"""


class Busy(Exception):
    """Raised where a job would wait."""


def busy(event: str, text: str) -> None:
    raise Busy(text)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of locks of this test's own; two GPUs in sight; nobody waits long."""
    monkeypatch.setenv("MATHTUNE_GPU_LOCKS", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(gpus, "POLL_SECONDS", 0.01)
    return tmp_path


@pytest.fixture
def holder():
    """Starts processes that hold the first GPU: the process, and the number of its child that got the lock, too."""
    with ExitStack() as stack:
        def start(*arguments: str) -> tuple[subprocess.Popen, int]:
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", HOLDER, *arguments], cwd=ROOT, text=True,
                                                           stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            return process, int(process.stdout.readline())

        yield start


def test_a_job_waits_for_the_process_that_has_its_gpu_and_says_so_once(holder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    process, _ = holder()
    said = []

    def emit(event: str, text: str) -> None:
        said.append((event, text))
        threading.Timer(0.2, process.kill).start()

    with hold_gpus(1, "mine", emit) as held:
        assert process.wait() == -signal.SIGKILL
        assert held.names == ["0"]
    assert said == [("notice", f"waiting for a GPU: 0 is taken by process {process.pid} (run its run)")]


def test_whoever_inherited_a_lock_keeps_it_though_its_holder_was_killed(holder):
    process, child = holder("child")
    process.kill()
    process.wait()
    with pytest.raises(Busy, match="2 GPUs: 0 is taken"), hold_gpus(2, "", busy):
        pass
    os.kill(child, signal.SIGKILL)
    with hold_gpus(2, "", lambda *_, **__: None) as held:
        assert held.names == ["0", "1"]


@settings(max_examples=25, deadline=None)
@given(there=st.integers(0, 5), taken=st.sets(st.integers(0, 4)), count=st.integers(1, 6))
def test_a_job_gets_the_first_free_gpus_or_none(there, taken, count):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, ExitStack() as others:
        patch.setenv("MATHTUNE_GPU_LOCKS", folder)

        def hold(names: list[int], number: int, emit) -> Held:
            patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, names)))
            return hold_gpus(number, "", emit)

        everything, wanted = list(range(there)), min(count, there)
        for gpu in taken & set(everything):
            others.enter_context(hold([gpu], 1, busy))
        free = [gpu for gpu in everything if gpu not in taken]
        if len(free) >= wanted:
            with hold(everything, count, busy) as held:
                assert held.names == [str(gpu) for gpu in free[:wanted]]
                assert held.environment.get("CUDA_VISIBLE_DEVICES", "") == ",".join(held.names)
        else:
            with pytest.raises(Busy), hold(everything, count, busy):
                pass
        with hold(free, max(1, len(free)), busy) as held:  # whatever it was, nothing is left taken
            assert len(held.names) == len(free)


def test_jobs_that_want_two_of_three_all_come_to_their_turn(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    held_now, most, done = set(), [], []

    def job() -> None:
        for _ in range(4):
            with hold_gpus(2, "", lambda *_, **__: None) as held:
                assert not held_now & set(held.names)
                held_now.update(held.names)
                most.append(len(held_now))
                held_now.difference_update(held.names)
        done.append(True)

    jobs = [threading.Thread(target=job) for _ in range(4)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join(60)
    assert len(done) == 4 and max(most) == 2


def test_a_claim_that_is_not_answered_holds_up_no_other_job(folder):
    others = []

    @contextmanager
    def claim(gpu):
        with open(folder / "mathtune-gpus.lock") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)  # where another job would wait
        with hold_gpus(1, "", busy) as other:
            others.append(other.names)
        yield

    with hold_gpus(1, "", busy, claim) as held:
        assert (held.names, others) == (["0"], [["1"]])


def test_a_job_leaves_out_what_a_claim_was_refused_for_and_asks_there_less_often(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr(gpus, "CLAIM_SECONDS", 5.0)
    elsewhere, claimed, slept = {"0", "2"}, [], []
    monkeypatch.setattr(gpus.time, "sleep", lambda seconds: (slept.append(seconds), elsewhere.clear()))

    @contextmanager
    def claim(gpu):
        if gpu.name in elsewhere:
            raise gpus.Taken(f"{gpu.name} is taken elsewhere")
        claimed.append(gpu.name)
        yield
        claimed.remove(gpu.name)

    with hold_gpus(1, "", busy, claim) as held:
        assert held.names == claimed == ["1"]
    with pytest.raises(Busy, match="2 GPUs: 0 is taken elsewhere, 2 is taken elsewhere$"), hold_gpus(2, "", busy, claim):
        pass
    assert claimed == slept == []
    with hold_gpus(2, "", lambda *_, **__: None, claim) as held:
        assert held.names == claimed == ["0", "1"]
    assert len(slept) == 1 and slept[0] >= 2.5


def test_a_signal_ends_the_wait(monkeypatch):
    """Prefect raises in the main thread where it is told to stop."""
    monkeypatch.setattr(gpus, "POLL_SECONDS", 600)

    def stop(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpus, "_listed", dict)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with hold_gpus(2, "", busy):
            with pytest.raises(KeyboardInterrupt):
                with hold_gpus(1, "", lambda *_, **__: signal.setitimer(signal.ITIMER_REAL, 0.1)):
                    pass
    finally:
        signal.signal(signal.SIGALRM, before)
    with hold_gpus(2, "", busy):
        pass


@pytest.mark.parametrize("kind", ["symlink", "pipe", "hard link", "folder"])
def test_nothing_but_a_plain_file_is_written_to(folder, kind):
    """Anybody may put anything into a folder that all share."""
    lock, precious = folder / "mathtune-gpu-0.lock", folder / "precious"
    precious.write_text("kept")
    match kind:
        case "symlink":
            lock.symlink_to(precious)
        case "pipe":
            os.mkfifo(lock)
        case "hard link":
            lock.hardlink_to(precious)
        case "folder":
            lock.mkdir()
    with pytest.raises(MachineError, match="cannot be used as a GPU's lock") as caught, hold_gpus(1, "", busy):
        pass
    assert caught.value.where == str(lock) and "MATHTUNE_GPU_LOCKS" in caught.value.remedy
    assert precious.read_text() == "kept"


def test_a_holders_note_is_nothing_to_trust(folder):
    lock = folder / "mathtune-gpu-0.lock"
    with hold_gpus(1, "", busy), pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")
        for note, said in (("{", "another process"), ('{"pid": 1, "run": "\\u001b[2J"}', r"process 1 \(run \\x1b\[2J\)")):
            lock.write_text(note)
            with pytest.raises(Busy, match=f"0 is taken by {said}$"), hold_gpus(1, "", busy):
                pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_waits_for_the_same_lock(holder, monkeypatch):
    with tempfile.TemporaryDirectory() as shared:
        os.chmod(shared, 0o1777)
        monkeypatch.setenv("MATHTUNE_GPU_LOCKS", shared)
        holder("another", "65534")
        with hold_gpus(1, "", busy) as held:
            assert held.names == ["1"]
        process, _ = holder("another", "65533")  # gets what root has made
        with pytest.raises(Busy, match=f"0 is taken by process .*, 1 is taken by process {process.pid} "):
            with hold_gpus(1, "", busy):
                pass


def test_a_gpu_is_the_same_by_index_uuid_or_the_beginning_of_it(folder, monkeypatch):
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-aaaa-1'\necho '1, GPU-bbbb-2'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1"]
    with hold_gpus(1, "", busy) as held:
        assert held.environment == {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        for name in ("0", "GPU-aaaa-1", "GPU-a"):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
            with pytest.raises(Busy, match=f"{name} is taken"), hold_gpus(1, "", busy):
                pass
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,0,MIG-GPU-cccc/1/0,1")
        assert visible_gpus() == ["0", "MIG-GPU-cccc/1/0", "1"]
        with hold_gpus(1, "", busy) as others:
            assert others.names == ["MIG-GPU-cccc/1/0"]


@pytest.mark.parametrize(("script", "said"), [("echo 'No devices were found'; exit 6", "exit status 6.*: No devices"),
                                              ("exec sleep 600", "timed out after 0.1 seconds")])
def test_where_the_drivers_tool_fails_no_job_goes_on_without_a_lock(folder, monkeypatch, script, said):
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(gpus, "TOOL_SECONDS", 0.1 if "sleep" in script else 60)
    with pytest.raises(MachineError, match=said), hold_gpus(1, "", busy):
        pass
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the remedy
    with hold_gpus(1, "", busy) as held:
        assert not held.names


CONTROL = """
import json, sys
from functools import partial
from pathlib import Path
from mathtune.engine_client import EngineClient
from mathtune.gpus import hold_gpus
from mathtune.jobs import JOB
emit = lambda event: print(json.dumps(event), flush=True)
hold = partial(hold_gpus, run="killed", emit=lambda *_, **__: None)
EngineClient(Path(sys.argv[1]), emit, hold=hold).run(JOB.validate_json(Path(sys.argv[2]).read_text()))
"""


@pytest.mark.slow
def test_the_gpus_of_a_killed_run_are_free_when_its_last_rank_is_gone(tiny_base, tmp_path):
    """The ranks are held, so that they do not see that control process and launcher were killed."""
    job = sft_job(tiny_base, tmp_path / "job", hardware=CPU.model_copy(update={"gpus": 2}))
    (tmp_path / "job.json").write_text(job.model_dump_json())
    control = subprocess.Popen([sys.executable, "-c", CONTROL, tmp_path / "engine.log", tmp_path / "job.json"], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)
    ranks = []
    for line in control.stdout:
        event = json.loads(line)
        ranks += [event["pid"]] if event["event"] == "ready" else []
        if event["event"] == "step":
            break
    launcher = parent_of(ranks[0])
    assert b"CUDA_VISIBLE_DEVICES=0,1\0" in Path(f"/proc/{ranks[1]}/environ").read_bytes()
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    control.kill()
    os.kill(launcher, signal.SIGKILL)
    control.wait()
    for pid in ranks:
        with pytest.raises(Busy, match=f"0 is taken by process {control.pid} .run killed., 1 is taken"):
            with hold_gpus(1, "", busy):
                pass
        os.kill(pid, signal.SIGKILL)
    with hold_gpus(2, "", lambda *_, **__: None):
        assert not [pid for pid in ranks if is_there(pid)]


@pytest.mark.slow
def test_an_engine_has_its_gpu_until_it_is_closed(tiny_base, tmp_path):
    hold = partial(hold_gpus, run="r", emit=busy)
    with EngineClient(tmp_path / "engine.log", lambda event: None, hold=hold) as engine:
        with hold_gpus(2, "", busy):
            pass
        engine.run(tokenise_job(tiny_base, tmp_path / "job", n=1))
        with pytest.raises(Busy, match="2 GPUs: 0 is taken by"), hold_gpus(2, "", busy):
            pass
    with hold_gpus(2, "", busy):
        pass


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_there(pid: int) -> bool:
    """Whether it is, and more than a name that nobody has taken note of the end of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
