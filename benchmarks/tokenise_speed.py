"""How long a chunk's rows take to become token ids: read, tokenised and written, on two cores.

    python benchmarks/tokenise_speed.py                      20,000 rows through the demo's tokenizer
    python benchmarks/tokenise_speed.py --base FOLDER        through another one

The rows are the demo generator's, in the prompt of recipes/nyu_verifier_llama31_8b.yaml; each solution is followed by those of
the rows after it, so that an example has about 229 tokens in the demo's tokenizer, as the real ones have in Llama's. Measured
is the job as a run gives it to its engine, which is there already; and as it is done ahead, while a chunk is trained: by a
process of its own, whose start counts, at low priority, here with nothing beside it.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import describe_machine, machine_line, write_results
from mathtune.demo.problems import rows
from mathtune.engine_client import EngineClient
from mathtune.jobs import TokeniseJob
from mathtune.recipe_file import load_recipe
from mathtune.stages.ahead import ENVIRONMENT, NICE
from mathtune.tokens import read_tokens

RECIPE = Path(__file__).parents[1] / "recipes" / "nyu_verifier_llama31_8b.yaml"
SOLUTIONS = 7  # of so many rows together give the length of a real one
TARGET = 10  # seconds


def write_rows(path: Path, count: int) -> None:
    """Rows as a chunk's artifact holds them."""
    table = rows("verifier", count, 5, "train").to_pylist()
    solutions = [row["solution"] for row in table]
    long = ["\n".join(solutions[(number + i) % count] for i in range(SOLUTIONS)) for number in range(count)]
    made = [{**row, "row_id": number, "solution": text} for number, (row, text) in enumerate(zip(table, long, strict=True))]
    pq.write_table(pa.Table.from_pylist(made), path, compression="zstd")


def make_job(folder: Path, base: str) -> TokeniseJob:
    recipe = load_recipe(RECIPE, [f"model.base={base}"])
    return TokeniseJob(task=recipe.task, model=recipe.model, prompt=recipe.prompt, cache=str(folder / "cache"),
                       rows=str(folder / "rows.parquet"), output=str(folder / "tokens.parquet"))


def seconds_of(body: Any) -> float:
    began = time.monotonic()
    body()
    return round(time.monotonic() - began, 3)


def measure(folder: Path, base: str, repeats: int) -> dict[str, Any]:
    """Seconds of every repetition, and what was tokenised."""
    job, quiet = make_job(folder, base), lambda event: None
    with EngineClient(folder / "engine.log", quiet) as engine:
        counts = engine.run(job)  # fetches or builds the base, imports what there is to import
        warm = [seconds_of(lambda: engine.run(job)) for _ in range(repeats)]
    read = [seconds_of(lambda: read_tokens(Path(job.output)).shared_prefix) for _ in range(repeats)]

    def alone() -> None:
        with EngineClient(folder / "ahead.log", quiet, environment=ENVIRONMENT, nice=NICE) as engine:
            engine.run(job)

    ahead = [seconds_of(alone) for _ in range(repeats)]
    return {"base": base, "rows": counts["examples"], "tokens": counts["tokens"], "shortened": counts["shortened"],
            "file_bytes": Path(job.output).stat().st_size, "seconds_in_the_engine": warm, "seconds_to_read_back": read,
            "seconds_ahead": ahead}


def show(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    rows, tokens = results["rows"], results["tokens"]
    lines = ["# Rows to token ids", "",
             f"{rows:,} rows, {tokens:,} tokens ({tokens / rows:.0f} a row) of the tokenizer of {results['base']}; median of "
             f"{len(results['seconds_ahead'])}, slowest in brackets.", "", "| | seconds | tokens/s |", "|---|---:|---:|"]
    for what, name in (("in the run's engine: rows read, tokenised, written", "seconds_in_the_engine"),
                       ("the written table read back, its shared prefix found", "seconds_to_read_back"),
                       ("ahead: by a process of its own, its start included", "seconds_ahead")):
        typical = statistics.median(results[name])
        lines.append(f"| {what} | {typical:.2f} ({max(results[name]):.2f}) | {tokens / typical:,.0f} |")
    return "\n".join([*lines, "", machine_line(results["machine"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--base", default="builtin:demo", help="model.base whose tokenizer is used")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", default="tokenise_speed", help="name of the two files in benchmarks/results")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:arguments.cores]))
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows.parquet", arguments.rows)
        results = {"machine": describe_machine() | {"cores": arguments.cores},
                   **measure(Path(folder), arguments.base, arguments.repeats)}
    text = show(results)
    print(text)
    write_results(arguments.name, results, text)
    if arguments.rows == 20_000 and max(results["seconds_in_the_engine"]) > TARGET:
        raise SystemExit(f"more than {TARGET} s")


if __name__ == "__main__":
    main()
