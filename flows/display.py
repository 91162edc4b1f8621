"""Shows an execution in the terminal from its event file: one line a stage, and the one at work with its progress."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mathtune.events import Event

MARKS = {"done": "[green]✓[/]", "cached": "[cyan]=[/]", "failed": "[red]✗[/]"}


class Display:
    """Follows the events of one execution from a thread, so that it never holds the run up.

    Args:
        console: where to draw.
        events: the execution's ``events.jsonl``; it may not exist yet.
    """

    def __init__(self, console: Console, events: Path):
        self.console, self.events = console, events
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._progress = Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24),
                                  TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), TimeRemainingColumn(),
                                  console=console, transient=True)
        self._line: Any = None
        self._title = ""
        self._plans: set[str] = set()

    def __enter__(self) -> "Display":
        self._progress.start()
        self._line = self._progress.add_task("starting Prefect", total=None, figures="")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._progress.stop()

    def _follow(self) -> None:
        for event in follow(self.events, self._stop):
            if event["event"] == "stage":
                self._stage(event)
            else:
                self._work(event)

    def _stage(self, event: Event) -> None:
        if event["state"] == "started":
            self._title = event["title"]
            self._progress.reset(self._line, total=None, description=self._title, figures="")
            return
        seconds = f"{event['seconds']:6.1f} s" if "seconds" in event else " " * 8
        how = " [cyan](served)[/]" if event["state"] == "cached" else ""
        text = event["text"].splitlines()[0] if event["text"] else ""
        title = _escape(f"{event['title']:<26}")
        line = f" {MARKS[event['state']]} {title} {seconds}  {_escape(text)}{how}"
        self._progress.console.print(line, soft_wrap=True)
        self._progress.update(self._line, description="", figures="")

    def _work(self, event: Event) -> None:
        kind = event["event"]
        if kind == "phase":
            self._progress.update(self._line, description=f"{_escape(self._title)}: {_escape(event['text'])}")
        elif kind in ("notice", "stopped"):
            self._progress.console.print(f"   [yellow]! {_escape(event['text'])}[/]", soft_wrap=True)
        elif kind == "end":
            self._progress.reset(self._line, total=None, description="telling Prefect", figures="")
        elif kind == "plan":
            self._plan(event["text"])
        elif kind == "resumed":
            self._progress.console.print(f"   [yellow]goes on from step {event['step']}[/]")
        elif kind == "step":
            figures = f"reward {event['reward']:.2f}" if "reward" in event else (
                f"loss {event['loss']:.3f}  {event['tokens'] / event['seconds']:,.0f} tokens/s")
            self._progress.update(self._line, description=_escape(self._title), total=event["steps"], completed=event["step"],
                                  figures=f"{figures}  {event['step']}/{event['steps']}")
        elif kind == "progress":
            self._progress.update(self._line, description=f"{_escape(self._title)}: {event['text']}", total=event["total"],
                                  completed=event["done"], figures=f"{event['done']}/{event['total']}")

    def _plan(self, text: str) -> None:
        """Says how work is laid on the machine, where it is not as before: a run's chunks are laid out alike."""
        layout, _, _ = text.partition(";")  # behind it: memory, which hardly matters where it suffices
        if layout not in self._plans:
            self._plans.add(layout)
            self._progress.console.print(f"   [dim]{_escape(text)}[/]", soft_wrap=True)


def follow(path: Path, stop: threading.Event, pause: float = 0.1) -> Iterator[Event]:
    """The events of a file that may still be growing, until ``stop`` is set and all that was written is read."""
    while not path.is_file():
        if stop.wait(pause):
            return
    with open(path, encoding="utf-8") as file:
        rest = ""
        while True:
            ending = stop.is_set()
            rest += file.read()
            *lines, rest = rest.split("\n")
            for line in lines:
                yield json.loads(line)
            if ending:
                return
            stop.wait(pause)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")
