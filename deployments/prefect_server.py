"""``prefect server start``, whose automations are right with a busy database and after the server was away.

Not to be called by people: ``deployments.server`` is. Two things of Prefect's are mended, both by experiment:

An event's automations are looked up in a transaction that reads first and writes then. SQLite refuses such a one at once if
somebody else wrote in between, and after four attempts within half a second the event is dropped: a crashed run would not
start again. A transaction that begins with the right to write waits its turn. PostgreSQL needs nothing of this.

The time in which a sign of life must come goes on while the server is away, and is over when it is back: every live run would
be taken for dead, before it could be heard. So all waits begin anew when the server does.
"""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import sqlalchemy as sa
from prefect.cli import app
from prefect.server.database import provide_database_interface
from prefect.server.events import triggers
from prefect.server.events.schemas.automations import Automation, EventTrigger, Posture
from prefect.types._datetime import now
from sqlalchemy.ext.asyncio import AsyncSession


@asynccontextmanager
async def waiting_session(begin_transaction: bool = False) -> AsyncIterator[AsyncSession]:
    """As ``prefect.server.events.models.automations.automations_session``, but with the right to write from its begin."""
    database = provide_database_interface()
    async with database.session_context(begin_transaction=begin_transaction, with_for_update=begin_transaction) as session:
        yield session


def listening_first(load: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """``load_automations``, before whose first call, before any is looked at, the waits for a sign of life begin anew."""
    begun = False

    async def begin_and_load(session: AsyncSession) -> None:
        nonlocal begun
        if not begun:
            await begin_waits(session)
            begun = True
        await load(session)

    return begin_and_load


async def begin_waits(session: AsyncSession) -> None:
    """Gives every trigger that waits for an event its whole time from now."""
    database = provide_database_interface()
    for automation in (await session.execute(sa.select(database.Automation))).scalars().all():
        for trigger in Automation.model_validate(automation, from_attributes=True).triggers_of_type(EventTrigger):
            if trigger.posture == Posture.Proactive:
                bucket = database.AutomationBucket
                await session.execute(sa.update(bucket).where(bucket.trigger_id == trigger.id)
                                      .values(end=now("UTC") + trigger.within))
    await session.commit()


if __name__ == "__main__":
    triggers.automations_session = waiting_session
    triggers.load_automations = listening_first(triggers.load_automations)
    sys.argv = ["prefect", "server", "start", *sys.argv[1:]]
    app()
