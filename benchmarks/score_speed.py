"""Rows a second of scoring a verifier: the published loop, batched generation, a padded forward pass, and this project.

    python benchmarks/score_speed.py --shape llama-8b    a GPU with 40 GB or more: random weights of Llama-3.1-8B's shapes, NF4
    python benchmarks/score_speed.py --shape tiny        a check of the benchmark itself, or of numbers on a CPU

The base is in NF4 with a LoRA adapter of rank 16 on all projections; prompts have the lengths of the real ones
(benchmarks/sft_data.py). Every system in a process of its own; loading the base is not counted. This project's figure is of
the whole job: adapter, weights dequantised, rows read and tokenised, scored, kept block by block, written. Beside it: how far
P(True) of a row in a pack is from that of the row alone. Writes score_speed.{json,md}.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.children import child, say
from benchmarks.machine import RESULTS, describe_machine, machine_line, write_results
from benchmarks.shapes import SHAPES

FLOP = 2  # a frozen parameter and token: a product and a sum
CHILD = "benchmarks.score_child"


@dataclass(frozen=True)
class System:
    """What one row of the table measures: ``kind`` names the code, ``rows`` how many it scores, ``batch`` at a time."""

    name: str
    about: str
    kind: str
    rows: int
    batch: int = 1
    hardware: dict[str, Any] = field(default_factory=dict)


SYSTEMS = (
    System("seed", "one row at a time by generate, five tokens, as published", "generate", 24),
    System("generate", "generate in batches of 64, sorted by length, five tokens", "generate", 512, 64),
    System("prefill", "a padded forward pass of transformers' layers over batches of 64, sorted by length", "prefill",
           1024, 64),
    System("mathtune", "this project", "mathtune", 5276),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES, "demo"], default="tiny")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has, for a try")
    parser.add_argument("--systems", default="", help="names, with commas between; default: all")
    parser.add_argument("--packs", default="", help="this project once more with packs of so many tokens, with commas between")
    parser.add_argument("--dtype", default="auto", help="model.dtype")
    parser.add_argument("--rows", type=int, help="no more rows than that, for a try")
    parser.add_argument("--prepared", type=Path, help="folder of base, adapter and rows, made where absent, kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", help="of the result files")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mathtune-score-") as name:
        folder = Path(name)
        prepared = prepare(arguments.prepared or folder / "prepared", arguments)
        rows = [measure(system, prepared, folder, arguments, began) for system in chosen(arguments)]
    reference = next((row for row in rows if row["name"] == "seed" and row["status"] == "ok"), None)
    for row in rows:
        if row["status"] == "ok" and reference:
            row["ratio"] = row["rows_per_second"] / reference["rows_per_second"]
    results = {"command": " ".join(["python", *sys.argv]), "shape": arguments.shape, "rate": prepared["rate"],
               "linear_parameters": prepared["linear_parameters"], "systems": rows,
               "floor": prepared["rate"]["flop_per_second"] / FLOP / prepared["linear_parameters"],
               "machine": {**describe_machine(), **prepared["gpu"]}, "seconds": round(time.monotonic() - began)}
    name = arguments.name or ("score_speed" if arguments.shape == "llama-8b" else f"score_speed_{arguments.shape}")
    page = as_markdown(results)
    write_results(name, results, page, arguments.out)
    print(page, flush=True)


def chosen(arguments: argparse.Namespace) -> list[System]:
    """The systems that were asked for."""
    names = arguments.systems.split(",") if arguments.systems else [system.name for system in SYSTEMS]
    wanted = [system for system in SYSTEMS if system.name in names]
    ours = SYSTEMS[-1]
    return wanted + [System(f"mathtune {size}", f"this project, packs of {size} tokens", ours.kind, ours.rows,
                            hardware={"pack_tokens": int(size)}) for size in arguments.packs.split(",") if size]


def prepare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Base, adapter and rows, made in ``folder`` unless they are there."""
    made = folder / "score" / "result.json"
    if not made.is_file():
        say("preparing")
        values = {"folder": str(folder), "shape": arguments.shape, "layers": arguments.layers, "rows": SYSTEMS[-1].rows}
        found = child(CHILD, "prepare", values, folder / "score", 300)
        if found["status"] != "ok":
            sys.exit(f"preparing: {found['message']}")
    return json.loads(made.read_text())


