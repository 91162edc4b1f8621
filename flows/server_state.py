"""What a team's Prefect server must hold, and whether one does: pool, blocks, limits, automations, deployments, leases.

It reads the server once and looks at what was read, so that each check is plain. Leaves out making what is missing
(``deployments.bootstrap``) and starting the server (``deployments.server``).
"""

import re
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.objects import BlockDocument, WorkPool
from prefect.client.schemas.responses import DeploymentResponse, GlobalConcurrencyLimitResponse
from prefect.events.schemas.automations import Automation
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from flows.automations import NAMES, automations, says
from flows.deploy_file import find_file, folder_of, read_file, unlike, wanted_deployments
from flows.findings import Finding
from flows.remedies import BOOTSTRAP, LOGIN_REMEDY, SERVER, SERVER_REMEDY
from mathtune.credentials import CREDENTIALS
from mathtune.errors import MachineError
from storage import ArtifactStore, CheckpointStore
from tasks.deployment import SECRETS, secret_block
from tasks.slots import GPU_LIMIT, IN_MEMORY, lease_storage

POOL, POOL_TYPE = "gpu", "process"
BLOCK = "default"
BLOCKS = {ArtifactStore: "artifacts", CheckpointStore: "chains"}  # and the folder of each below .mathtune/
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
OURS = ("flows.deployed.", "flows.pipeline.")  # how the entrypoint of a deployment of this project begins
PAGE = 100  # things a request; the server gives 200 at most


Read = TypeVar("Read")


@dataclass(frozen=True)
class ServerState:
    """What was read of a server, of this project's things; others may have theirs beside them."""

    lease_storage: str
    pool: str  # the name of the pool that the deployments are run by
    work_pool: WorkPool | None
    workers: int  # that are online in it
    home: Path | None  # the folder that the deployments' runs work in
    blocks: dict[str, BlockDocument]  # the document of each of BLOCKS, by its type's slug
    limits: dict[str, GlobalConcurrencyLimitResponse]  # one a GPU; the job that first uses a GPU makes its own
    secrets: frozenset[str]  # names of SECRETS whose block is there
    automations: dict[str, Automation]
    deployments: dict[str, DeploymentResponse]  # by full name: everybody's


def api_url() -> str:
    """Of the configured server.

    Raises:
        MachineError: none is configured, or what is no API.
    """
    if (url := PREFECT_API_URL.value()) and "/api" not in url:
        raise MachineError("this is not the address of a Prefect API", where=f"PREFECT_API_URL={url}",
                           remedy=f"export PREFECT_API_URL={url.rstrip('/')}/api")
    if url:
        return url
    raise MachineError("no Prefect server is configured", where="PREFECT_API_URL",
                       remedy=f"{SERVER}, then export PREFECT_API_URL=http://127.0.0.1:4200/api")


def read_state() -> ServerState:
    """Reads the configured server.

    Raises:
        MachineError: none is configured, it does not answer, or it does not accept this login.
    """
    url = api_url()
    try:
        with get_client(sync_client=True) as client:
            return _read(client)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 401:
            raise MachineError(f"the server answers {error.response.status_code}", where=url,
                               remedy="read the server's log") from error
        raise MachineError("the server does not accept this login", where=url,
                           remedy=LOGIN_REMEDY) from error
    except (HTTPError, RuntimeError) as error:  # RuntimeError: "Failed to reach API"
        raise MachineError(f"the server does not answer: {error}", where=url,
                           remedy=SERVER_REMEDY) from error


def _read(client: SyncPrefectClient) -> ServerState:
    deployments = _deployments(client)
    ours = [one for one in deployments.values() if (one.entrypoint or "").startswith(OURS)]
    pool = next((one.work_pool_name for one in ours if one.work_pool_name), POOL)
    work_pool = _or_none(lambda: client.read_work_pool(pool))
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    return ServerState(
        lease_storage=lease_storage(client),
        pool=pool,
        work_pool=work_pool,
        workers=len(client.read_workers_for_work_pool(pool, worker_filter=online)) if work_pool else 0,
        home=next((folder for one in ours if (folder := folder_of(one))), None),
        blocks={block.get_block_type_slug(): document for block in BLOCKS
                if (document := _document(client, block.get_block_type_slug(), BLOCK))},
        limits={one.name: one for one in _all(client.read_global_concurrency_limits) if one.name.startswith(GPU_LIMIT)},
        secrets=frozenset(name for name in SECRETS if _document(client, "secret", secret_block(name))),
        automations={one.name: one for name in NAMES for one in client.read_automations_by_name(name)},
        deployments=deployments)


def _all(read: Callable[..., list[Read]]) -> Iterator[Read]:
    """All that a request for a page at a time gives."""
    offset = 0
    while page := read(limit=PAGE, offset=offset):
        yield from page
        if len(page) < PAGE:
            return
        offset += PAGE


def _or_none(read: Callable[[], Read]) -> Read | None:
    """What is read, if it is there."""
    try:
        return read()
    except ObjectNotFound:
        return None


def _document(client: SyncPrefectClient, slug: str, name: str) -> BlockDocument | None:
    return _or_none(lambda: client.read_block_document_by_name(name, slug, include_secrets=False))


