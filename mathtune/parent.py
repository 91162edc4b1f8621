"""A process that ends when the one that started it does, whatever ended that one: a SIGKILL leaves out every exit handler."""

import os
import signal
import threading
import time
from collections.abc import Callable

PARENT = "MATHTUNE_PARENT"  # variable by which a command or a worker's flow is told the process that it shall end with


def end_with_named_parent() -> None:
    """Has this process sent SIGTERM, once the one that ``PARENT`` names is gone; nothing where none is named."""
    if parent := os.environ.pop(PARENT, None):  # popped: it is not for the processes that this one starts
        end_with(int(parent), lambda: os.kill(os.getpid(), signal.SIGTERM))


def end_with(parent: int, end: Callable[[], None]) -> None:
    """Calls ``end``, in a thread, once this process's parent is another than ``parent``: an orphan is given to another."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        end()

    threading.Thread(target=watch, daemon=True).start()
