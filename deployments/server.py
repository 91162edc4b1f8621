"""Starts a team's Prefect server with the settings that mathtune relies on. What the environment says already stays.

    python -m deployments.server [--host HOST] [--port PORT]

It is ``prefect server start`` with leases that a restart keeps, without analytics, on the loopback address unless asked, and
with automations that miss no event where the database is busy (``deployments.prefect_server``). Leases lie in the server's
PREFECT_HOME: several server processes on one machine (with PostgreSQL) may share it; servers on several machines need a shared
folder there, or prefect-redis's lease storage. Leaves out all that the server holds (``deployments.bootstrap``).
"""

import argparse
import ipaddress
import os
import socket
import sys
from contextlib import suppress

from prefect.settings import PREFECT_SERVER_API_AUTH_STRING, PREFECT_SERVER_API_HOST, PREFECT_SERVER_API_PORT

from deployments.command import run_command
from flows.server_state import LEASES
from mathtune.errors import MachineError

SETTINGS = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


def check_host(host: str, secret: bool) -> None:
    """Whoever reaches a server without authentication may run commands on its workers.

    Raises:
        MachineError: others reach this address, and there is no authentication.
    """
    if not secret and not is_loopback(host):
        raise MachineError("other machines reach this address, and the server would ask nobody for a password",
                           where=f"--host {host}", remedy="export PREFECT_SERVER_API_AUTH_STRING=user:password "
                           "(workers and clients: PREFECT_API_AUTH_STRING), or leave --host out")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; one that cannot be resolved is Prefect's to refuse."""
    addresses = [host]
    with suppress(socket.gaierror):
        addresses = [found[4][0] for found in socket.getaddrinfo(host, None)]
    try:
        return all(ipaddress.ip_address(address).is_loopback for address in addresses)
    except ValueError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default=PREFECT_SERVER_API_HOST.value())
    parser.add_argument("--port", type=int, default=PREFECT_SERVER_API_PORT.value())
    asked = parser.parse_args()
    check_host(asked.host, bool(PREFECT_SERVER_API_AUTH_STRING.value()))
    command = [sys.executable, "-m", "deployments.prefect_server", "--host", asked.host, "--port", str(asked.port)]
    os.execve(sys.executable, command, {**SETTINGS, **os.environ})


if __name__ == "__main__":
    run_command(main)
