"""Prefect's own server as a child of a run (``flows.execute``): it ends when the run does, whatever ended the run.

Prefect ends it in an exit handler, which a SIGKILL leaves out: a server would stay behind at every kill.
"""

import os
import threading
import time

import uvicorn


def end_with(parent: int) -> None:
    """Ends this process once its parent is another than ``parent``: a process without its parent is given to another."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    uvicorn.main()
