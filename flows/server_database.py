"""A Prefect server that we start, on its SQLite database: it waits for its turn, and in its event loop.

SQLite waits for a lock with a connection's mutex in its hand, and Prefect lets it wait for a minute. What is left of that
connection's earlier statements is freed by Python's garbage collector, in the thread in which it happens to run. Where that is
the event loop's, it waits for the mutex; the transaction that has the lock waits for the event loop; and nobody is answered for
that minute (py-spy: ``gc_collect_main`` → ``cursor_dealloc`` → ``sqlite3_reset`` → ``pthread_mutex_lock``). Four clients at a
time are enough. So SQLite is told not to wait, and a statement is tried again.

A transaction that reads first and writes then is refused if somebody else wrote in between ("database is locked"): a client
gets 503, and an event of an automation is dropped after four attempts. So transactions begin with the right to write.

PostgreSQL needs nothing of this. Measured by ``benchmarks/busy_server.py``.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiosqlite import Connection, Cursor
from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction
from sqlalchemy.pool import ConnectionPoolEntry

WAIT_SECONDS = 60  # Prefect's own
POLL_SECONDS = 0.01
LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY}  # not SQLITE_BUSY_SNAPSHOT: what was read is outdated for good


def wait_in_the_event_loop() -> None:
    """To be called before the server opens its database."""
    Cursor.execute = trying_again(Cursor.execute)
    Cursor.executemany = trying_again(Cursor.executemany)
    Connection.commit = trying_again(Connection.commit)  # waits for readers where a file system has no write-ahead log
    AioSqliteConfiguration.setup_sqlite = without_waiting(AioSqliteConfiguration.setup_sqlite)
    AioSqliteConfiguration.begin_transaction = ready_to_write(AioSqliteConfiguration.begin_transaction)


def trying_again(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A cursor's or a connection's method, tried so long as another connection has the lock."""

    async def do_when_free(*arguments: Any) -> Any:
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return await method(*arguments)
            except sqlite3.OperationalError as error:  # one of Python's own has no code
                if getattr(error, "sqlite_errorcode", None) not in LOCKED or time.monotonic() > end:
                    raise
            await asyncio.sleep(POLL_SECONDS)

    return do_when_free


def without_waiting(setup: Callable[..., None]) -> Callable[..., None]:
    """``AioSqliteConfiguration.setup_sqlite``, after which SQLite itself does not wait."""

    def set_up(configuration: AioSqliteConfiguration, connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        setup(configuration, connection, record)
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 0")
        cursor.close()

    return set_up


def ready_to_write(begin: Callable[..., Any]) -> Callable[..., Any]:
    """``AioSqliteConfiguration.begin_transaction``, with the right to write from the begin. Another session in its time would
    wait for it in vain, and is Prefect's own."""

    @asynccontextmanager
    async def begin_ready(configuration: AioSqliteConfiguration, session: AsyncSession,
                          with_for_update: bool = False) -> AsyncIterator[AsyncSessionTransaction]:
        if SQLITE_BEGIN_MODE.get():  # it is set as long as a transaction lasts
            async with begin(configuration, session, with_for_update) as transaction:
                yield transaction
            return
        async with begin(configuration, session, with_for_update=True) as transaction:
            await session.connection()
            mode = SQLITE_BEGIN_MODE.set("DEFERRED")
            try:
                yield transaction
            finally:
                SQLITE_BEGIN_MODE.reset(mode)

    return begin_ready
