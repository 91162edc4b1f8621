"""The two automations that bring back a run whose machine went away: silent → Crashed, and Crashed → Scheduled again.

They hold for runs of the deployments that they are made for: a ``mathtune run`` in a terminal is never touched, nor are other
people's deployments, whose heartbeats may be slower. The server keeps their timers in its database, so that they outlive
its restart. Leaves out what a run does when it comes back (``tasks.deployment``).
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from tasks.deployment import ATTEMPTS

HEARTBEAT = "prefect.flow-run.heartbeat"
SILENT = timedelta(seconds=90)  # three heartbeats of prefect.yaml's 30 s
LONGEST = timedelta(days=365)  # after which a run that crashes does not come back by itself
ZOMBIE = "mathtune: silent runs are crashed"
RESTART = "mathtune: crashed runs start again"


def automations(deployments: Sequence[UUID], silent: timedelta = SILENT) -> list[AutomationCore]:
    """Both, for the runs of some deployments."""
    return [zombie(deployments, silent), restart(deployments)]


def zombie(deployments: Sequence[UUID], silent: timedelta) -> AutomationCore:
    """Marks a run that has sent a heartbeat and then neither another one nor an end state.

    A run that is being cancelled stays so: the server refuses Crashed. Any other change of its state ends the wait, and the
    next heartbeat begins it anew.
    """
    states = ("Completed", "Failed", "Crashed", "Cancelled", "UsedUp", "Scheduled", "AwaitingRetry", "Pending", "Paused")
    return AutomationCore(
        name=ZOMBIE, description=f"No heartbeat for {silent.total_seconds():.0f} s: the machine or its network is gone.",
        trigger=EventTrigger(
            **runs_of(deployments), posture=Posture.Proactive, threshold=1, within=silent, after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{state}" for state in states)}),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {silent.total_seconds():.0f} s")])


def restart(deployments: Sequence[UUID]) -> AutomationCore:
    """Starts a crashed run again, once for each time that it ran.

    A run that crashes before its flow begins (its folder is gone, an import fails) has not been Running since: it stays
    Crashed. One that crashes again and again is given up by ``check_attempts`` at its next start, and here.
    """
    trigger = runs_of(deployments)
    trigger["match"]["prefect.run-count"] = [str(count) for count in range(1, ATTEMPTS + 1)]
    return AutomationCore(
        name=RESTART, description=f"At most {ATTEMPTS} times, and only where the flow had begun.",
        trigger=EventTrigger(**trigger, posture=Posture.Reactive, threshold=1, within=LONGEST,
                             after={"prefect.flow-run.Running"}, expect={"prefect.flow-run.Crashed"}),
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, message="crashed; it goes on from its checkpoint")])


def runs_of(deployments: Sequence[UUID]) -> dict[str, Any]:
    """The part of a trigger that says: each run of one of these deployments by itself."""
    return {
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "match_related": {"prefect.resource.role": "deployment",
                          "prefect.resource.id": sorted(f"prefect.deployment.{one}" for one in deployments)},
        "for_each": {"prefect.resource.id"}}


def says(automation: AutomationCore) -> dict[str, Any]:
    """What an automation does, to compare: without the ids that a server gives."""
    trigger = automation.trigger.model_dump(mode="json", exclude={"id"})
    ordered = {key: sorted(value) if key in ("after", "expect", "for_each") else value for key, value in trigger.items()}
    actions = [action.model_dump(mode="json", exclude_none=True) for action in automation.actions]
    return {"description": automation.description, "trigger": ordered, "actions": actions}
