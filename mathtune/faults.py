"""Faults on demand: tests kill, stop or starve a process at an exact place. Nothing happens unless the environment asks.

    MATHTUNE_FAULT='{"at": "checkpoint:sealed", "ordinal": 3, "do": "kill", "once": "/tmp/fired"}'

``at`` names a fault point, ``ordinal`` (default 1) which passing of it in one process, ``do`` is kill, stop (SIGSTOP),
term (SIGTERM), hang, segfault, memory (the accelerator's), disk (no space) or nan (the tensor that the place offers).
``once`` is a file that is created when the fault fires; while it is there, none does, so that a restarted process gets
past. ``rank``, where several train together, is the one to strike. A list asks for several. Publishing a folder passes
``STAGE:built``, ``STAGE:synced``, ``STAGE:sealed`` and ``STAGE:published``, with the stage in its manifest; a training passes
``loss`` and ``step``.
"""

import errno
import json
import math
import os
import signal
import time
from collections import Counter
from typing import Any

VARIABLE = "MATHTUNE_FAULT"
_passed: Counter[str] = Counter()


def fault_point(name: str, tensor: Any = None) -> None:
    """A place at which the environment may ask for a fault; ``tensor`` is what "nan" poisons there."""
    if VARIABLE not in os.environ:
        return
    asked = json.loads(os.environ[VARIABLE])
    _passed[name] += 1
    for fault in asked if isinstance(asked, list) else [asked]:
        here = fault.get("rank") in (None, int(os.environ.get("RANK", 0)))
        if here and fault["at"] == name and _passed[name] == fault.get("ordinal", 1) and _fires(fault.get("once")):
            if fault["do"] == "nan":
                tensor.fill_(math.nan)
            else:
                _ACTIONS[fault["do"]]()


def _fires(once: str | None) -> bool:
    if once is None:
        return True
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _segfault() -> None:
    import ctypes

    ctypes.string_at(0)


def _memory() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory (asked for by MATHTUNE_FAULT)")


def _disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_ACTIONS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM), "hang": lambda: time.sleep(10_000), "segfault": _segfault,
    "memory": _memory, "disk": _disk}
