"""Prefect's own server as a child of a run (``flows.execute``): it ends when the run does, whatever ended the run.

Prefect ends it in an exit handler, which a SIGKILL leaves out: a server would stay behind at every kill.
"""

import os

import uvicorn

from mathtune.parent import end_with

if __name__ == "__main__":
    end_with(os.getppid(), lambda: os._exit(0))
    uvicorn.main()
