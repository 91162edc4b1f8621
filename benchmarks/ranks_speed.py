"""Tokens a second of SFT on 1, 2, 4 ... GPUs of one machine: the same examples an optimizer step, shared among them.

    python benchmarks/ranks_speed.py --shape llama-8b --gpus 1,2,4
    python benchmarks/ranks_speed.py --shape tiny --gpus 1,2 --timed 3      on a CPU: a check of the benchmark itself

Every number of GPUs trains through an engine of its own, started as a run would start it. Writes ranks_speed.{json,md}.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, describe_gpu, describe_machine, machine_line, write_results
from benchmarks.sft_mathtune import job_of
from benchmarks.sft_speed import MAX_LENGTH, prepare, result_name
from benchmarks.sft_systems import EXAMPLES_PER_STEP
from mathtune.engine_client import EngineClient


def measure(gpus: int, per_step: int, prepared: dict[str, Any], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median tokens a second and the losses of one number of GPUs."""
    device = "cuda" if prepared["gpu"] else "cpu"
    job = job_of(prepared, arguments.shape, folder, per_step, arguments.warmup + arguments.timed,
                 [f"hardware.gpus={gpus}", f"hardware.device={device}"])
    steps: list[tuple[float, dict[str, Any]]] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            steps.append((time.perf_counter(), event))
        elif event["event"] in ("notice", "plan"):
            print(f"  {event['text']}", flush=True)

    with EngineClient(folder / "engine.log", listen) as client:
        client.run(job)
    timed = steps[arguments.warmup - 1:]
    rates = [(after["tokens"] - before["tokens"]) / (end - begin)
             for (begin, before), (end, after) in zip(timed, timed[1:], strict=False)]
    return {"gpus": gpus, "per_step": per_step, "tokens_per_second": statistics.median(rates), "slowest": min(rates),
            "fastest": max(rates), "losses": [event["loss"] for _, event in steps]}


def as_markdown(results: dict[str, Any]) -> str:
    lines = [f"# SFT on several GPUs, {results['shape']}", "",
             "| GPUs | examples a step | tokens/s | slowest, fastest step | × one GPU | first and last loss |",
             "|---:|---:|---:|---|---:|---|"]
    for row in results["rows"]:
        lines.append(f"| {row['gpus']} | {row['per_step']} | {row['tokens_per_second']:,.0f} | {row['slowest']:,.0f}, "
                     f"{row['fastest']:,.0f} | {row['ratio']:.2f} | {row['losses'][0]:.4f}, {row['losses'][-1]:.4f} |")
    return "\n".join([*lines, "", machine_line(results["machine"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(MAX_LENGTH), default="llama-8b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has, for a try")
    parser.add_argument("--gpus", default="1,2", help="numbers of GPUs, with commas between")
    parser.add_argument("--per-step", default=str(EXAMPLES_PER_STEP), help="examples of an optimizer step, with commas between")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones")
    parser.add_argument("--timed", type=int, default=8, help="timed steps")
    parser.add_argument("--prepared", type=Path, help="folder of base and examples, made where absent, kept for the next call")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="mathtune-ranks-") as name:
        prepared = prepare(arguments.prepared or Path(name) / "prepared", arguments.shape, arguments.layers)
        for per_step in map(int, arguments.per_step.split(",")):
            for gpus in map(int, arguments.gpus.split(",")):
                print(f"{gpus} GPUs, {per_step} examples a step", flush=True)
                rows.append(measure(gpus, per_step, prepared, Path(name) / f"{gpus}-{per_step}", arguments))
                alone = next(row for row in rows if row["per_step"] == per_step)
                rows[-1]["ratio"] = rows[-1]["tokens_per_second"] / alone["tokens_per_second"] * alone["gpus"]
    results = {"shape": arguments.shape, "rows": rows, "machine": {**describe_machine(), **describe_gpu()}}
    text = as_markdown(results)
    write_results(result_name("ranks_speed", arguments.shape), results, text, arguments.out)
    print(text, flush=True)


if __name__ == "__main__":
    main()
