"""Makes a Prefect server ready for a team: pool, blocks, secrets, deployments and automations. Running it again is safe.

    python -m deployments.bootstrap [--home FOLDER] [--pool gpu] [--root URL] [--secret HF_TOKEN ...]

It makes what is missing and changes what is not as ``prefect.yaml`` and this package say. What people decide stays as it is:
schedules turned on or moved, a pool's limit or pause, an automation that is disabled, where a block points to. Leaves out
starting the server (``deployments.server``) and the workers (``deployments.worker``).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_UI_URL

from deployments.command import run_command
from flows.automations import automations, says
from flows.deploy_file import differences, find_file, folder_of, missing_schedules, read_file, redeployable, wanted_deployments
from flows.server_state import BLOCK, BLOCKS, POOL, POOL_TYPE, api_url, check_leases, read_state
from mathtune.errors import MachineError, UserError
from storage import ArtifactStore, CheckpointStore
from tasks.deployment import SECRETS, secret_block

MADE, THERE, CHANGED = "made", "is there", "changed"


def make_pool(name: str) -> str:
    """Makes the process work pool; one that is there stays as it is."""
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type=POOL_TYPE, description="mathtune: machines with a GPU"))
        except ObjectAlreadyExists:
            return THERE
    return MADE


def save_block(block: type[ArtifactStore] | type[CheckpointStore], default: str, asked: str | None) -> str:
    """Registers a block's type and saves its document.

    Args:
        default: the place of a new document.
        asked: the place that it is to have, whatever it has.
    """
    block.register_type_and_schema()
    try:
        found = block.load(BLOCK)
    except ValueError:
        block(root=asked or default).save(BLOCK)
        return MADE
    if asked is None or found.root == asked:
        return f"{THERE}: {found.root}"
    found.root = asked
    found.save(BLOCK, overwrite=True)
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


def deploy(home: Path, pool: str) -> Iterator[tuple[str, str]]:
    """Deploys what differs from the file; the rest is not touched.

    Yields:
        Each deployment's full name, and what was done to it.
    """
    content, found = read_file(find_file(home)), read_state().deployments
    wanted, outcomes = wanted_deployments(content), {}
    for name, values in wanted.items():
        values["work_pool"] = {**values.get("work_pool", {}), "name": pool}
        outcomes[name] = outcome_of(values, found.get(name), home)
    todo = [redeployable(values, found.get(name)) for name, values in wanted.items() if outcomes[name] != THERE]
    if todo:
        prefect_deploy({**content, "deployments": todo}, home)
    yield from outcomes.items()


def outcome_of(wanted: dict[str, Any], found: Any, home: Path) -> str:
    """What is to be done to a deployment."""
    if found is None:
        return MADE
    off = [*differences(wanted, found), *(f"schedule {one['slug']}" for one in missing_schedules(wanted, found))]
    if (folder := folder_of(found)) and folder != home:
        off.append(f"folder, from {folder} to {home}")
    return f"{CHANGED}: {', '.join(off)}" if off else THERE


def prefect_deploy(content: dict[str, Any], home: Path) -> None:
    """Runs ``prefect deploy`` on a file of this content; only its errors are shown.

    Raises:
        MachineError: it failed.
    """
    with tempfile.NamedTemporaryFile("w", prefix="mathtune-", suffix=".yaml") as file:
        yaml.safe_dump(content, file)
        file.flush()
        done = subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", file.name],
                              cwd=home, env={**os.environ, "MATHTUNE_HOME": str(home)}, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise MachineError(f"prefect deploy failed: {last}", where=str(home), remedy="mend it and run the same command again")


def make_automations(names: list[str]) -> Iterator[tuple[str, str]]:
    """Makes both automations for these deployments. One that differs is set back; one that is disabled stays so.

    Yields:
        The name of each, and what was done to it.
    """
    state = read_state()
    with get_client(sync_client=True) as client:
        for wanted in automations([state.deployments[name].id for name in names]):
            found = state.automations.get(wanted.name)
            if found is None:
                client.create_automation(wanted)
                yield wanted.name, MADE
                continue
            outcome = THERE
            if says(found) != says(wanted):
                client.update_automation(found.id, wanted.model_copy(update={"enabled": found.enabled}))
                outcome = CHANGED
            yield wanted.name, outcome if found.enabled else f"{outcome}, disabled: prefect automation resume {wanted.name!r}"


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
    state = read_state()
    tell(f"work pool {asked.pool}", make_pool(asked.pool))
    for block, folder in BLOCKS.items():
        root = asked.root and f"{asked.root.rstrip('/')}/{folder}"
        tell(f"block {block.get_block_type_slug()}/{BLOCK}", save_block(block, str(home / ".mathtune" / folder), root))
    for variable in asked.secret:
        tell(f"secret block {secret_block(variable)}", save_secret(variable))
    names = []
    for name, outcome in deploy(home, asked.pool):
        tell(f"deployment {name}", outcome)
        names.append(name)
    for name, outcome in make_automations(names):
        tell(f"automation {name!r}", outcome)
    leases = check_leases(state)
    tell("leases of slots", leases.seen if leases.good else f"✗ {leases.seen}\n   → {leases.remedy}")
    print(f"\nnext, in {home}:\n  python -m deployments.worker --pool {asked.pool}\n"
          f"  prefect deployment run 'train-range/demo' -p next=600\n"
          f"  {PREFECT_UI_URL.value() or api_url().removesuffix('/api')}\n")


def tell(what: str, outcome: str) -> None:
    print(f"{what:<48} {outcome}", flush=True)


if __name__ == "__main__":
    run_command(main)
