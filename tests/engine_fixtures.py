"""An engine that waits for the next run when one is done with it: starting one takes seconds. Holds no test."""

import os
from collections.abc import Sequence
from pathlib import Path

from mathtune.engine_process import EngineProcess
from mathtune.events import Event


class Keeper:
    """Keeps one idle engine for runs that would start it alike. What a job leaves in it is its base alone."""

    def __init__(self):
        self.idle: KeptEngine | None = None

    def take(self, log: Path, ranks: int, variables: dict[str, str], nice: int, descriptors: Sequence[int]) -> EngineProcess:
        """In place of ``EngineProcess``; one that holds locks of GPUs is not kept."""
        if descriptors:
            return EngineProcess(log, ranks, variables, nice, descriptors)
        asked = (ranks, variables, nice, os.getcwd(), {**os.environ, "PYTEST_CURRENT_TEST": ""})
        if self.idle and self.idle.asked == asked and self.idle.working:
            engine, self.idle = self.idle, None
            return engine
        return KeptEngine(self, asked, log, ranks, variables, nice)

    def keep(self, engine: "KeptEngine") -> None:
        self.end()
        self.idle = engine

    def end(self) -> None:
        if self.idle:
            self.idle.end()
        self.idle = None


class KeptEngine(EngineProcess):
    """An engine that goes back to its keeper, unless it is at work or its last job failed."""

    def __init__(self, keeper: Keeper, asked: tuple, *arguments):
        super().__init__(*arguments)
        self.keeper, self.asked = keeper, asked
        self.ready: list[Event] = []
        self.sound = True

    def await_ready(self) -> list[Event]:
        self.ready = self.ready or super().await_ready()
        return self.ready

    def send(self, line: str) -> None:
        self.sound = False
        super().send(line)

    def receive(self, seconds: float | None) -> Event:
        event = super().receive(seconds)
        self.sound = event["event"] in ("result", "ready")
        return event

    def close(self) -> None:
        if self.sound and self.working:
            self.keeper.keep(self)
        else:
            self.end()

    def end(self) -> None:
        super().close()
