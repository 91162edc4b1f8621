"""Makes a Prefect server ready for a team: pool, blocks, secrets, deployments and automations. Running it again is safe.

    python -m deployments.bootstrap [--home FOLDER] [--pool gpu] [--root URL] [--secret HF_TOKEN ...]

It makes what is missing and changes what is not as ``prefect.yaml`` and this package say. What people decide stays as it is:
schedules turned on or moved, a pause of a pool or a deployment, a pool's limit, an automation that is disabled, where a block
points to. Leaves out starting the server (``deployments.server``) and the workers (``deployments.worker``).
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect.blocks.system import Secret
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType, FlowRunFilterTags
from prefect.client.schemas.objects import BlockDocument, ConcurrencyOptions, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.schemas.automations import Automation
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.settings import PREFECT_UI_URL

from deployments.command import run_command
from flows.automations import RESTART, TAG, automations, says
from flows.deploy_file import (
    find_file,
    folder_of,
    missing_schedules,
    read_file,
    request_of,
    schedule_of,
    unlike,
    wanted_deployments,
)
from flows.server_state import BLOCK, BLOCKS, POOL, POOL_TYPE, api_url, check_leases, read_state
from mathtune.credentials import refuse_credentials
from mathtune.errors import MachineError, UserError
from mathtune.gpus import gpus_in_sight
from storage import ArtifactStore, CheckpointStore
from tasks.deployment import SECRETS, secret_block
from tasks.slots import limit_of, make_limit

MADE, THERE, CHANGED = "made", "is there", "changed"


def make_pool(name: str) -> str:
    """Makes the process work pool; one that is there stays as it is."""
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type=POOL_TYPE, description="mathtune: machines with a GPU"))
        except ObjectAlreadyExists:
            return THERE
    return MADE


def save_block(block: type[ArtifactStore] | type[CheckpointStore], found: BlockDocument | None, default: str,
               asked: str | None) -> str:
    """Registers a block's type and saves its document.

    Args:
        found: the document that is there.
        default: the place of a new document.
        asked: the place that it is to have, whatever it has.

    Raises:
        RecipeError: the place that is there has a password in it.
    """
    block.register_type_and_schema()
    if found is None:
        block(root=asked or default).save(BLOCK)
        return MADE
    if asked is None or found.data["root"] == asked:
        return f"{THERE}: {block(**found.data).root}"
    block(**{**found.data, "root": asked}).save(BLOCK, overwrite=True)
    return f"{CHANGED}: {asked}"


def save_secret(variable: str) -> str:
    """Saves an environment variable's value as the Secret block that runs take it from.

    Raises:
        UserError: no run takes such a secret, or the variable is not set.
    """
    if variable not in SECRETS:
        raise UserError(f"no run takes a secret {variable}", where="--secret", remedy=f"there are: {', '.join(SECRETS)}")
    if not (value := os.environ.get(variable)):
        raise UserError(f"{variable} is not set", where="--secret", remedy=f"export {variable}, from a file or a prompt")
    name = secret_block(variable)
    try:
        outcome = THERE if Secret.load(name).get() == value else CHANGED
    except ValueError:
        outcome = MADE
    if outcome != THERE:
        Secret(value=value).save(name, overwrite=True)
    return outcome


def make_limits() -> Iterator[tuple[str, str]]:
    """Makes the limits of this machine's GPUs, so that they are seen; another machine's are made by its first job.

    Yields:
        The name of each, and what was done to it.
    """
    with get_client(sync_client=True) as client:
        for gpu in gpus_in_sight():
            yield limit_of(gpu), MADE if make_limit(client, limit_of(gpu)) else THERE


def deploy(found: dict[str, DeploymentResponse], home: Path, pool: str) -> Iterator[tuple[str, str]]:
    """Deploys what differs from the file; the rest is not touched.

    Args:
        found: the server's deployments by full name.

    Yields:
        Each deployment's full name, and what was done to it.

    Raises:
        MachineError: the server refuses one.
    """
    os.environ["MATHTUNE_HOME"] = str(home)  # the name that the file calls it by
    content = read_file(find_file(home))
    with get_client(sync_client=True) as client:
        for name, wanted in wanted_deployments(content, pool).items():
            outcome = outcome_of(wanted, found.get(name), home)
            try:
                if outcome != THERE:
                    put_deployment(client, name, wanted, content["pull"], found.get(name))
            except PrefectHTTPStatusError as error:
                raise MachineError(f"the server refuses it: {error.response.text}", where=f"deployment {name}",
                                   remedy="mend prefect.yaml and run the same command again") from error
            yield name, outcome


def outcome_of(wanted: dict[str, Any], found: DeploymentResponse | None, home: Path) -> str:
    """What is to be done to a deployment."""
    if found is None:
        return MADE
    off = unlike(wanted, found)
    if (folder := folder_of(found)) and folder != home:
        off.append(f"folder, from {folder} to {home}")
    return f"{CHANGED}: {', '.join(off)}" if off else THERE


def put_deployment(client: SyncPrefectClient, name: str, wanted: dict[str, Any], pull: list[dict[str, Any]] | None,
                   found: DeploymentResponse | None) -> None:
    """Makes a deployment as the file says, or sets it back: its pause and the schedules that are there stay as they are."""
    request = {**request_of(wanted), "pull_steps": pull or []}
    schedules = [schedule_of(one) for one in missing_schedules(wanted, found)]
    if found is None:
        options = request["concurrency_options"] and ConcurrencyOptions(**request["concurrency_options"])
        client.create_deployment(client.create_flow_from_name(name.partition("/")[0]), wanted["name"], schedules=schedules,
                                 **{**request, "concurrency_options": options})
        return
    client.update_deployment(found.id, DeploymentUpdate(**request))
    if schedules:
        client.create_deployment_schedules(found.id, schedules)


def make_automations(found: dict[str, Automation]) -> Iterator[tuple[str, str]]:
    """Makes the automations. One that differs is set back; one that is disabled stays so.

    Args:
        found: the server's, by name.

    Yields:
        The name of each, and what was done to it.
    """
    with get_client(sync_client=True) as client:
        for wanted in automations():
            if wanted.name not in found:
                client.create_automation(wanted)
                yield wanted.name, MADE
            else:
                outcome = mend_automation(client, found[wanted.name], wanted)
                enabled = found[wanted.name].enabled
                yield wanted.name, outcome if enabled else f"{outcome}, disabled: prefect automation resume {wanted.name!r}"


def mend_automation(client: SyncPrefectClient, found: Automation, wanted: Automation) -> str:
    """Sets an automation back if it differs. The server then forgets which runs had begun: it says which are at work."""
    if says(found) == says(wanted):
        return THERE
    client.update_automation(found.id, wanted.model_copy(update={"enabled": found.enabled}))
    running = client.read_flow_runs(flow_run_filter=FlowRunFilter(
        tags=FlowRunFilterTags(all_=[TAG]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))))
    if wanted.name != RESTART or not running:  # the others learn of a run by its next heartbeat or state
        return CHANGED
    return f"{CHANGED}; if one of these crashes, start it again yourself: {', '.join(run.name for run in running)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path(), help="the folder that runs work in: recipes/, runs/, .mathtune/")
    parser.add_argument("--pool", default=POOL, help="the work pool (%(default)s)")
    parser.add_argument("--root", help="folder or URL that the blocks point to; default: .mathtune/ of the home")
    parser.add_argument("--secret", nargs="+", default=[], metavar="NAME", help="variables to save as Secret blocks")
    asked = parser.parse_args()
    home = asked.home.absolute()
    if not home.is_dir():
        raise UserError("there is no such folder", where=f"--home {home}", remedy=f"mkdir -p {home}")
    os.chdir(home)  # a form offers the recipes of the folder
    refuse_credentials({"root": asked.root}, "--root")
    state = read_state()
    tell(f"work pool {asked.pool}", make_pool(asked.pool))
    for block, folder in BLOCKS.items():
        slug, root = block.get_block_type_slug(), asked.root and f"{asked.root.rstrip('/')}/{folder}"
        tell(f"block {slug}/{BLOCK}", save_block(block, state.blocks.get(slug), str(home / ".mathtune" / folder), root))
    for variable in asked.secret:
        tell(f"secret block {secret_block(variable)}", save_secret(variable))
    for limit, outcome in make_limits():
        tell(f"limit {limit}", outcome)
    for name, outcome in deploy(state.deployments, home, asked.pool):
        tell(f"deployment {name}", outcome)
    for name, outcome in make_automations(state.automations):
        tell(f"automation {name!r}", outcome)
    leases = check_leases(state)
    tell("leases of slots", leases.seen if leases.good else f"✗ {leases.seen}\n   → {leases.remedy}")
    print(f"\nnext, in {home}:\n  python -m deployments.worker --pool {asked.pool}\n"
          f"  prefect deployment run 'train-range/demo' -p next=600\n"
          f"  {PREFECT_UI_URL.value() or api_url().removesuffix('/api')}\n")


def tell(what: str, outcome: str) -> None:
    print(f"{what:<60} {outcome}", flush=True)


if __name__ == "__main__":
    run_command(main)
