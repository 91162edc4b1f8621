"""The automations that bring back a run whose machine went away: silent → Crashed, Crashed and never begun → Scheduled again.

They hold for runs of deployments with a tag: a ``mathtune run`` in a terminal is never touched, nor are other people's
deployments, whose heartbeats may be slower. They do not list the deployments, since an automation that is changed forgets
which runs had begun. The server keeps their timers in its database, so that they outlive its restart. Leaves out what a run
does when it comes back (``tasks.deployment``).
"""

from datetime import timedelta
from typing import Any

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from tasks.deployment import ATTEMPTS

TAG = "mathtune"  # of every deployment of prefect.yaml
HEARTBEAT = "prefect.flow-run.heartbeat"
SILENT = timedelta(seconds=90)  # three heartbeats of prefect.yaml's 30 s
UNBEGUN = timedelta(minutes=10)  # a flow begins some 10 s after its worker took it
LONGEST = timedelta(days=30)  # after which a run that crashes does not come back by itself
OURS = "mathtune:"  # how the names begin, by which the team's server knows them
ZOMBIE = f"{OURS} silent runs are crashed"
RESTART = f"{OURS} crashed runs start again"
RESUBMIT = f"{OURS} runs that never began start again"
NAMES = (ZOMBIE, RESTART, RESUBMIT)


def automations() -> list[AutomationCore]:
    """All, as a team's server has them."""
    return [zombie(), restart(), resubmit()]


def zombie(tag: str = TAG, silent: timedelta = SILENT) -> AutomationCore:
    """Marks a run that has sent a heartbeat and then neither another one nor an end state.

    A run that is being cancelled stays so: the server refuses Crashed. Any other change of its state ends the wait, and the
    next heartbeat begins it anew.
    """
    states = ("Completed", "Failed", "Crashed", "Cancelled", "Scheduled", "AwaitingRetry", "Pending", "Paused")
    return AutomationCore(
        name=ZOMBIE, description=f"No heartbeat for {silent.total_seconds():.0f} s: the machine or its network is gone.",
        trigger=EventTrigger(
            **runs_of(tag), posture=Posture.Proactive, threshold=1, within=silent, after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{state}" for state in states)}),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {silent.total_seconds():.0f} s")])


def restart(tag: str = TAG) -> AutomationCore:
    """Starts a crashed run again, once for each time that it ran.

    A run that crashes before its flow begins (its folder is gone, an import fails) has not been Running since: it stays
    Crashed. One that crashes again and again is given up by ``check_attempts`` at its next start, and here.
    """
    trigger = runs_of(tag)
    trigger["match"]["prefect.run-count"] = [str(count) for count in range(1, ATTEMPTS + 1)]
    return AutomationCore(
        name=RESTART, description=f"At most {ATTEMPTS} times, and only where the flow had begun.",
        trigger=EventTrigger(**trigger, posture=Posture.Reactive, threshold=1, within=LONGEST,
                             after={"prefect.flow-run.Running"}, expect={"prefect.flow-run.Crashed"}),
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, message="crashed; it goes on from its checkpoint")])


def resubmit(tag: str = TAG, unbegun: timedelta = UNBEGUN) -> AutomationCore:
    """Has another worker take a run whose worker went away before the flow began; there was nothing to send a heartbeat.

    Only of a pool of processes, which begin at once: a pod may well wait longer for a GPU, and would be started twice.
    """
    trigger = runs_of(tag)
    trigger["match_related"].append({"prefect.resource.role": "work-pool", "prefect.work-pool.type": "process"})
    states = ("Running", "Scheduled", "AwaitingConcurrencySlot", "Completed", "Failed", "Crashed", "Cancelling", "Cancelled")
    return AutomationCore(
        name=RESUBMIT, description=f"Taken by a worker and not begun for {unbegun.total_seconds():.0f} s: the worker is gone.",
        trigger=EventTrigger(**trigger, posture=Posture.Proactive, threshold=1, within=unbegun,
                             after={"prefect.flow-run.Pending"}, expect={f"prefect.flow-run.{state}" for state in states}),
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, message="its worker never began it")])


def runs_of(tag: str) -> dict[str, Any]:
    """The part of a trigger that says: each run of a deployment with this tag by itself. Its subflows have the tag, too."""
    return {
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "match_related": [{"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"},
                          {"prefect.resource.role": "deployment"}],
        "for_each": {"prefect.resource.id"}}


def says(automation: AutomationCore) -> dict[str, Any]:
    """What an automation does, to compare: without the ids that a server gives."""
    trigger = automation.trigger.model_dump(mode="json", exclude={"id"})
    ordered = {key: sorted(value) if key in ("after", "expect", "for_each") else value for key, value in trigger.items()}
    actions = [action.model_dump(mode="json", exclude_none=True) for action in automation.actions]
    return {"description": automation.description, "trigger": ordered, "actions": actions}
