"""``prefect.yaml``: which one holds, the deployments it asks for, and how those of a server differ from them.

All that the file says is the file's: who wants it otherwise changes it there. Schedules, once they are on the server, are
people's: they turn them on, and move them. Leaves out deploying (``deployments.bootstrap``).
"""

from pathlib import Path
from typing import Any

import yaml
from prefect.client.schemas.responses import DeploymentResponse
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from mathtune.errors import MachineError

NAME = "prefect.yaml"
SHIPPED = Path(__file__).parents[1] / NAME
FOLDER_STEP = "prefect.deployments.steps.set_working_directory"


def find_file(home: Path) -> Path:
    """The folder's own file, or the one beside the package.

    Raises:
        MachineError: there is neither.
    """
    for path in (home / NAME, SHIPPED):
        if path.is_file():
            return path
    raise MachineError(f"there is no {NAME}, neither here nor beside the package", where=str(home),
                       remedy=f"copy {NAME} of the project into this folder")


def read_file(path: Path) -> dict[str, Any]:
    """The file's content.

    Raises:
        MachineError: it is no YAML with deployments.
    """
    try:
        content = yaml.safe_load(path.read_text())
        if content["deployments"]:
            return content
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise MachineError(f"it does not say any deployments: {error}", where=str(path), remedy="mend it") from error
    raise MachineError("it does not say any deployments", where=str(path), remedy="mend it")


def wanted_deployments(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Its deployments by their full name, such as ``train-range/verifier``."""
    return {f"{load_flow_from_entrypoint(one['entrypoint']).name}/{one['name']}": one for one in content["deployments"]}


def differences(wanted: dict[str, Any], found: DeploymentResponse) -> list[str]:
    """In what a server's deployment is another one than the file's, its folder and schedules apart."""
    pool, limit = wanted.get("work_pool", {}), wanted.get("concurrency_limit")
    asked = limit if isinstance(limit, dict) else {"limit": limit}
    options, has = found.concurrency_options, found.global_concurrency_limit
    flow = load_flow_from_entrypoint(wanted["entrypoint"])
    pairs = {
        "entrypoint": (wanted["entrypoint"], found.entrypoint),
        "parameters": (wanted.get("parameters") or {}, found.parameters),
        "form": (parameter_schema(flow).model_dump(mode="json", exclude_unset=True), found.parameter_openapi_schema),
        "pool": (pool.get("name"), found.work_pool_name),
        "job variables": (pool.get("job_variables") or {}, found.job_variables),
        "concurrency limit": (asked["limit"], has and has.limit),
        "collision strategy": (asked.get("collision_strategy"), options and options.collision_strategy.value),
        "description": (wanted.get("description") or flow.description, found.description),
    }
    return [name for name, (asked, has) in pairs.items() if asked != has]


def missing_schedules(wanted: dict[str, Any], found: DeploymentResponse) -> list[dict[str, Any]]:
    """The file's schedules that the server has none of that name for."""
    there = {schedule.slug for schedule in found.schedules}
    return [one for one in wanted.get("schedules") or [] if one["slug"] not in there]


def folder_of(found: DeploymentResponse) -> Path | None:
    """The folder that its runs work in, where it says one."""
    for step in found.pull_steps or []:
        if FOLDER_STEP in step:
            return Path(step[FOLDER_STEP]["directory"])
    return None


def redeployable(wanted: dict[str, Any], found: DeploymentResponse | None) -> dict[str, Any]:
    """The deployment as ``prefect deploy`` is to be told it: with the schedules that the server has as they are there."""
    if found is None:
        return wanted
    kept = [{**one.schedule.model_dump(mode="json", exclude_none=True), "slug": one.slug, "active": one.active,
             "parameters": one.parameters} for one in found.schedules]
    return {**wanted, "schedules": kept + missing_schedules(wanted, found)}
