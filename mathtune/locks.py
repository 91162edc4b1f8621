"""A lease on a chain, so that two workers do not train the same rows: one works, the other waits.

Leases are numbered, and the next number is created only if absent: the number is a fencing token. A holder renews its
lease with a counter. It is over when it is given back, when its holder's process is gone (seen at once on the same
machine), or when the counter has not moved for ``seconds`` by the *waiter's* clock: no two clocks are compared, and none
needs to be right. A lease saves work only; what makes the chain right is the compare-and-set of its head.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mathtune.errors import StoreError, TakenOver
from mathtune.events import Emit
from mathtune.files import HOST, process_mark
from mathtune.folders import Folders

LEASE_SECONDS = 60.0
POLL_SECONDS = 1.0


class Lease:
    """A held lease.

    Args:
        folders, under: where the leases lie.
        number: of this one.
    """

    def __init__(self, folders: Folders, under: str, number: int, holder: dict[str, Any]):
        self.folders, self.under, self.number, self.holder = folders, under, number, holder

    def check(self) -> None:
        """Holds that nobody has taken over meanwhile.

        Raises:
            TakenOver: somebody has.
        """
        latest = _latest(self.folders, self.under)
        if latest != self.number:
            raise TakenOver(f"another worker took over while this one was not heard of (lease {latest}, ours {self.number}); "
                             "what it does stays, this one stops", where=self.under,
                            remedy="run the same command again: it goes on from what is there")

    def renew(self, beat: int) -> None:
        self.folders.write(_name(self.under, self.number), json.dumps({**self.holder, "beat": beat}))

    def give_back(self) -> None:
        self.folders.write(_name(self.under, self.number), json.dumps({**self.holder, "over": True}))


@contextmanager
def leased(folders: Folders, under: str, emit: Emit, seconds: float = LEASE_SECONDS) -> Iterator[Lease]:
    """Waits for the lease below ``under`` and holds it.

    Args:
        emit: told whom it waits for.
        seconds: after which a silent holder is taken for gone.
    """
    lease = _acquire(folders, under, emit, seconds)
    done = threading.Event()

    def keep() -> None:
        beat = 0
        while not done.wait(seconds / 4):
            beat += 1
            try:
                lease.renew(beat)
            except StoreError:
                pass  # not renewed in time it is lost, which `check` will find

    renewer = threading.Thread(target=keep, daemon=True)
    renewer.start()
    try:
        yield lease
    finally:
        done.set()
        renewer.join(1)  # the place may be away, and a stop must not wait for it
        with suppress(StoreError):  # the place is away: the lease is over when it has not moved for long enough
            lease.give_back()


def _acquire(folders: Folders, under: str, emit: Emit, seconds: float) -> Lease:
    holder = {"token": uuid.uuid4().hex, "host": HOST, "pid": os.getpid(), "process": process_mark(os.getpid())}
    seen, since, told = None, 0.0, None
    while True:
        latest = _latest(folders, under)
        text = folders.read(_name(under, latest)) if latest else None
        if text != seen:
            seen, since = text, time.monotonic()
        if text is None or _is_over(json.loads(text)) or time.monotonic() - since > seconds:
            if folders.create_once(_name(under, latest + 1), json.dumps({**holder, "beat": 0})):
                for number in _numbers(folders, under):
                    if number <= latest:
                        folders.delete(_name(under, number))
                return Lease(folders, under, latest + 1, holder)
            continue
        other = json.loads(text)
        if told != other["token"]:
            told = other["token"]
            emit("notice", text=f"waiting for process {other['pid']} on {other['host']}, which is at work on this chain")
        time.sleep(POLL_SECONDS)


def _is_over(holder: dict[str, Any]) -> bool:
    """Whether a lease was given back, or its holder was a process of this machine that is gone."""
    return holder.get("over", False) or (holder["host"] == HOST and process_mark(holder["pid"]) != holder["process"])


def _latest(folders: Folders, under: str) -> int:
    return max(_numbers(folders, under), default=0)


def _numbers(folders: Folders, under: str) -> list[int]:
    names = [name.rpartition("/")[2] for name in folders.texts(under)]
    return [int(name) for name in names if name.isdigit()]


def _name(under: str, number: int) -> str:
    return f"{under}/{number:08d}"
