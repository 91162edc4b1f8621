"""The journal of a chunk: the loss of every step that was done, on this machine's disk, whether or not it was saved.

After a kill the steps past the last checkpoint are done again: the journal then says how far their losses differ from
the first time. On a CPU, and on a GPU in its deterministic mode, they must not.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any


class Journal:
    """Appends steps to a file that outlives the process.

    Args:
        path: the file; its folder exists.
    """

    def __init__(self, path: Path):
        self.path = path

    def note(self, step: int, loss: float) -> None:
        """A step that was done."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps([step, loss]) + "\n")

    def redone(self) -> dict[str, Any]:
        """How many steps were done more than once over all attempts, and by how much their losses differ at most."""
        losses = defaultdict(list)
        for step, loss in self._entries():
            losses[step].append(loss)
        again = [done for done in losses.values() if len(done) > 1]
        return {"steps": sum(len(done) - 1 for done in again),
                "largest_loss_difference": max((max(done) - min(done) for done in again), default=0.0)}

    def _entries(self) -> list[tuple[int, float]]:
        entries = []
        for line in self.path.read_text().splitlines() if self.path.is_file() else []:
            try:
                step, loss = json.loads(line)
            except (ValueError, TypeError):
                continue  # a kill cut the line off, and the next attempt wrote on behind it
            entries.append((step, loss))
        return entries