def measure(system: System, prepared: dict[str, Any], folder: Path, arguments: argparse.Namespace,
            began: float) -> dict[str, Any]:
    """A system's row of the table."""
    say(f"{system.name}: {system.about} ({time.monotonic() - began:.0f} s so far)")
    limit = min(system.rows, arguments.rows or system.rows)
    own = folder / system.name.replace(" ", "-")
    task = {**{name: prepared[name] for name in ("base", "adapter", "rows", "prompt")}, "folder": str(own / "work"),
            "kind": system.kind, "limit": limit, "batch": system.batch, "hardware": system.hardware, "dtype": arguments.dtype,
            "warmup": min(limit, max(4, system.batch))}
    found = child(CHILD, "score", task, own, 400)
    if found["status"] != "ok":
        say(f"  {found['status']}: {found['message']}")
        return {**asdict(system), **found}
    return {**asdict(system), **found, "rows_per_second": found["rows"] / found["seconds"],
            "tokens_per_second": found["tokens"] / found["seconds"]}


def as_markdown(results: dict[str, Any]) -> str:
    """The results as a page."""
    rate = results["rate"]
    lines = [f"# Scoring speed: {results['shape']}", "", f"`{results['command']}`: a verifier with a LoRA adapter of rank 16 "
             "on all seven projections, prompts of real length. Tokens are real ones: each prompt's once, no padding.", "",
             "| system | rows | rows/s | tokens/s | seed x | of the floor | peak GiB |", "|---|---:|---:|---:|---:|---:|---:|"]
    lines += [_row(row, results["floor"]) for row in results["systems"]]
    lines += ["", *(f"- **{row['name']}**: {row['about']}{'; ' + row['plan'] if 'plan' in row else ''}"
                    for row in results["systems"]), ""]
    lines += [_differences(row) for row in results["systems"] if "gaps" in row]
    lines += ["", f"Floor: {results['floor']:,.0f} tokens/s, {FLOP} FLOP a frozen parameter "
              f"({results['linear_parameters']:,}) and token at {rate['flop_per_second'] / 1e12:.4g} TFLOP/s of a product of "
              f"two {rate['dtype']} matrices of {rate['size']} x {rate['size']} on this machine.", "",
              machine_line(results["machine"])]
    return "\n".join(lines)


def _row(row: dict[str, Any], floor: float) -> str:
    if row["status"] != "ok":
        return f"| {row['name']} | {row['status']}: {row['message'][:80]} | | | | | |"
    ratio = f"{row['ratio']:.1f}" if "ratio" in row else ""
    peak = f"{row['peak_gib']:.1f}" if row["peak_gib"] else ""
    return (f"| {row['name']} | {row['rows']:,} | {row['rows_per_second']:.1f} | {row['tokens_per_second']:,.0f} | {ratio} | "
            f"{row['tokens_per_second'] / floor:.0%} | {peak} |")


def _differences(row: dict[str, Any]) -> str:
    largest = {name: f"{gap['largest']:.2g} (mean {gap['mean']:.2g})" for name, gap in row["gaps"].items()}
    return (f"P(True) of {row['name']}, largest difference: {largest['packed_from_alone']} from each row in a pack of its own; "
            f"{largest['packed_from_float32']} from transformers' layers in float32, a row at a time, which in half precision "
            f"are {largest['plain_from_float32']} from that themselves. Standard deviation over rows: {row['p_spread']:.2g}.")



if __name__ == "__main__":
    main()
