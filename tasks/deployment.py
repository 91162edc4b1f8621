"""What a run of a deployment does besides its work: takes secrets, gives up a crash loop, says its range, ends its schedule."""

import os

from httpx import HTTPError
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.runtime import deployment, flow_run

from mathtune.errors import MachineError

SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
ATTEMPTS = 5  # starts of one run, the automation's among them, before it is left to a person


def secret_block(variable: str) -> str:
    """``hf-token``, the Secret block that stands for the variable HF_TOKEN."""
    return variable.lower().replace("_", "-")


def load_secrets() -> None:
    """Puts the tokens that Secret blocks hold where the libraries look for them; what the worker's own environment has stays.

    They are never parameters: those are shown to everybody.
    """
    for variable in SECRETS:
        if variable not in os.environ:
            try:
                os.environ[variable] = Secret.load(secret_block(variable)).get()
            except ValueError:  # no such block
                continue


def check_attempts() -> None:
    """Ends a crash loop: Prefect's automation schedules a crashed run again however often it has crashed.

    Raises:
        MachineError: this run was started too often.
    """
    if (count := flow_run.run_count) > ATTEMPTS:
        raise MachineError(f"it was started {count} times and never ended by itself", where=f"flow run {flow_run.name}",
                           remedy="look at its logs; when the cause is gone start it anew: it goes on from its checkpoint")


def name_run(name: str) -> None:
    """Names the run that this is called in, where it is a flow run of a server that answers."""
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_name(flow_run.id, name)
    except (HTTPError, RuntimeError):  # RuntimeError: "Failed to reach API"
        pass  # its parameters say the same


def end_schedules() -> int:
    """Pauses the schedules of this run's deployment, if one of them started it. Returns how many were active."""
    with get_client(sync_client=True) as client:
        if not client.read_flow_run(flow_run.id).auto_scheduled:
            return 0
        active = [one for one in client.read_deployment_schedules(deployment.id) if one.active]
        for schedule in active:
            client.update_deployment_schedule(deployment.id, schedule.id, active=False)
    return len(active)