def _deployments(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    found = {flow.id: flow.name for flow in _all(client.read_flows)}
    return {f"{found[one.flow_id]}/{one.name}": one for one in _all(client.read_deployments) if one.flow_id in found}


def examine_server() -> list[Finding]:
    """Every check of the configured server."""
    try:
        state = read_state()
    except MachineError as error:
        return [Finding("Prefect", False, f"{error.where}: {error.what}", error.remedy)]
    checks: list[Callable[[ServerState], Finding]] = [check_leases, check_pool, check_worker, check_blocks, check_limits,
                                                      check_automations, check_deployments, check_secrets]
    return [Finding("Prefect", True, f"server at {api_url()} answers"), *(check(state) for check in checks)]


def check_leases(state: ServerState) -> Finding:
    """A slot's holder is forgotten by a restart of the server whose leases lie in memory, and live training is stopped."""
    name = state.lease_storage.rpartition(".")[2]
    lost = state.lease_storage == IN_MEMORY
    return Finding("leases", not lost, f"in the server's {name}; lost at its restart" if lost else f"kept ({name})",
                   f"stop the server and start it by {SERVER}")


def check_pool(state: ServerState) -> Finding:
    pool = state.work_pool
    if pool is None:
        return Finding("pool", False, f"no work pool {state.pool}", BOOTSTRAP)
    if pool.is_paused:
        return Finding("pool", False, f"{pool.name} is paused", f"prefect work-pool resume {pool.name}")
    limit = "" if pool.concurrency_limit is None else f", {pool.concurrency_limit} runs at a time"
    return Finding("pool", True, f"{pool.name} ({pool.type}{limit})")


def check_worker(state: ServerState) -> Finding:
    return Finding("worker", state.workers > 0, f"{state.workers} online", f"python -m deployments.worker --pool {state.pool}")


def check_blocks(state: ServerState) -> Finding:
    missing = [slug for block in BLOCKS if (slug := block.get_block_type_slug()) not in state.blocks]
    if missing:
        return Finding("blocks", False, "no document " + ", ".join(f"{slug}/{BLOCK}" for slug in missing), BOOTSTRAP)
    if off := [slug for slug, document in state.blocks.items() if re.search(CREDENTIALS, document.data["root"])]:
        return Finding("blocks", False, f"a password in the place of {', '.join(off)}, where everybody can read it",
                       f"{BOOTSTRAP} --root URL, without it; AWS_ACCESS_KEY_ID … as Secret blocks")
    return Finding("blocks", True, ", ".join(document.data["root"] for document in state.blocks.values()))


def check_limits(state: ServerState) -> Finding:
    """A limit that somebody disabled keeps no two jobs apart, and one of 0 lets none begin."""
    if off := [name for name, one in state.limits.items() if not one.active]:
        return Finding("limits", False, "disabled: " + ", ".join(off), "; ".join(f"prefect gcl enable {name}" for name in off))
    if off := [name for name, one in state.limits.items() if one.limit != 1]:
        return Finding("limits", False, "not one job a GPU: " + ", ".join(off),
                       "; ".join(f"prefect gcl update {name} --limit 1" for name in off))
    return Finding("limits", True, f"{len(state.limits)} GPUs known, one job each")


def check_automations(state: ServerState) -> Finding:
    """They are there, enabled, and as this version has them."""
    missing = [name for name in NAMES if name not in state.automations]
    if missing:
        return Finding("automations", False, "none of the name " + ", ".join(map(repr, missing)), BOOTSTRAP)
    if off := [name for name, one in state.automations.items() if not one.enabled]:
        return Finding("automations", False, "disabled: " + ", ".join(map(repr, off)),
                       "; ".join(f"prefect automation resume {name!r}" for name in off))
    if off := [one.name for one in automations() if says(one) != says(state.automations[one.name])]:
        return Finding("automations", False, "not as they should be: " + ", ".join(map(repr, off)), BOOTSTRAP)
    return Finding("automations", True, "silent runs are crashed; crashed ones, and those that never began, start again")


def check_deployments(state: ServerState) -> Finding:
    """Those of the file are there as it says, and the folder of their runs is."""
    home = state.home or Path.cwd()
    remedy = f"{BOOTSTRAP} --home {home}"
    if not home.is_dir():
        return Finding("deployments", False, f"their folder {home} is gone", f"{BOOTSTRAP} --home FOLDER")
    wanted = _file_deployments(state)
    if missing := [name for name in wanted if name not in state.deployments]:
        return Finding("deployments", False, "not deployed: " + ", ".join(missing), remedy)
    with chdir(home):  # a form offers the recipes of the folder
        off = {name: found for name, values in wanted.items() if (found := unlike(values, state.deployments[name]))}
    if off:
        seen = "; ".join(f"{name}: other {', '.join(found)}" for name, found in off.items())
        return Finding("deployments", False, seen, remedy)
    return Finding("deployments", True, f"{len(wanted)}, working in {home}")


def _file_deployments(state: ServerState) -> dict[str, dict[str, Any]]:
    home = state.home or Path.cwd()
    with chdir(home):
        return wanted_deployments(read_file(find_file(home)), state.pool)


def check_secrets(state: ServerState) -> Finding:
    """They are optional; only whether they are there is said."""
    seen = ", ".join(f"{name} {'there' if name in state.secrets else 'not there'}" for name in SECRETS)
    return Finding("secret blocks", True, seen)
