"""Leases: one worker at a time, over at once when its process dies, taken over when it sleeps, and fenced when it wakes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mathtune.chain import Chain
from mathtune.errors import TakenOver
from mathtune.files import HOST
from mathtune.locks import Lease, leased
from tests.test_chain import PINS, make_link, writer

HOLDER = """
import sys, time
from pathlib import Path
from mathtune.folders import open_folders
from mathtune.locks import leased
folders = open_folders(sys.argv[1], Path(sys.argv[2]))
with leased(folders, "c/leases", print, seconds=float(sys.argv[3])) as lease:
    print("held", lease.number, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(folders):
    """Starts processes that hold the lease of chain ``c``, and ends them."""
    started = []

    def start(seconds: float) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLDER, folders.url, str(folders.cache), str(seconds)],
                                   stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline().startswith("held")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


class Notices(list):
    def __call__(self, event, text):
        assert event == "notice"
        self.append(text)


def test_a_lease_is_given_back_and_numbered(folders):
    for number in (1, 2, 3):
        with leased(folders, "c/leases", Notices()) as lease:
            assert lease.number == number
            lease.check()
        assert len(folders.texts("c/leases")) == 1  # older ones are taken away


def test_the_second_waits_for_the_first_says_for_whom_and_then_works(folders):
    notices, order = Notices(), []

    def second():
        with leased(folders, "c/leases", notices):
            order.append("second")

    with leased(folders, "c/leases", Notices()):
        waiting = threading.Thread(target=second)
        waiting.start()
        while not notices:
            time.sleep(0.01)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    assert len(notices) == 1 and f"waiting for process {os.getpid()} on " in notices[0]


def test_a_lease_dies_with_its_holder(folders, hold):
    holder = hold(seconds=3600)  # never to be taken over for its silence
    holder.kill()
    holder.wait()
    with leased(folders, "c/leases", Notices()) as lease:
        assert lease.number == 2


def test_a_process_with_the_number_of_a_dead_holder_does_not_count_as_it(folders, monkeypatch):
    Lease(folders, "c/leases", 1, {"token": "x", "host": HOST, "pid": os.getpid(),
                                   "process": "1.2.another"}).renew(1)
    with leased(folders, "c/leases", Notices()) as lease:
        assert lease.number == 2


@pytest.mark.slow
def test_who_slept_past_the_lease_is_taken_over_and_refused_when_it_wakes(folders, hold):
    holder = hold(seconds=1)
    os.kill(holder.pid, signal.SIGSTOP)
    with leased(folders, "c/leases", Notices(), seconds=1) as lease:
        assert lease.number == 2
        os.kill(holder.pid, signal.SIGCONT)
        time.sleep(1)  # it renews its own, older number: that takes nothing from the new holder
        lease.check()
        asleep = Lease(folders, "c/leases", 1, {})
        with pytest.raises(TakenOver, match="another worker took over") as caught:
            asleep.check()
        assert "the same command" in caught.value.remedy


@pytest.mark.slow
def test_who_renews_is_not_taken_over(folders, hold):
    hold(seconds=1)
    notices = Notices()
    taken = threading.Event()

    def want():
        with leased(folders, "c/leases", notices, seconds=1):
            taken.set()

    threading.Thread(target=want, daemon=True).start()
    assert not taken.wait(3)
    assert notices


def test_a_worker_that_slept_through_its_training_publishes_nothing(folders):
    """The fencing number is checked between training and publishing: fault 16."""
    chain, link = Chain(folders, "c"), make_link()
    with leased(folders, "c/leases", Notices()) as lease:
        def train_while_another_takes_over(folder):
            Lease(folders, "c/leases", lease.number + 1, lease.holder).renew(0)
            done = writer(link)(folder)
            lease.check()
            return done

        with pytest.raises(TakenOver, match="another worker took over"):
            chain.publish(1, link.title, link.key, train_while_another_takes_over)
    assert chain.candidate(1, link.title, link.key) is None and chain.links() == []


def _add_links(root, results):
    from mathtune.folders import LocalFolders

    chain = Chain(LocalFolders(root), "c")
    for _ in range(5):
        with leased(chain.folders, "c/leases", lambda *_, **__: None):
            links = chain.links()
            number, parent = len(links) + 1, links[-1].key if links else ""
            link = chain.publish(number, f"sft[{number}:{number + 1})", f"{number:064d}", writer(
                make_link(number, parent, number, number + 1, key=f"{number:064d}")))
            chain.settle(link, PINS, "accepted")
            results.put(number)


def test_two_processes_that_extend_a_chain_in_turn_lose_nothing_and_train_nothing_twice(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    workers = [spawn.Process(target=_add_links, args=(tmp_path, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    numbers = sorted(results.get(timeout=60) for _ in range(10))
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    from mathtune.folders import LocalFolders
    assert numbers == list(range(1, 11)) and len(Chain(LocalFolders(tmp_path), "c").links()) == 10
