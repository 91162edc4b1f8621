"""A GPU's slot at a real Prefect server. Two folders of locks stand for two containers, which only the server keeps apart."""

import json
import os
import signal
import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.settings.models.server.concurrency import ServerConcurrencySettings

from mathtune import gpus
from mathtune.files import HOST
from mathtune.gpus import Gpu
from tasks import slots
from tasks.servers import answering
from tasks.slots import acquire, lease_gpus, limit_of
from tests.server_fixtures import Run, World, until

pytestmark = pytest.mark.slow

IN_FILES = "prefect.server.concurrency.lease_storage.filesystem"


class Busy(Exception):
    """Raised where a job would wait."""


def busy(event: str, text: str) -> None:
    raise Busy(text)


def waits(event: str, text: str) -> None:
    """Of a job that may have to wait."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """With a server whose leases survive its restart, and which looks often for those that are over."""
    world = World(tmp_path_factory.mktemp("slots"), Path("builtin:demo"))  # so that nothing here imports torch
    world.environment |= {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": IN_FILES,
                          "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "1"}
    world.start_server()
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
    monkeypatch.setattr(gpus, "CLAIM_SECONDS", 0.1)
    monkeypatch.setattr(slots, "RENEW_SECONDS", 0.2)

    def enter(name: str, visible: str) -> None:
        monkeypatch.setenv("MATHTUNE_GPU_LOCKS", str(container(world, name)))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    with temporary_settings({PREFECT_API_URL: world.url}):
        yield enter


def active_slots(name: str) -> int:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(limit_of(Gpu(name))).active_slots


def has_slot(name: str) -> bool:
    try:
        return active_slots(name) == 1
    except ObjectNotFound:
        return False


def lease_of(world: World, name: str) -> Path:
    """The server's file of the lease of a GPU."""
    with get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name(limit_of(Gpu(name)))
    (file,) = [path for path in world.database.glob("concurrency_leases/*-*.json") if str(limit.id) in path.read_text()]
    return file


def test_a_run_waits_for_its_gpu_and_has_it_until_its_engine_is_gone(world, inside):
    """The other job is in another container, so that only the server is between them."""
    world.recipe("run", hardware={"device": "auto"})
    inside("other", "0")
    with lease_gpus(1, "other", busy):
        run = Run(world, "run", "evaluate", CUDA_VISIBLE_DEVICES="0", MATHTUNE_GPU_LOCKS=str(container(world, "run")))
        assert run.wait_for("notice")["text"] == f"waiting for a GPU: 0 is taken elsewhere (Prefect's limit gpu:{HOST}:0)"
        assert not run.of("ready")
    engine = run.wait_for("ready")["pid"]
    os.kill(engine, signal.SIGSTOP)
    with pytest.raises(Busy, match="0 is taken elsewhere"), lease_gpus(1, "other", busy):
        pass
    run.process.terminate()
    os.kill(engine, signal.SIGCONT)
    with lease_gpus(1, "other", waits):
        assert not Path(f"/proc/{engine}").exists()
    assert run.end() == 143  # nothing to save
    assert len(run.of("notice")) == 1


def test_a_job_takes_another_gpu_where_one_is_taken_elsewhere_and_all_or_nothing(inside):
    with ExitStack() as first:
        inside("a", "1,2")
        assert first.enter_context(lease_gpus(1, "a", busy)).names == ["1"]
        inside("b", "1,2")
        with pytest.raises(Busy, match="waiting for 2 GPUs: 1 is taken elsewhere"), lease_gpus(2, "b", busy):
            pass
        assert has_slot("1") and not has_slot("2")
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


