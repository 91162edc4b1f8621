"""Child processes of a benchmark: each system is measured in one of its own, with an empty GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def child(module: str, what: str, values: dict[str, Any], folder: Path, time_limit: float) -> dict[str, Any]:
    """What a fresh process of ``python -m MODULE WHAT TASK.json RESULT.json`` found.

    Where it ended without a result: ``{"status": "failed", "message": ...}``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    task, result, log = folder / "task.json", folder / "result.json", folder / "log.txt"
    task.write_text(json.dumps(values))
    root = Path(__file__).parents[1]
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True",  # as the engine
                   "OMP_WAIT_POLICY": "PASSIVE",  # as well: spinning threads starve each other on a busy machine
                   **os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path]), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", module, what, str(task), str(result)]
    with log.open("w") as errors:
        try:
            ended = subprocess.run(command, env=environment, stderr=errors, timeout=time_limit)
        except subprocess.TimeoutExpired:
            return {"status": "failed", "message": f"took longer than {time_limit:.0f} s"}
    if result.is_file():
        found = json.loads(result.read_text())
    else:
        found = {"status": "failed", "message": f"the process ended with status {ended.returncode}"}
    if found["status"] == "failed":
        say("\n".join(log.read_text().splitlines()[-25:]))
    return found


def say(line: str) -> None:
    print(line, flush=True)
