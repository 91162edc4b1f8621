"""Tokens a second of SFT with QLoRA, plain and tuned trl, Unsloth and this project side by side, on the machine it runs on.

    python benchmarks/sft_speed.py --shape llama-8b            a GPU with 40 GB or more: random weights of Llama-3.1-8B's shapes
    python benchmarks/sft_speed.py --shape demo                a CPU: the demo's base and its rows
    python benchmarks/sft_speed.py --shape tiny --timed 2      a check of the benchmark itself
    ... --systems trl-tuned@36,mathtune --variant small-packs hardware.pack_tokens=8192

Every system trains in a process of its own, one after the other: the same examples in the same order, 72 an optimizer step
(the published setting: 8), real weights' shapes, real lengths (benchmarks/sft_data.py). What does not fit in memory is
tried again with fewer examples a forward pass; what fails is a row that says so. Writes sft_speed.{json,md,png}.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.children import child, say
from benchmarks.machine import RESULTS, describe_machine, write_results
from benchmarks.sft_data import EXAMPLES
from benchmarks.sft_report import as_markdown, compact, draw, figures_of, floor_tokens_per_second, ratios
from benchmarks.sft_systems import System, Task, choose
from benchmarks.shapes import SHAPES

MAX_LENGTH = {"llama-8b": 1024, "tiny": 1024, "demo": 256}
OPTIMIZER = "adamw_torch_fused"


def main() -> None:
    arguments = parse()
    systems = choose(arguments.systems.split(",") if arguments.systems else [], arguments.variant)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mathtune-speed-") as name:
        folder = Path(name)
        prepared = prepare(arguments.prepared or folder / "prepared", arguments.shape, arguments.layers, arguments.examples)
        floor = floor_tokens_per_second(prepared["linear_parameters"], prepared["rate"]["flop_per_second"])
        rows = []
        for system in systems:
            say(f"{system.name}: {system.about} ({time.monotonic() - began:.0f} s so far)")
            rows.append(measure(system, prepared, folder / system.name.replace(" ", "-"), arguments, floor))
    ratios(rows, arguments.reference)
    results = {"command": " ".join(["python", *sys.argv]), "shape": arguments.shape, "layers": arguments.layers,
               "warmup": arguments.warmup, "timed": arguments.timed, "optimizer": arguments.optimizer,
               "reference": arguments.reference, "rate": prepared["rate"], "floor": floor,
               "linear_parameters": prepared["linear_parameters"], "examples": prepared["examples"],
               "memory": next((row["memory"] for row in rows if row["status"] == "ok"), "none"), "systems": rows,
               "seconds": round(time.monotonic() - began), "machine": {**describe_machine(), **prepared["gpu"]}}
    write_results(arguments.name, results, as_markdown(results), arguments.out)
    draw(results, arguments.out / f"{arguments.name}.png")
    print(f"\n{compact(results)}", flush=True)


def prepare(folder: Path, shape: str, layers: int | None, examples: int = EXAMPLES) -> dict[str, Any]:
    """Base, examples and the rate of products, made in ``folder`` unless they are there."""
    made = folder / "result.json"
    if not made.is_file():
        say("preparing")
        values = {"folder": str(folder), "shape": shape, "layers": layers, "examples": examples}
        found = child("benchmarks.sft_child", "prepare", values, folder, 300)
        if found["status"] != "ok":
            sys.exit(f"preparing: {found['message']}")
    return json.loads(made.read_text())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES, "demo"], default="demo")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has, for a try")
    parser.add_argument("--systems", help="names, with commas between; NAME@18: 18 examples a forward pass; default: all")
    parser.add_argument("--variant", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"),
                        help="mathtune once more, with other values of the recipe's hardware, sft, lora or model section")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones")
    parser.add_argument("--timed", type=int, default=6, help="timed steps")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="rows of the table that steps draw from")
    parser.add_argument("--optimizer", default=OPTIMIZER, help="of every system but seed")
    parser.add_argument("--reference", default="seed", help="the system of which the others' speed is a multiple")
    parser.add_argument("--time-limit", type=float, default=300, help="seconds of one system")
    parser.add_argument("--prepared", type=Path, help="folder of base and examples, made where absent, kept for the next call")
    parser.add_argument("--name", help="of the result files; default: sft_speed, unless llama-8b with its shape")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    arguments.name = arguments.name or result_name("sft_speed", arguments.shape)
    return arguments


def result_name(name: str, shape: str) -> str:
    """A try on a small shape does not write over the results that are published."""
    return name if shape == "llama-8b" else f"{name}_{shape}"


def measure(system: System, prepared: dict[str, Any], folder: Path, arguments: argparse.Namespace,
            floor: float) -> dict[str, Any]:
    """A system's row: of the largest forward pass that fits, or why there is none."""
    row: dict[str, Any] = {"system": system.name, "about": system.about, "per_step": system.per_step}
    too_large: list[int] = []
    micro_batches = system.micro_batches if prepared["gpu"] else system.on_cpu or system.micro_batches
    for micro_batch in micro_batches:
        task = Task(system=system.name, kind=system.kind, base=prepared["base"], tokens=prepared["tokens"],
                    folder=str(folder / str(micro_batch)), max_length=MAX_LENGTH[arguments.shape], warmup=arguments.warmup,
                    timed=arguments.timed, per_step=system.per_step, micro_batch=micro_batch, optimizer=arguments.optimizer,
                    settings=system.settings)
        found = child("benchmarks.sft_child", "train", task.as_json(), folder / str(micro_batch), arguments.time_limit)
        # an allocator that had to give memory back and ask again was at its limit: fewer examples a pass are faster
        tight = found.get("allocator_retries", 0) > 0
        if found["status"] != "out of memory" and not (tight and micro_batch != micro_batches[-1]):
            break
        say(f"  {micro_batch} a pass: {'memory was tight' if tight else 'out of memory'}")
        too_large.append(micro_batch)
    if found["status"] != "ok":
        say(f"  {found['status']}: {found['message']}")
        return {**row, **found}
    return {**row, "too_large": too_large, **figures_of(found, arguments.warmup, system.per_step, floor)}


if __name__ == "__main__":
    main()
