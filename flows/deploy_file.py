"""``prefect.yaml``: which one holds, the deployments it asks for, and how those of a server differ from them.

All that the file says is the file's: who wants it otherwise changes it there. Schedules, once they are on the server, are
people's: they turn them on, and move them; so is a deployment's pause. Leaves out deploying (``deployments.bootstrap``).
"""

from dataclasses import fields
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.schedules import Schedule
from prefect.utilities.callables import parameter_schema
from prefect.utilities.templating import apply_values

from flows.automations import TAG
from mathtune.errors import MachineError

NAME = "prefect.yaml"
SHIPPED = Path(__file__).parents[1]  # a checkout; in a wheel the file lies in deployments/
FOLDER_STEP = "prefect.deployments.steps.set_working_directory"
# What is deployed of the file; prefect deploy knows more, and definitions are the file's own.
PARTS = {"name", "prefect-version", "definitions", "pull", "deployments"}
KEYS = {"name", "entrypoint", "description", "parameters", "tags", "work_pool", "concurrency_limit", "schedules"}
SCHEDULE_KEYS = {field.name for field in fields(Schedule)}


def find_file(home: Path) -> Path:
    """The folder's own file, or the one beside the package.

    Raises:
        MachineError: there is neither.
    """
    for path in (home / NAME, SHIPPED / NAME, SHIPPED / "deployments" / NAME):
        if path.is_file():
            return path
    raise MachineError(f"there is no {NAME}, neither here nor beside the package", where=str(home),
                       remedy=f"copy {NAME} of the project into this folder")


def read_file(path: Path) -> dict[str, Any]:
    """The file's content, its ``{{ $VARIABLES }}`` of the environment resolved where they are set.

    Raises:
        MachineError: it is no YAML with deployments, or says what is not deployed.
    """
    try:
        content = yaml.safe_load(path.read_text())
        if content["deployments"]:
            _check_keys(content, path)
            said = {key: content.get(key) for key in ("pull", "deployments")}
            return apply_values(said, {}, remove_notset=False)
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise MachineError(f"it does not say any deployments: {error}", where=str(path), remedy="mend it") from error
    raise MachineError("it does not say any deployments", where=str(path), remedy="mend it")


def _check_keys(content: dict[str, Any], path: Path) -> None:
    unknown = {key for key, value in content.items() if value is not None} - PARTS
    for one in content["deployments"]:
        unknown |= one.keys() - KEYS
        for schedule in one.get("schedules") or []:
            unknown |= schedule.keys() - SCHEDULE_KEYS
    if unknown:
        raise MachineError(f"{', '.join(sorted(unknown))} cannot be deployed from here", where=str(path),
                           remedy="take it out, and deploy what needs it from another file by prefect deploy")


def wanted_deployments(content: dict[str, Any], pool: str) -> dict[str, dict[str, Any]]:
    """Its deployments by their full name, such as ``train-range/verifier``, for a work pool and with the automations' tag."""
    return {f"{flow_of(one['entrypoint']).name}/{one['name']}": {
        **one, "work_pool": {**one.get("work_pool", {}), "name": pool}, "tags": sorted({TAG, *one.get("tags", [])})}
        for one in content["deployments"]}


@cache
def flow_of(entrypoint: str) -> Flow:
    return load_flow_from_entrypoint(entrypoint)


@cache
def form_of(entrypoint: str) -> dict[str, Any]:
    """The schema of a flow's parameters."""
    return parameter_schema(flow_of(entrypoint)).model_dump(mode="json", exclude_unset=True)


def request_of(wanted: dict[str, Any]) -> dict[str, Any]:
    """What the server is to be told of a deployment, by the names of its API; schedules and the pull step apart."""
    limit = wanted.get("concurrency_limit")
    options = {key: value for key, value in limit.items() if key != "limit"} if isinstance(limit, dict) else {}
    pool = wanted["work_pool"]
    return {
        "entrypoint": wanted["entrypoint"],
        "parameters": wanted.get("parameters") or {},
        "parameter_openapi_schema": form_of(wanted["entrypoint"]),
        "enforce_parameter_schema": True,
        "work_pool_name": pool["name"],
        "job_variables": pool.get("job_variables") or {},
        "concurrency_limit": limit["limit"] if isinstance(limit, dict) else limit,
        "concurrency_options": options or None,
        "description": wanted.get("description") or flow_of(wanted["entrypoint"]).description,
        "tags": wanted["tags"]}


def unlike(wanted: dict[str, Any], found: DeploymentResponse) -> list[str]:
    """In what a server's deployment is another one than the file's, its folder apart."""
    return _differences(request_of(wanted), found) + [f"schedule {one['slug']}" for one in missing_schedules(wanted, found)]


def _differences(asked: dict[str, Any], found: DeploymentResponse) -> list[str]:
    options, limit = found.concurrency_options, found.global_concurrency_limit
    has = {
        "entrypoint": ("entrypoint", found.entrypoint),
        "parameters": ("parameters", found.parameters),
        "parameter_openapi_schema": ("form", found.parameter_openapi_schema),
        "work_pool_name": ("pool", found.work_pool_name),
        "job_variables": ("job variables", found.job_variables),
        "concurrency_limit": ("concurrency limit", limit and limit.limit),
        "concurrency_options": ("collision strategy", options and options.model_dump(mode="json", exclude_none=True)),
        "description": ("description", found.description),
        "tags": ("tags", sorted(found.tags)),
    }
    return [said for key, (said, value) in has.items() if asked[key] != value]


def missing_schedules(wanted: dict[str, Any], found: DeploymentResponse | None) -> list[dict[str, Any]]:
    """The file's schedules that the server has none of that name for."""
    there = {schedule.slug for schedule in found.schedules} if found else set()
    return [one for one in wanted.get("schedules") or [] if one["slug"] not in there]


def schedule_of(said: dict[str, Any]) -> DeploymentScheduleCreate:
    """A schedule as the server is to be told it; an interval is in seconds."""
    if isinstance(seconds := said.get("interval"), int | float):
        said = {**said, "interval": timedelta(seconds=seconds)}
    return DeploymentScheduleCreate.from_schedule(Schedule(**said))


def folder_of(found: DeploymentResponse) -> Path | None:
    """The folder that its runs work in, where it says one."""
    for step in found.pull_steps or []:
        if FOLDER_STEP in step:
            return Path(step[FOLDER_STEP]["directory"])
    return None
