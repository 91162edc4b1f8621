"""Prefect's server for a run where none is configured: a child that starts while the run itself is still being imported.

The run listens before its server is there to answer: a connection waits, and nobody asks again and again whether it is up.
The server ends with the run, whatever ended the run, and after it: not by Ctrl-C or a closed terminal, of which a terminal
tells the whole foreground group, and before which the run could not say how it ended.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mathtune.parent import end_with

END_SECONDS = 5  # for what it was told last to be in the database


@contextmanager
def local_server() -> Iterator[None]:
    """Prefect's server, for what is done within; the user's own where one is configured."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.servers import RUNS_OWN

    if PREFECT_API_URL.value():
        yield
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        server = start(listener)
    token = RUNS_OWN.set(True)
    try:
        with temporary_settings({PREFECT_API_URL: url}):
            yield
    finally:
        RUNS_OWN.reset(token)
        end(server)


def start(listener: socket.socket) -> subprocess.Popen:
    """The server's process. A signal that is blocked here stays blocked in the program that is started."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        return subprocess.Popen([sys.executable, "-m", "flows.local_server", str(listener.fileno()), str(os.getpid())],
                                pass_fds=[listener.fileno()], env={**os.environ, "PREFECT_UI_ENABLED": "false"})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end(server: subprocess.Popen) -> None:
    """Sends what Prefect still has to tell, and lets the server write it down."""
    from prefect.events.worker import EventsWorker

    if server.poll() is None:
        EventsWorker.drain_all(timeout=END_SECONDS)
    server.terminate()
    try:
        server.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def serve(descriptor: int) -> None:
    """Is the server, on a socket that listens already. Login and database that are set here are those of a team's server."""
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING, PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings

    from flows.server_database import wait_in_the_event_loop

    wait_in_the_event_loop()
    with temporary_settings(restore_defaults={PREFECT_SERVER_API_AUTH_STRING, PREFECT_SERVER_DATABASE_CONNECTION_URL}):
        config = uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error", lifespan="on")
        uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    listener, parent = map(int, sys.argv[1:])
    end_with(parent, lambda: os._exit(0))  # a SIGKILL leaves the parent no time to end it
    serve(listener)
