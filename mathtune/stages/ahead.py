"""Ahead of the engine: while it trains a chunk, the next one's rows and token ids are made, so that it starts at once.

A thread makes the rows, a second, CPU-only engine tokenises them. Only artifacts are written, never the chain, and nothing
depends on it: what is not done in time, or fails, the next chunk's own stage makes as if nobody had tried.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mathtune.engine_client import EngineClient
from mathtune.events import Event
from mathtune.ranges import Range
from mathtune.stages.tokens import tokenised
from mathtune.stages.train import range_rows, trained_ranges
from mathtune.store import Artifact
from mathtune.workspace import Workspace

WORTH_ROWS = 4_000  # fewer are tokenised when their turn comes sooner than a process starts
NICE = 10  # beside the engine it gets about a tenth of a busy core
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "2"}  # Rayon's: the tokenizer's
END_SECONDS = 5


@contextmanager
def next_tokenised(work: Workspace, base: dict[str, Any], parts: Artifact, wanted: Range,
                   following: Range | None) -> Iterator[None]:
    """While the body trains and judges ``wanted``, the rows and tokens of ``following`` (None: there is none) are made.

    What is not done when the body ends is given up. A failure is told as a notice.
    """
    entries = work.chain.entries()
    served = any(entry.link.range == wanted for entry in entries)
    if served or following is None or len(following) < WORTH_ROWS:
        yield
        return
    trained = [*trained_ranges(entries), wanted]  # as it will be once this range is accepted
    beside = work.beside(EngineClient(work.folder / "ahead.log", lambda event: None, restarts=0, environment=ENVIRONMENT,
                                      nice=NICE))
    ahead = Ahead(beside.engine, lambda: tokenised(beside, base, range_rows(beside, parts, following, trained), "rows.parquet"))
    try:
        yield
    finally:
        outcome = ahead.end()
        for damage in beside.artifacts.damaged:
            work.emit("notice", text=damage)
        work.handle({**outcome, "title": str(following)})


class Ahead:
    """Work in a thread, with an engine of its own, that is given up when it is not done in time.

    Args:
        engine: not started yet; it ends with the work.
        make: what to do; raises what it likes.
    """

    def __init__(self, engine: EngineClient, make: Callable[[], Any]):
        self._engine, self._make = engine, make
        self._outcome: Event | None = None
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
        self._thread.start()

    def end(self) -> Event:
        """Ends thread and engine. Returns the event that says what became of the work."""
        outcome, deadline = self._outcome, time.monotonic() + END_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._engine.kill()  # again and again: it may only just be starting
            self._thread.join(0.1)
        return outcome or {"event": "ahead", "state": "given up"}

    def _run(self) -> None:
        began = time.monotonic()
        try:
            with self._engine:
                self._make()
                self._outcome = {"event": "ahead", "state": "done", "seconds": round(time.monotonic() - began, 3)}
        except Exception as error:
            why = str(error).splitlines()[0]
            self._outcome = {"event": "notice", "text": f"not tokenised ahead, but when its turn comes: {why}"}
