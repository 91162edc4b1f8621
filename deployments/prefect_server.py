"""``prefect server start``, whose automations are right when it is behind and after it was away.

Not to be called by people: ``deployments.server`` is. Three things of Prefect's are mended, all by experiment, besides how it
waits for its database (``flows.server_database``):

The time in which a sign of life must come goes on while the server is away, and is over when it is back: every live run would
be taken for dead, before it could be heard. So all waits begin anew when the server does.

An event waits for the one that it follows, up to 15 minutes, and which ones have been seen is forgotten at a restart: a run
that crashes within minutes of its begin would not start again for so long. So what was stored before counts as seen.

A server that is behind with its events may act on what was so some time ago: it would crash a run that has completed, and have
it done again. So our automations look first at what the run's state is by now.
"""

import sys
from collections.abc import Awaitable, Callable
from uuid import UUID

import sqlalchemy as sa
from prefect.cli import app
from prefect.server.database import provide_database_interface
from prefect.server.events import triggers
from prefect.server.events.actions import ActionFailed, ChangeFlowRunState
from prefect.server.events.ordering.memory import CausalOrdering
from prefect.server.events.schemas.automations import Automation, EventTrigger, Posture, TriggeredAction
from prefect.server.events.schemas.events import Event
from prefect.server.schemas.states import StateType
from prefect.types._datetime import now
from sqlalchemy.ext.asyncio import AsyncSession

from flows.automations import OURS
from flows.server_database import wait_in_the_event_loop

MEANT_FOR = {StateType.CRASHED: {StateType.RUNNING},  # a silent run
             StateType.SCHEDULED: {StateType.CRASHED, StateType.PENDING}}  # a crashed one, and one that never began


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


def heeding_the_state(act: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """``ChangeFlowRunState.act``, but, where it is one of our automations', only from states that it is meant for."""

    async def act_unless_late(action: ChangeFlowRunState, triggered: TriggeredAction) -> None:
        if triggered.automation.name.startswith(OURS):
            database, run = provide_database_interface(), await action.flow_run(triggered)
            async with database.session_context() as session:  # an event is told before what it tells of is committed
                asked = sa.select(database.FlowRun.state_type).where(database.FlowRun.id == run).with_for_update()
                state = await session.scalar(asked)
            if state not in MEANT_FOR.get(action.state, {state}):
                raise ActionFailed(f"it comes too late: the run is {state.value if state else 'deleted'} by now")
        await act(action, triggered)

    return act_unless_late


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
    wait_in_the_event_loop()
    CausalOrdering.event_has_been_seen = remembering(CausalOrdering.event_has_been_seen)
    triggers.load_automations = listening_first(triggers.load_automations)
    ChangeFlowRunState.act = heeding_the_state(ChangeFlowRunState.act)
    sys.argv = ["prefect", "server", "start", *sys.argv[1:]]
    app()
