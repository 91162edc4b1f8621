"""The journal of a chunk: its attempts and the loss of every step that was done, on this machine's disk, saved or not.

After a kill the steps past the last checkpoint are done again: the journal then says how far their losses differ from
the first time. On a CPU, and on a GPU in its deterministic mode, they must not.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any


class Journal:
    """Appends attempts and their steps to a file that outlives the process.

    Args:
        path: the file; its folder exists.
    """

    def __init__(self, path: Path):
        self.path = path

    def begin(self, micro_batch: int) -> int:
        """An attempt begins. Returns the micro-batch to use: the smallest of all attempts, for larger ones did not fit."""
        smallest = min([micro_batch, *(entry["micro_batch"] for entry in self._entries("micro_batch"))])
        self._append({"micro_batch": smallest})
        return smallest

    def note(self, step: int, loss: float) -> None:
        """A step that was done."""
        self._append({"step": step, "loss": loss})

    def redone(self) -> dict[str, Any]:
        """Over all attempts: how many there were, how many steps were done again, and by how much their losses differ."""
        losses = defaultdict(list)
        for entry in self._entries("step"):
            losses[entry["step"]].append(entry["loss"])
        again = [done for done in losses.values() if len(done) > 1]
        return {"attempts": len(self._entries("micro_batch")), "steps": sum(len(done) - 1 for done in again),
                "largest_loss_difference": max((max(done) - min(done) for done in again), default=0.0)}

    def _append(self, entry: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _entries(self, key: str) -> list[dict[str, Any]]:
        entries = []
        for line in self.path.read_text().splitlines() if self.path.is_file() else []:
            try:
                entries.append(json.loads(line))
            except ValueError:
                continue  # a kill cut the line off, and the next attempt wrote on behind it
        return [entry for entry in entries if key in entry]
