"""Where one execution of a run works: its recipe, its stores, its folder, its engine, and the file of its events."""

import copy
import json
import os
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mathtune.chain import Chain
from mathtune.engine_client import EngineClient
from mathtune.errors import StoreError
from mathtune.events import Event
from mathtune.files import disk_errors, write_atomically, write_json
from mathtune.folders import open_folders
from mathtune.gpus import Hold, hold_gpus, no_gpus
from mathtune.recipe import Recipe
from mathtune.recipe_file import dump_recipe
from mathtune.store import ArtifactStore


def new_execution() -> str:
    """A name for an execution that sorts by time."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + "-" + uuid.uuid4().hex[:6]


class RunFolder:
    """``RUNS/NAME/``: the latest state, each file replaced atomically, and the events of every execution."""

    def __init__(self, root: Path, name: str):
        self.path = root / name

    def execution(self, execution: str) -> Path:
        return self.path / "executions" / execution

    def range_folder(self, title: str) -> Path:
        """``ranges/START-END`` of an SFT link's range, ``ranges/grpo`` of a GRPO link."""
        return self.path / "ranges" / title

    def write(self, name: str, data: bytes | str) -> Path:
        write_atomically(self.path / name, data)
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        write_json(self.path / name, value)
        return self.path / name


class Workspace:
    """Opens everything that the stages of one execution share.

    Args:
        recipe: what to do.
        execution: name of this execution; its events go to ``RUNS/NAME/executions/EXECUTION/events.jsonl``.
        artifacts: the artifact store; default: in ``storage.root/artifacts``.
        chain: the recipe's chain; default: in ``storage.root/chains``.
        hold: waits for the engine's GPUs, where it may use any.
    """

    def __init__(self, recipe: Recipe, execution: str, artifacts: ArtifactStore | None = None, chain: Chain | None = None,
                 hold: Hold = hold_gpus):
        root, local = recipe.storage.root, Path(recipe.storage.local)
        self.recipe = recipe
        self.cache = local / "models"
        self.artifacts = artifacts or ArtifactStore(open_folders(f"{root}/artifacts", local / "artifacts"))
        self.chain = chain or Chain(open_folders(f"{root}/chains", local / "chains"), recipe.chain)
        self.run = RunFolder(Path(recipe.storage.runs), recipe.name)
        self.folder = self.run.execution(execution)
        self.seconds: dict[str, float] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._events = open(self.folder / "events.jsonl", "a", encoding="utf-8")
        except OSError as error:
            raise StoreError(f"cannot write there: {error.strerror}", where=str(self.folder),
                             remedy="choose other folders with storage.root and storage.runs") from error
        self.listeners: list[Callable[[Event], None]] = []
        hardware = recipe.hardware
        hold = no_gpus if hardware.device == "cpu" else hold
        self.engine = EngineClient(self.folder / "engine.log", self.handle, hardware.engine_restarts,
                                   silent_seconds=60 * hardware.hang_minutes,
                                   hold=partial(hold, run=recipe.name, emit=self.emit))
        self.emit("begin", recipe=recipe.name, execution=execution, pid=os.getpid())

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.emit("end")
        self._events.close()

    def emit(self, event: str, **fields: Any) -> None:
        self.handle({"event": event, **fields})

    def handle(self, event: Event) -> None:
        """Appends an event to the execution's file and passes it to the listeners."""
        event = {"time": round(time.time(), 3), **event}
        with disk_errors(self.folder):
            self._events.write(json.dumps(event, ensure_ascii=False) + "\n")
            self._events.flush()
        for listener in self.listeners:
            listener(event)

    def beside(self, engine: EngineClient) -> "Workspace":
        """The same recipe and places with another engine, for a thread beside this one. Events are left to this one."""
        other = copy.copy(self)
        other.engine, other.artifacts = engine, ArtifactStore(self.artifacts.folders)
        return other

    def save_recipe(self) -> None:
        self.run.write("recipe.yaml", dump_recipe(self.recipe))
