"""A GPU's slot at a real Prefect server. Two folders of locks stand for two containers, which only the server keeps apart."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from mathtune import gpus
from mathtune.files import HOST
from mathtune.gpus import Gpu
from tasks import slots
from tasks.slots import lease_gpus, limit_of
from tests.server_fixtures import Run, World, until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
KILLED = "7"  # the GPU whose holder is killed before the other tests: its lease takes a minute to be over
HOLDER = """
import sys
from tasks.slots import lease_gpus
with lease_gpus(1, "killed", print):
    print("held", flush=True)
    sys.stdin.read()
"""


class Busy(Exception):
    """Raised where a job would wait."""


def busy(event: str, text: str) -> None:
    raise Busy(text)


@pytest.fixture(scope="module")
def world(tiny_base, tmp_path_factory):
    """With a server whose leases survive its restart; a holder of one GPU was killed there."""
    world = World(tmp_path_factory.mktemp("slots"), tiny_base)
    world.environment["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] = "prefect.server.concurrency.lease_storage.filesystem"
    world.start_server()
    environment = {**world.environment, "CUDA_VISIBLE_DEVICES": KILLED, "MATHTUNE_GPU_LOCKS": str(container(world, "killed"))}
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=ROOT, env=environment, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
        finally:
            holder.kill()
    with temporary_settings({PREFECT_API_URL: world.url}):
        assert active_slots(KILLED) == 1
    yield world
    world.kill_server()


def container(world: World, name: str) -> Path:
    """A folder of locks that no other container sees."""
    folder = world.folder / f"locks-{name}"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def inside(world, monkeypatch):
    """Puts this process into a container of ``world``, with some GPUs in sight."""
    monkeypatch.setattr(gpus, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(slots, "RENEW_SECONDS", 0.2)

    def enter(name: str, visible: str) -> None:
        monkeypatch.setenv("MATHTUNE_GPU_LOCKS", str(container(world, name)))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    with temporary_settings({PREFECT_API_URL: world.url}):
        yield enter


def active_slots(name: str) -> int:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(limit_of(Gpu(name))).active_slots


def lease_of(world: World, name: str) -> Path:
    """The server's file of the lease of a GPU."""
    with get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name(limit_of(Gpu(name)))
    (file,) = [path for path in world.database.glob("concurrency_leases/*-*.json") if str(limit.id) in path.read_text()]
    return file


def test_two_runs_never_have_an_engine_on_one_gpu_at_once(world):
    """In two containers, so that only the server is between them; the one that waits says so."""
    def run(name: str) -> Run:
        world.recipe(name, hardware={"device": "auto"})
        return Run(world, name, "evaluate", CUDA_VISIBLE_DEVICES="0", MATHTUNE_GPU_LOCKS=str(container(world, name)))

    first = run("first")
    engine = first.wait_for("ready")["pid"]
    os.kill(engine, signal.SIGSTOP)
    second = run("second")
    assert second.wait_for("notice")["text"] == f"waiting for a GPU: 0 is taken elsewhere (Prefect's limit gpu:{HOST}:0)"
    os.kill(engine, signal.SIGCONT)
    second.wait_for("ready")
    assert not is_there(engine)
    assert first.end() == 0, first.output
    assert len(second.of("notice")) == 1
    second.process.terminate()
    assert second.end() == 143  # nothing to save


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_job_takes_another_gpu_where_one_is_taken_elsewhere_and_all_or_nothing(inside):
    with ExitStack() as first:
        inside("a", "1,2")
        assert first.enter_context(lease_gpus(1, "a", busy)).names == ["1"]
        inside("b", "1,2")
        with pytest.raises(Busy, match="waiting for 2 GPUs: 1 is taken elsewhere"), lease_gpus(2, "b", busy):
            pass
        assert (active_slots("1"), active_slots("2")) == (1, 0)
        with lease_gpus(1, "b", busy) as held:
            assert held.names == ["2"] and active_slots("2") == 1
    assert (active_slots("1"), active_slots("2")) == (0, 0)


def test_a_limit_that_a_person_has_set_stays(inside):
    """0 takes a GPU out of service, for all."""
    inside("a", "3")
    with lease_gpus(1, "a", busy):
        pass
    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(limit_of(Gpu("3")), GlobalConcurrencyLimitUpdate(limit=0))
        with pytest.raises(Busy, match="3 is taken elsewhere"), lease_gpus(1, "a", busy):
            pass
        assert client.read_global_concurrency_limit_by_name(limit_of(Gpu("3"))).limit == 0


def test_a_lease_survives_a_restart_of_the_server_and_one_that_was_lost_is_had_again(world, inside):
    inside("a", "4")
    with lease_gpus(1, "a", busy):
        lease = lease_of(world, "4")
        world.kill_server()
        before = lease.read_text()
        world.start_server()
        until(lambda: lease.read_text() != before, world.server)
        inside("b", "4")
        with pytest.raises(Busy, match="4 is taken elsewhere"), lease_gpus(1, "b", busy):
            pass
        with get_client(sync_client=True) as client:
            client.release_concurrency_slots_with_lease(UUID(lease.stem))  # as the server does when one is over
        until(lambda: active_slots("4") == 1, world.server)
        assert lease_of(world, "4") != lease
    assert active_slots("4") == 0


def test_a_server_that_is_away_holds_up_nobody_and_is_asked_again(world, inside):
    inside("a", "5,6")
    said = []
    world.kill_server()
    with lease_gpus(2, "a", lambda _, text: said.append(text)) as held:
        assert held.names == ["5", "6"]
        (text,) = said
        assert text.startswith("no slot from Prefect's server") and text.endswith("by this machine's lock alone")
        with pytest.raises(Busy, match="5 is taken by process"), lease_gpus(1, "a", busy):
            pass
        world.start_server()
        until(lambda: [has_slot(name) for name in ("5", "6")] == [True, True], world.server)
    assert not has_slot("5") and not has_slot("6")


def has_slot(name: str) -> bool:
    try:
        return active_slots(name) == 1
    except ObjectNotFound:
        return False


def test_leases_that_a_restart_would_lose_are_not_relied_on(prefect_server, tmp_path, monkeypatch):
    """Prefect's default. The slot of a job that met a restart would be taken for ever."""
    monkeypatch.setenv("MATHTUNE_GPU_LOCKS", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    said = []
    with lease_gpus(1, "a", lambda _, text: said.append(text)) as held:
        assert held.names == ["0"] and "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE" in said[0]
        with pytest.raises(ObjectNotFound):
            active_slots("0")


def test_the_slot_of_a_killed_holder_is_free_when_its_lease_is_over(world, inside):
    """A minute after it was killed, and up to a quarter for the server to see that."""
    inside("other", KILLED)
    with lease_gpus(1, "other", lambda *_, **__: None):
        assert active_slots(KILLED) == 1
