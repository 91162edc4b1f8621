"""What a run of a deployment does besides its work: takes secrets, gives up a crash loop, says its range, ends its schedule."""

import os
from contextlib import suppress
from typing import Any

from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.runtime import deployment, flow_run

from mathtune.errors import MachineError
from tasks.servers import AWAY, answering

IDENTITIES = (("HF_TOKEN",), ("WANDB_API_KEY",), ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
SECRETS = tuple(variable for identity in IDENTITIES for variable in identity)
ATTEMPTS = 5  # starts of one run, the automation's among them, before it is left to a person


def secret_block(variable: str) -> str:
    """``hf-token``, the Secret block that stands for the variable HF_TOKEN."""
    return variable.lower().replace("_", "-")


def load_secrets() -> None:
    """Puts the tokens that Secret blocks hold where the libraries look for them; what the worker's own environment has stays.

    They are never parameters: those are shown to everybody. An AWS key and its id are of one identity: both of the environment,
    or both of blocks.

    Raises:
        MachineError: a block holds no token, or one of a pair is missing.
    """
    for identity in IDENTITIES:
        if not any(variable in os.environ for variable in identity):
            found = {variable: token for variable in identity if (token := read_token(secret_block(variable)))}
            if missing := found and [secret_block(variable) for variable in identity if variable not in found]:
                raise MachineError("there is no such block, and the other of the pair is of no use without",
                                   where=f"Secret block {missing[0]}", remedy="python -m deployments.bootstrap --secret "
                                   f"{' '.join(identity)} saves both")
            os.environ.update(found)


def read_token(name: str) -> str | None:
    """The token in a Secret block; None: there is no such block.

    Raises:
        MachineError: it holds something else.
    """
    try:
        block = Secret.load(name)
    except ValueError:  # no such block
        return None
    held = block.value.get_secret_value()  # not get(), which takes a token of digits for a number
    if not isinstance(held, str) or not (token := held.strip()):
        raise MachineError("it holds no token but something else", where=f"Secret block {name}",
                           remedy="save the bare text of the token in it")
    return token


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
    with suppress(*AWAY), answering() as client:  # its parameters say the same
        client.set_flow_run_name(flow_run.id, name)


def default_parameters() -> dict[str, Any]:
    """What this run's deployment has for parameters that nobody gives."""
    with get_client(sync_client=True) as client:
        return client.read_deployment(deployment.id).parameters


def end_schedules() -> int:
    """Pauses the schedules of this run's deployment, if one of them started it. Returns how many were active."""
    with get_client(sync_client=True) as client:
        if not client.read_flow_run(flow_run.id).auto_scheduled:
            return 0
        active = [one for one in client.read_deployment_schedules(deployment.id) if one.active]
        for schedule in active:
            client.update_deployment_schedule(deployment.id, schedule.id, active=False)
    return len(active)
