"""Faults of the disk, the host's memory and the clock, made for real: small mounts, traced calls that fail, limits, cgroups."""

import itertools
import os
import re
import resource
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mathtune import locks
from mathtune.chain import Chain
from mathtune.engine_client import EngineClient
from mathtune.errors import StoreError
from mathtune.folders import LocalFolders, open_folders
from mathtune.sft import train_chunk
from mathtune.store import ArtifactStore
from tests.disk_fixtures import HEADER, PUBLISH, filled, mounts, needs_strace, remount, run_program
from tests.folders_fixtures import build, damage_file
from tests.jobs_fixtures import place, sft_job
from tests.test_chain import PINS, extend, make_link
from tests.training_fixtures import Events, fresh


@pytest.fixture
def mount(tmp_path):
    with mounts(tmp_path) as make:
        yield make


def published_steps(disk: Path) -> list[int]:
    """Steps of the checkpoints on a disk, every byte of them checked."""
    folders = LocalFolders(disk)
    return [folders.fetch(name).manifest["step"] for name in folders.names("checkpoints")]


@pytest.fixture(scope="module")
def six_steps(tiny_base, tmp_path_factory):
    """Digest of the adapter of a job of six steps, with a checkpoint after every second."""
    job = sft_job(tiny_base, tmp_path_factory.mktemp("six"))
    return train_chunk(job, fresh(job), Events())["adapter_digest"]


@pytest.fixture(scope="module")
def seven_steps(tiny_base, tmp_path_factory):
    """The same of seven steps, and what a checkpoint before the last, which is smaller, takes on a disk."""
    job = sft_job(tiny_base, tmp_path_factory.mktemp("seven"), n=112)
    digest = train_chunk(job, fresh(job), Events())["adapter_digest"]
    files = (Path(job.checkpoints.url) / "checkpoints" / "step-00000006").iterdir()
    return digest, sum(-(-path.stat().st_size // 4096) * 4096 for path in files)


@pytest.fixture
def on_disk(tiny_base, tmp_path):
    """A job whose checkpoints lie on ``disk``, as a call that trains it: the result or the error, and the events."""

    def make(disk, **changes):
        job = sft_job(tiny_base, tmp_path / "job", checkpoints=place(disk), **changes)

        def train(hook=lambda event, step: None):
            events = Events()

            def emit(event, **fields):
                events(event, **fields)
                hook(event, fields.get("step"))

            try:
                return train_chunk(job, fresh(job), emit), events
            except (StoreError, KeyboardInterrupt) as error:
                return error, events

        return train

    return make


def dies_at_step_3(event, step):
    if (event, step) == ("step", 3):
        raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "room", "saved"), [("tmpfs", 1, []), ("tmpfs", 2.5, [2, 4]), ("tmpfs", 2.85, [2, 4]),
                                                     ("ext4", 2.85, [2, 4])])
def test_a_full_disk_is_named_the_older_checkpoint_stays_and_with_room_the_job_goes_on(mount, on_disk, seven_steps, kind, room,
                                                                                       saved):
    """Refused before the first step, before a save (2.5), or in the middle of what torch and safetensors write (2.85)."""
    digest, checkpoint_bytes = seven_steps
    disk = mount(kind)
    train = on_disk(disk, n=112)
    with filled(disk, int(room * checkpoint_bytes)):
        error, events = train()
        assert isinstance(error, StoreError) and "are needed" in error.what and error.where.startswith(f"{disk}/checkpoints")
        assert error.remedy == "free some space; the same command goes on"
        assert published_steps(disk) == saved and bool(events.of("step")) == bool(saved)
    result, events = train()
    assert [event["step"] for event in events.of("resumed")] == saved[-1:] and not events.of("notice")
    assert result["adapter_digest"] == digest and published_steps(disk) == [6, 7]


