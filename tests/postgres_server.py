"""PostgreSQL from Debian's packages, as a process of its own on a free local port: what a team's Prefect server works on."""

import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.server_fixtures import free_port

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
USER = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root


class Postgres:
    """A database cluster with one user, who has a password. A context manager.

    Attributes:
        password: of the user ``prefect``.
        url: what ``PREFECT_SERVER_DATABASE_CONNECTION_URL`` must be.
    """

    def __enter__(self) -> "Postgres":
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))  # a short path: it holds the socket
        self.password = secrets.token_hex(16)
        (self.folder / "password").write_text(self.password)
        if USER:
            for path in (self.folder, self.folder / "password"):
                shutil.chown(path, USER)
        port = int(free_port())
        self.url = f"postgresql+asyncpg://prefect:{self.password}@127.0.0.1:{port}/postgres"
        data = str(self.folder / "data")
        self._run("initdb", "-D", data, "-U", "prefect", "--auth=scram-sha-256", f"--pwfile={self.folder / 'password'}",
                  "--no-sync", "--no-locale", "-E", "UTF8")
        self._run("pg_ctl", "start", "--wait", "-D", data, "-l", str(self.folder / "log"), "-o",
                  f"-c listen_addresses=127.0.0.1 -p {port} -k {self.folder} -c fsync=off")
        return self

    def __exit__(self, *_) -> None:
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate", "-D", str(self.folder / "data"))
        shutil.rmtree(self.folder)

    def dump(self) -> str:
        """All that the database holds, as SQL."""
        return self._run("pg_dump", self.url.replace("+asyncpg", ""))

    def query(self, statement: str) -> str:
        """The one value that a statement gives."""
        return self._run("psql", "-At", "-c", statement, self.url.replace("+asyncpg", "")).strip()

    def _run(self, program: str, *arguments: str) -> str:
        with open(self.folder / "errors", "a") as errors:
            return subprocess.run([PROGRAMS[-1] / program, *arguments], user=USER, cwd=self.folder, text=True, check=True,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors).stdout
