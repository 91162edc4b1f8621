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
        unit: what the budget of a forward pass counts: ``pack_tokens`` or ``micro_batch``.
    """

    def __init__(self, path: Path, unit: str):
        self.path, self.unit = path, unit

    def begin(self, planned: int, halvings: int = 0, smallest: int = 1) -> int | None:
        """An attempt begins.

        Args:
            planned: what a forward pass may hold, if nothing else is known.
            halvings: how often the job that it belongs to ran out of memory.
            smallest: a budget below it makes nothing smaller.

        Returns:
            The budget to use: that of the attempt before, for larger ones did not fit, or half of it where memory ran out
            since; None where it was the smallest already.
        """
        last = next(reversed(self._entries(self.unit)), {self.unit: planned, "halvings": 0})
        budget, new = last[self.unit], max(0, halvings - last["halvings"])
        if new and budget <= smallest:
            return None
        budget = min(planned, max(smallest, budget >> new) if new else budget)
        self._append({self.unit: budget, "halvings": halvings})
        return budget

    def note(self, step: int, loss: float) -> None:
        """A step that was done."""
        self._append({"step": step, "loss": loss})

    def redone(self) -> dict[str, Any]:
        """Over all attempts: how many there were, how many steps were done again, and by how much their losses differ."""
        losses = defaultdict(list)
        for entry in self._entries("step"):
            losses[entry["step"]].append(entry["loss"])
        again = [done for done in losses.values() if len(done) > 1]
        return {"attempts": len(self._entries(self.unit)), "steps": sum(len(done) - 1 for done in again),
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
