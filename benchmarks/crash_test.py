"""Kills the pipeline at random moments, starts it again by the same command, and compares bytes with an undisturbed run.

    make crash-test                                     100 kills or more, about half an hour on two cores
    python benchmarks/crash_test.py --kills 10 --seed 7

Three ways to kill, drawn at random: SIGKILL to the control plane, the engine or both when the n-th event is seen (and up
to 0.2 s later); SIGKILL at an injected crash point inside a save (``mathtune.faults``), several a start; SIGTERM to the
control plane. Every round begins in empty folders and ends when the command exits with 0. A round is right if every
link's adapter digest, predictions.parquet and submission.csv are those of the undisturbed run.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, machine_line, write_results
from mathtune.chain import Chain
from mathtune.folders import LocalFolders

ROOT = Path(__file__).parents[1]
SAVE_EVERY = 3
LATEST = 0.2  # seconds after an event at which the kill may fall
CRASH_POINTS = [f"{stage}:{phase}" for stage in ("checkpoint", "link", "score", "split", "download")
                for phase in ("built", "synced", "sealed", "published")] + ["remove:renamed", "step"]
COMMON = [
    "model.max_length=256", "lora.rank=8", "lora.dropout=0.1", f"sft.save_every={SAVE_EVERY}", "sft.examples_per_step=16",
    "hardware.pack_tokens=512", "hardware.engine_restarts=50", "evaluation.reject_p=null"]
VERIFIER = [
    "recipes/demo.yaml", *COMMON, "source.generator.rows=1500", "source.generator.test_rows=80", "validation.rows=80",
    "chunks.size=200", "chunks.end=600", "sft.epochs=1.5", "evaluation.words_rows=10"]
SOLVER = [
    "recipes/demo_solver.yaml", *COMMON, "source.generator.rows=400", "source.generator.test_rows=40", "validation.rows=40",
    "chunks.size=160", "chunks.end=160", "sft.epochs=2", "grpo.max_steps=8", "grpo.prompts_per_step=4", "grpo.generations=4",
    "grpo.max_new_tokens=24", f"grpo.save_every={SAVE_EVERY}", "evaluation.max_new_tokens=32"]
PIPELINES = {"verifier": VERIFIER, "solver": SOLVER}


@dataclass
class Tally:
    """What the rounds add up to.

    Attributes:
        kills: by what was killed and where.
        lost: steps that were done again, for each kill after which training went on.
        seconds: from a start to its first new step.
        wrong: differences from the undisturbed run; must stay empty.
    """

    rounds: int = 0
    starts: int = 0
    kills: Counter = field(default_factory=Counter)
    lost: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def killed(self) -> int:
        """SIGKILLs, without the SIGTERMs."""
        return sum(times for what, times in self.kills.items() if not what.startswith("term"))


class Pipeline:
    """One pipeline in a folder of its own, started by the same command again and again."""

    def __init__(self, kind: str, folder: Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment
        self.command = [sys.executable, "-m", "flows.cli", "run", *PIPELINES[kind], "name=crash", "chain=crash",
                        f"storage.root={folder / 'store'}", f"storage.runs={folder / 'runs'}"]
        self.known: set[Path] = set()
        self.starts: list[float] = []

    def start(self, faults: list[dict[str, Any]] | None = None) -> subprocess.Popen:
        """The process of one start; faults are asked for in control plane and engine alike."""
        self.known = set(self._executions())
        asked = {"MATHTUNE_FAULT": json.dumps(faults)} if faults else {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.starts.append(time.time())
        with open(self.folder / "output.log", "ab") as log:
            return subprocess.Popen(self.command, cwd=ROOT, env={**self.environment, **asked}, stdout=log, stderr=log)

    def events(self) -> list[dict[str, Any]]:
        """Events of the latest start, so far; empty while it has none."""
        new = [path for path in self._executions() if path not in self.known]
        return read_events(new[0] / "events.jsonl") if new else []

    def executions(self) -> list[list[dict[str, Any]]]:
        """Events of every start, in order."""
        return [read_events(path / "events.jsonl") for path in self._executions()]

    def outcome(self) -> dict[str, Any]:
        """What must be the same: digests of the links' adapters, bytes of the predictions and the submission."""
        links = Chain(LocalFolders(self.folder / "store" / "chains"), "crash").links()
        files = [self.folder / "runs" / "crash" / name for name in ("predictions.parquet", "submission.csv")]
        return {"adapters": [link.adapter_digest for link in links],
                **{path.name: path.read_bytes() for path in files if path.is_file()}}

    def _executions(self) -> list[Path]:
        return sorted((self.folder / "runs" / "crash" / "executions").glob("*"))  # their names sort by time


