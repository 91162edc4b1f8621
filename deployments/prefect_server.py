"""``prefect server start``, whose automations are right with a busy database and after the server was away.

Not to be called by people: ``deployments.server`` is. Three things of Prefect's are mended, all by experiment:

An event's automations are looked up in a transaction that reads first and writes then. SQLite refuses such a one at once if
somebody else wrote in between, and after four attempts within half a second the event is dropped: a crashed run would not
start again. A transaction that begins with the right to write waits its turn. PostgreSQL needs nothing of this.

The time in which a sign of life must come goes on while the server is away, and is over when it is back: every live run would
be taken for dead, before it could be heard. So all waits begin anew when the server does.

An event waits for the one that it follows, up to 15 minutes, and which ones have been seen is forgotten at a restart: a run
that crashes within minutes of its begin would not start again for so long. So what was stored before counts as seen.
"""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import sqlalchemy as sa
from prefect.cli import app
from prefect.server.database import provide_database_interface
from prefect.server.events import triggers
from prefect.server.events.ordering.memory import CausalOrdering
from prefect.server.events.schemas.automations import Automation, EventTrigger, Posture
from prefect.server.events.schemas.events import Event
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


def remembering(seen: Callable[..., Awaitable[bool]]) -> Callable[..., Awaitable[bool]]:
    """``event_has_been_seen``, which knows the events that the server stored before it was started, too."""
    started = now("UTC")

    async def has_been_seen(ordering: CausalOrdering, event: UUID | Event) -> bool:
        if await seen(ordering, event):
            return True
        database, asked = provide_database_interface(), event.id if isinstance(event, Event) else event
        async with database.session_context() as session:
            query = sa.select(database.Event.id).where(database.Event.id == asked, database.Event.received < started)
            return (await session.execute(query)).first() is not None

    return has_been_seen


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
    CausalOrdering.event_has_been_seen = remembering(CausalOrdering.event_has_been_seen)
    triggers.load_automations = listening_first(triggers.load_automations)
    sys.argv = ["prefect", "server", "start", *sys.argv[1:]]
    app()