@pytest.mark.slow
def test_a_disk_without_inodes_is_full_though_bytes_are_free(mount, on_disk, six_steps):
    disk = mount(options="size=8m,nr_inodes=60")

    def crowd(event, step):
        if (event, step) == ("step", 3):
            with pytest.raises(OSError, match="No space left"):
                for number in range(99):
                    (disk / f"crowd-{number}").touch()

    train = on_disk(disk)
    error, _ = train(crowd)
    assert isinstance(error, StoreError) and error.what == "no space is left on the disk" and str(disk) in error.where
    assert published_steps(disk) == [2]
    for path in disk.glob("crowd-*"):
        path.unlink()
    assert train()[0]["adapter_digest"] == six_steps


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_read_only_disk_is_named_before_any_step_and_writable_again_the_job_goes_on(mount, on_disk, six_steps, before):
    disk = mount()
    train = on_disk(disk)
    if before:
        assert isinstance(train(dies_at_step_3)[0], KeyboardInterrupt)
        remount(disk, "ro")
    error, events = train(lambda event, step: (event, step) == ("step", 3) and remount(disk, "ro"))
    assert isinstance(error, StoreError) and error.what == "cannot write there: Read-only file system"
    assert str(disk) in error.where and "another storage.root" in error.remedy
    assert not (before and events.of("step")) and published_steps(disk) == [2]
    remount(disk, "rw")
    result, events = train()
    assert events.of("resumed") == [{"event": "resumed", "step": 2}] and result["adapter_digest"] == six_steps


@pytest.mark.parametrize("pages", [0, 1, 2])
def test_a_disk_that_fills_up_while_an_artifact_is_published_keeps_nothing_half_and_no_litter(mount, pages):
    """Room for none of its files, for the first, or for all but the manifest."""
    disk = mount(options="size=256k")
    store = ArtifactStore(disk)
    store.get_or_build("stage", "other", build)
    with filled(disk, pages * 4096):
        with pytest.raises(StoreError, match="no space is left on the disk") as caught:
            store.get_or_build("stage", "key", build)
        assert str(disk) in caught.value.where and "free some space" in caught.value.remedy
        assert os.listdir(disk / "stage") == ["other"] and store.find("stage", "other")
    assert store.get_or_build("stage", "key", build).facts == {"rows": 4}


def test_what_is_damaged_on_a_read_only_disk_is_refused_with_the_disk_named(mount):
    disk = mount()
    damage_file(ArtifactStore(disk).get_or_build("stage", "key", build).path("rows.bin"), "flip")
    remount(disk, "ro")
    with pytest.raises(StoreError, match="Read-only file system") as caught:
        ArtifactStore(disk).get_or_build("stage", "key", build)
    assert caught.value.where == str(disk / "stage" / "key")


@pytest.mark.slow
def test_a_full_disk_for_the_copies_of_an_object_store_is_not_taken_for_the_store(mount, s3_url, tmp_path):
    open_folders(s3_url, tmp_path / "elsewhere").publish("a/x", build, HEADER)
    disk = mount()
    folders = open_folders(s3_url, disk)
    with filled(disk, 0), pytest.raises(StoreError, match="no space is left on the disk") as caught:
        folders.fetch("a/x")
    assert str(disk) in caught.value.where and "free some space" in caught.value.remedy
    assert folders.fetch("a/x").manifest["facts"] == {"rows": 4}


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("call", ["fsync", "write", "rename"])
def test_an_io_error_in_any_call_of_publishing_is_named_and_leaves_nothing_half(tmp_path, call):
    for ordinal in itertools.count(1):
        root = tmp_path / str(ordinal)
        root.mkdir()
        done = run_program(PUBLISH, root, "strace", "-f", "-o", "/dev/null", "-e", f"inject={call}:error=EIO:when={ordinal}")
        found = LocalFolders(root).fetch("a/x")
        if done.returncode == 0:
            break
        what, _, remedy = done.stderr.partition("\n")
        assert re.fullmatch(rf"{root}/a.*: cannot write there: Input/output error", what) and "the disk" in remedy
        assert [path.name for path in root.glob("a/*")] == ["x"] * bool(found)
        assert run_program(PUBLISH, root).returncode == 0 and LocalFolders(root).fetch("a/x")
    assert found and ordinal > 2


@needs_strace
def test_what_a_disk_cannot_read_is_set_aside_and_made_again(tmp_path):
    file = ArtifactStore(tmp_path).get_or_build("stage", "key", build).path("rows.bin")
    body = "store = ArtifactStore(folders); store.get_or_build('stage', 'key', build); sys.exit(store.damaged[0])"
    done = run_program(body, tmp_path, "strace", "-o", "/dev/null", "-P", str(file), "-e", "inject=read:error=EIO:when=1")
    assert f"{file}: it cannot be read: Input/output error" in done.stderr and "set aside as" in done.stderr
    assert ArtifactStore(tmp_path).find("stage", "key")


