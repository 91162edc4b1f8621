"""A process that ends when the one that started it does, whatever ended that one: a SIGKILL leaves out every exit handler."""

import os
import threading
import time
from collections.abc import Callable

PARENT = "MATHTUNE_PARENT"  # variable by which a command is told the process that it shall end with


def end_with(parent: int, end: Callable[[], None]) -> None:
    """Calls ``end``, in a thread, once this process's parent is another than ``parent``: an orphan is given to another."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        end()

    threading.Thread(target=watch, daemon=True).start()