def read_events(path: Path) -> list[dict[str, Any]]:
    """Whole lines of an event file; one that a kill cut off is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1] if line.endswith("}")]


def run_round(pipeline: Pipeline, expected: dict[str, Any], length: int, draw: random.Random, tally: Tally, most: int) -> None:
    """Kills and starts again, ``most`` starts with kills at most, until the command ends by itself; then compares."""
    for number in range(most + 1):
        undisturbed = number == most
        before = sum(tally.kills.values())
        tally.starts += 1
        status, ends = (pipeline.start().wait(), False) if undisturbed else disturbed_start(pipeline, length, draw, tally)
        if status == 0:
            break
        if not ends or sum(tally.kills.values()) == before:
            tally.wrong.append(f"exit status {status} without a kill that ends a run: {pipeline.folder / 'output.log'}")
            return
    outcome = pipeline.outcome()
    tally.wrong += [f"{pipeline.folder}: {name} differs" for name in expected.keys() | outcome.keys()
                    if outcome.get(name) != expected.get(name)]
    tally.rounds += 1
    measure(pipeline, tally)
    if max(tally.lost, default=0) > SAVE_EVERY:
        tally.wrong.append(f"{pipeline.folder}: {max(tally.lost)} steps lost by one kill")
    if litter := [path.name for path in (pipeline.folder / "store" / "chains").rglob(".*")]:
        tally.wrong.append(f"{pipeline.folder}: left behind {litter}")


def disturbed_start(pipeline: Pipeline, length: int, draw: random.Random, tally: Tally) -> tuple[int, bool]:
    """One start with kills of a drawn kind. Returns its exit status, and whether they may end it (an engine's do not)."""
    victim = draw.choice(["faults", "faults", "engine", "control", "both", "term"])
    if victim == "faults":
        return start_with_faults(pipeline, draw, tally), True
    times = draw.randint(1, 4) if victim == "engine" else 1  # the run goes on after the death of an engine
    numbers = sorted(draw.sample(range(length // 2), times))
    return start_and_kill(pipeline, victim, numbers, draw, tally), victim != "engine"


def start_with_faults(pipeline: Pipeline, draw: random.Random, tally: Tally) -> int:
    """A start with crash points armed; each fires once at most, and those that did are counted."""
    folder = Path(tempfile.mkdtemp(dir=pipeline.folder.parent))
    faults = [{"at": at, "ordinal": draw.randint(1, 3), "do": "kill", "once": str(folder / f"{number}")}
              for number, at in enumerate(draw.sample(CRASH_POINTS, 14))]
    process = pipeline.start(faults)
    process.wait()
    for number, fault in enumerate(faults):
        if (folder / str(number)).exists():
            tally.kills[f"in {fault['at']}"] += 1
    return process.returncode


def start_and_kill(pipeline: Pipeline, victim: str, event_numbers: list[int], draw: random.Random, tally: Tally) -> int:
    """A start in which the victim is killed each time so many events were seen."""
    process = pipeline.start()
    for number in event_numbers:
        while process.poll() is None and len(pipeline.events()) <= number:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, LATEST))
        events = pipeline.events()
        engine = next((event["pid"] for event in reversed(events) if event["event"] == "ready"), None)
        if kill(process, engine, victim):
            tally.kills[f"{victim} {doing_at(events)}"] += 1
    return process.wait()


def kill(process: subprocess.Popen, engine: int | None, victim: str) -> bool:
    """Kills. Returns whether there was anything to kill."""
    if victim in ("engine", "both"):
        if engine is None or not Path(f"/proc/{engine}").exists():
            return False
        os.kill(engine, signal.SIGKILL)
    if victim != "engine":
        if process.poll() is not None:
            return False
        process.send_signal(signal.SIGTERM if victim == "term" else signal.SIGKILL)
    return True


def doing_at(events: list[dict[str, Any]]) -> str:
    """What a run was doing after these events, in a word or two."""
    stage = next((event for event in reversed(events) if event["event"] == "stage"), None)
    if stage is None or stage["state"] != "started":
        return "between stages"
    title = stage["title"].split("[")[0]
    trains = title in ("train-chunk", "grpo") and events[-1]["event"] in ("step", "checkpoint")
    return "while training" if trains else f"in {title}"


def measure(pipeline: Pipeline, tally: Tally) -> None:
    """Adds a round's lost steps and seconds to the first new step, from the events of all its starts."""
    reached: dict[str, int] = {}
    for events in pipeline.executions():
        title, first = "", True
        began = max(start for start in pipeline.starts if start <= events[0]["time"]) if events else None
        for event in events:
            kind = event["event"]
            if kind == "notice" and "died" in event["text"]:
                began, first = event["time"], True
            elif kind == "stage" and event["state"] == "started":
                title = event["title"]
            elif kind == "phase" and event["text"] == "training" and title in reached:
                tally.lost.append(reached[title] - event["step"])
            elif kind == "step":
                reached[title] = event["step"]
                if first:
                    tally.seconds.append(event["time"] - began)
                first = False


def crash_test(kills: int, seed: int, kinds: list[str], folder: Path, starts_a_round: int = 12) -> Tally:
    """Rounds until there were so many kills. Prints a line a round."""
    draw, tally = random.Random(seed), Tally()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    undisturbed = {}
    for kind in kinds:
        pipeline = Pipeline(kind, folder / f"{kind}-undisturbed", environment)
        if pipeline.start().wait() != 0:
            sys.exit((pipeline.folder / "output.log").read_text())
        undisturbed[kind] = (pipeline.outcome(), len(pipeline.executions()[0]))
    while (tally.killed < kills or tally.rounds < len(kinds)) and not tally.wrong:
        kind = kinds[tally.rounds % len(kinds)]
        expected, length = undisturbed[kind]
        run_round(Pipeline(kind, folder / f"{kind}-{tally.rounds}", environment), expected, length, draw, tally, starts_a_round)
        print(f"round {tally.rounds} ({kind}): {tally.killed} kills so far, "
              f"{'same bytes' if not tally.wrong else tally.wrong[-1]}", flush=True)
    return tally


def report(tally: Tally, seed: int) -> dict[str, Any]:
    """The figures, as they are printed and kept."""
    return {"rounds": tally.rounds, "starts": tally.starts, "sigkills": tally.killed,
            "sigterms": sum(tally.kills.values()) - tally.killed, "seed": seed,
            "checkpoint_interval_steps": SAVE_EVERY, "most_steps_lost_a_kill": max(tally.lost, default=0),
            "mean_steps_lost_a_kill": round(statistics.mean(tally.lost), 2) if tally.lost else 0,
            "median_seconds_to_first_new_step": round(statistics.median(tally.seconds), 1) if tally.seconds else None,
            "most_seconds_to_first_new_step": round(max(tally.seconds), 1) if tally.seconds else None,
            "differences": tally.wrong, "kills_by_phase": dict(sorted(tally.kills.items()))}


def table(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | value |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value if value != [] else 'none'} |"
              for name, value in figures.items() if name != "kills_by_phase"]
    lines += ["", "| killed | times |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in figures["kills_by_phase"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(PIPELINES), choices=list(PIPELINES))
    parser.add_argument("--name", default="crash_test", help="of the files in benchmarks/results/")
    parser.add_argument("--keep", type=Path, help="folder to work in and leave; default: a temporary one")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="mathtune-crash-"))
    began = time.monotonic()
    tally = crash_test(arguments.kills, arguments.seed, arguments.kinds, folder)
    figures = {**report(tally, arguments.seed), "minutes": round((time.monotonic() - began) / 60, 1)}
    text = table(figures)
    print(text)
    if tally.wrong:
        sys.exit(1)
    machine = describe_machine()
    write_results(arguments.name, {"figures": figures, "machine": machine}, f"# Crash test\n\n{text}\n{machine_line(machine)}")
    if not arguments.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