@pytest.mark.slow
def test_staging_lies_on_the_file_system_of_its_target(mount, tiny_base, six_steps, tmp_path, monkeypatch):
    disk = mount()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    chain, link = Chain(LocalFolders(disk / "chains"), "c"), make_link()

    def train(folder):
        assert folder.parent.stat().st_dev == disk.stat().st_dev != tmp_path.stat().st_dev
        checkpoints = place(disk / "chains").model_copy(update={"name": chain.checkpoints(link.key)})
        job = sft_job(tiny_base, tmp_path / "job", checkpoints=checkpoints, output=str(folder))
        return replace(link, adapter_digest=train_chunk(job, fresh(job), Events())["adapter_digest"])

    made = chain.publish(1, link.title, link.key, train)
    chain.settle(made, PINS, "accepted")
    assert chain.links() == [made] and made.adapter_digest == six_steps


FRESH_BUFFERS = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}  # one from 64 KiB on is given back when freed, and asked for again


@pytest.fixture
def engine_job(tiny_base, tmp_path):
    """Runs a job in an engine and calls ``strike`` once with the engine's process, at the third step."""

    def run(strike, **environment):
        struck = []

        def on_event(event):
            if event["event"] == "step" and event["step"] == 3 and not struck:
                struck.append(strike(engine._process.pid))

        with EngineClient(tmp_path / "engine.log", on_event, restarts=1, environment=environment) as engine:
            return engine.run(sft_job(tiny_base, tmp_path / "job"))

    return run


@pytest.mark.slow
def test_an_engine_that_the_hosts_memory_killer_took_ends_with_the_same_bytes_in_a_fresh_one(engine_job, six_steps, tmp_path):
    group = next(path for path in map(Path, ("/sys/fs/cgroup/memory", "/sys/fs/cgroup")) if path.is_dir()) / tmp_path.name
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        limit = next((group / name for name in ("memory.limit_in_bytes", "memory.max") if (group / name).exists()), None)
        if limit is None:
            pytest.skip("the memory controller is not enabled here")
        limit.write_text(str(2**18))
        result = engine_job(lambda pid: (group / "cgroup.procs").write_text(str(pid)), **FRESH_BUFFERS)
        killed = next(group / name for name in ("memory.oom_control", "memory.events") if (group / name).exists())
        assert "oom_kill 1" in killed.read_text()
    finally:
        group.rmdir()
    assert result["incidents"] == ["the engine died (signal SIGKILL); a fresh one goes on"]
    assert result["adapter_digest"] == six_steps


@pytest.mark.slow
def test_an_engine_whose_host_gives_no_more_memory_is_replaced_by_one_that_needs_less(engine_job, tmp_path):
    def limit(pid):
        """A little below what it has, so that a step's buffers cannot be had again; what Python keeps for itself can."""
        has = int(re.search(r"VmSize:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024
        resource.prlimit(pid, resource.RLIMIT_AS, (has - 2**22, has - 2**22))

    result = engine_job(limit, **FRESH_BUFFERS)
    assert len(result["incidents"]) == 1 and "the host's memory is exhausted" in result["incidents"][0]
    assert result["pack_tokens"] == 256 and result["steps"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_jumps_between_two_attempts_changes_nothing(on_disk, six_steps, tmp_path, monkeypatch, days):
    train = on_disk(tmp_path)
    assert isinstance(train(dies_at_step_3)[0], KeyboardInterrupt)
    jumped = time.time() + 86400 * days
    os.utime(tmp_path / "checkpoints" / "step-00000002", (jumped, jumped))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 86400 * days)
    result, events = train()
    assert events.of("resumed") == [{"event": "resumed", "step": 2}] and result["adapter_digest"] == six_steps
    assert published_steps(tmp_path) == [4, 6]


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_jumps_takes_no_lease_from_its_holder_and_a_chain_keeps_its_order(tmp_path, monkeypatch, days):
    folders, clock, polls = LocalFolders(tmp_path), time.time, []
    chain = Chain(folders, "c")
    first = extend(chain, replace(make_link(), created="2999-01-01T00:00:00Z"))
    holding = locks.leased(folders, "c/leases", Events())
    lease = holding.__enter__()

    def poll(_):
        monkeypatch.setattr(time, "time", lambda: clock() + 86400 * days)
        lease.check()
        polls.append(lease.number)
        if len(polls) == 3:
            holding.__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", poll)
    with locks.leased(folders, "c/leases", Events()) as next_lease:
        next_lease.check()
        assert polls == [lease.number] * 3 and next_lease.number == lease.number + 1
        second = extend(chain, make_link(2, first.key, 10, 20))
    assert Chain(folders, "c").links() == [first, second]