def test_the_slots_of_a_job_are_given_back_together(inside, monkeypatch):
    """A server that does not answer is waited for once: here it answers nobody before it was asked for both."""
    both, release = threading.Barrier(2, timeout=30), SyncPrefectClient.release_concurrency_slots_with_lease

    def together(client, lease: UUID) -> None:
        both.wait()
        release(client, lease)

    monkeypatch.setattr(SyncPrefectClient, "release_concurrency_slots_with_lease", together)
    monkeypatch.setattr(slots, "END_SECONDS", 60)
    inside("a", "1,2")
    with lease_gpus(2, "a", busy):
        assert (active_slots("1"), active_slots("2")) == (1, 1)
    assert (active_slots("1"), active_slots("2")) == (0, 0)


def test_a_lease_is_renewed_whatever_went_wrong_once(world, inside, monkeypatch):
    renewed, renew, said = [], slots.renew, []

    def once_wrong(client, lease: UUID) -> bool:
        renewed.append(lease)
        if len(renewed) == 1:
            raise TypeError("an answer of another kind")
        return renew(client, lease)

    monkeypatch.setattr(slots, "renew", once_wrong)
    inside("a", "9")
    with lease_gpus(1, "a", lambda _, text: said.append(text)):
        until(lambda: len(renewed) > 2, world.server)
    assert len(set(renewed)) == 1 and active_slots("9") == 0
    assert said == [f"Prefect's limit {limit_of(Gpu('9'))} was not always held: TypeError('an answer of another kind')"]


def test_leases_survive_a_restart_of_the_server_which_holds_up_nobody_and_one_that_was_lost_is_had_again(world, inside):
    inside("a", "4")
    with lease_gpus(1, "a", busy):
        lease = lease_of(world, "4")
        world.kill_server()
        before, said = lease.read_text(), []
        inside("a", "5,6")
        with lease_gpus(2, "a", lambda _, text: said.append(text)) as held:
            assert held.names == ["5", "6"]
            (text,) = said
            assert text.startswith("no slot from Prefect's server") and text.endswith("by this machine's lock alone")
            with pytest.raises(Busy, match="5 is taken by process"), lease_gpus(1, "a", busy):
                pass
            world.start_server()
            until(lambda: has_slot("5") and has_slot("6"), world.server)
        assert not has_slot("5") and not has_slot("6")

        until(lambda: lease.read_text() != before, world.server)
        inside("b", "4")
        with pytest.raises(Busy, match="4 is taken elsewhere"), lease_gpus(1, "b", busy):
            pass
        with get_client(sync_client=True) as client:
            client.release_concurrency_slots_with_lease(UUID(lease.stem))  # as the server does when one is over
        until(lambda: active_slots("4") == 1, world.server)
        assert lease_of(world, "4") != lease
    assert active_slots("4") == 0


def test_leases_that_a_restart_would_lose_are_not_relied_on(inside, monkeypatch):
    """Prefect's default. The slot of a job that met a restart would be taken for ever."""
    assert ServerConcurrencySettings.model_fields["lease_storage"].default == slots.IN_MEMORY
    monkeypatch.setattr(slots, "IN_MEMORY", IN_FILES)
    inside("a", "8")
    said = []
    with lease_gpus(1, "a", lambda _, text: said.append(text)) as held:
        assert held.names == ["8"] and "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE" in said[0]
        with pytest.raises(ObjectNotFound):
            active_slots("8")


def test_the_slot_of_a_killed_holder_is_free_when_its_lease_is_over(world, inside):
    """What it leaves is a lease that nobody renews, for a minute; here the minute passes at once."""
    inside("other", "7")
    with answering() as client:
        assert acquire(client, limit_of(Gpu("7")))
    with pytest.raises(Busy, match="7 is taken elsewhere"), lease_gpus(1, "other", busy):
        pass
    file, index = lease_of(world, "7"), world.database / "concurrency_leases" / "expirations.json"
    lease, past = json.loads(file.read_text()), (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    assert datetime.fromisoformat(lease["expiration"]) - datetime.fromisoformat(lease["created_at"]) < timedelta(seconds=61)
    file.write_text(json.dumps({**lease, "expiration": past}))
    index.write_text(json.dumps({**json.loads(index.read_text()), file.stem: past}))
    with lease_gpus(1, "other", waits):
        assert lease_of(world, "7") != file
