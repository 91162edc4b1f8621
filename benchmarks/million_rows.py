"""One million rows through download, balance and split: seconds and peak memory of the real case.

    python benchmarks/million_rows.py

Makes 1,000,000 rows (not timed): three text columns, about 1 GB of text, four rows a question, 60% labelled False,
as one Parquet file, and 10,000 test rows. A child process, held to two cores, then reads them, balances them to
400,000 rows a class, and draws 10,000 validation rows, each stage published into an ArtifactStore: digests, fsync and
the verifying read count. Prints a table and writes it to benchmarks/results/million_rows.{json,md}.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.machine import cpu_name
from mathtune.balance import balance_rows
from mathtune.digests import digest_value
from mathtune.recipe import Balance, Validation
from mathtune.recipe_source import Source
from mathtune.sources import read_source, source_identity
from mathtune.split import split_rows
from mathtune.store import ArtifactStore

RESULTS = Path(__file__).parent / "results"
SECONDS, GIB = 60, 2  # the target
ROWS_PER_QUESTION = 4
SOURCE_GROUP = 100_000  # rows of a row group of the source, about what data sets on the Hub have


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the two result files")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # the child's folder
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.rows)))
        return
    with tempfile.TemporaryDirectory() as folder:
        text_bytes = make_source(Path(folder), arguments.rows)
        child = subprocess.run([sys.executable, __file__, "--rows", str(arguments.rows), "--measure", folder],
                               check=True, capture_output=True, text=True)
    report = describe(json.loads(child.stdout.splitlines()[-1]), arguments.rows, text_bytes)
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "million_rows.json").write_text(json.dumps(report, indent=2) + "\n")
    (arguments.results / "million_rows.md").write_text(as_markdown(report))
    print(as_markdown(report))


def make_source(folder: Path, rows: int) -> int:
    """Writes train.parquet and test.parquet; returns the bytes of text in the training rows."""
    rng = np.random.default_rng(0)
    text_bytes = 0
    with pq.ParquetWriter(folder / "train.parquet", _rows(rng, 0, 1).schema, compression="snappy") as writer:
        for first in range(0, rows, SOURCE_GROUP):
            table = _rows(rng, first, min(SOURCE_GROUP, rows - first))
            text_bytes += sum(pc.sum(pc.binary_length(table[name])).as_py() for name in
                              ("question", "answer", "solution"))
            writer.write_table(table)
    pq.write_table(_rows(rng, rows, rows // 100), folder / "test.parquet")
    return text_bytes


def measure(folder: Path, rows: int) -> list[dict]:
    """The three stages, timed. Runs in a process of its own, so that its peak memory is theirs alone."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    pa.set_cpu_count(2)
    store = ArtifactStore(folder / "artifacts")
    source = Source(path=str(folder / "train.parquet"), test_path=str(folder / "test.parquet"))
    balance, validation = Balance(per_class=rows * 2 // 5), Validation(rows=rows // 100)
    figures = [{"stage": "start (imports)", "seconds": 0.0, "peak_mib": _peak_mib(), "rows": 0, "bytes": 0}]

    def stage(name: str, out: str, identity, build):
        began = time.monotonic()
        artifact = store.get_or_build(name, digest_value(identity()), build)
        seconds = time.monotonic() - began
        figures.append({"stage": name, "seconds": round(seconds, 2), "peak_mib": _peak_mib(),
                        "rows": pq.read_metadata(artifact.path(out)).num_rows,
                        "bytes": sum(artifact.path(file).stat().st_size for file in artifact.files)})
        return artifact

    raw = stage("download", "train.parquet", lambda: source_identity(source, "verifier"),
                lambda target: read_source(source, "verifier", target))
    balanced = stage("balance", "balanced.parquet", lambda: [raw.digest, balance.model_dump()],
                     lambda target: balance_rows(raw.path("train.parquet"), balance, target))
    stage("split", "pool.parquet", lambda: [balanced.digest, validation.model_dump()],
          lambda target: split_rows(balanced.path("balanced.parquet"), validation, "verifier", target))
    return figures


def describe(stages: list[dict], rows: int, text_bytes: int) -> dict:
    """The figures beside what is needed to read them."""
    seconds, peak = sum(stage["seconds"] for stage in stages), max(stage["peak_mib"] for stage in stages)
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "rows": rows, "text_bytes": text_bytes,
            "seconds": round(seconds, 2), "peak_mib": peak, "target": {"seconds": SECONDS, "gib": GIB},
            "target_met": seconds <= SECONDS and peak <= GIB * 1024, "stages": stages, "cores": 2, "cpu": cpu_name(),
            "versions": {"python": platform.python_version(), "pyarrow": pa.__version__, "numpy": np.__version__}}


def as_markdown(report: dict) -> str:
    """The figures as a Markdown page."""
    lines = ["# A million rows: download, balance, split", "",
             f"`python benchmarks/million_rows.py`, {report['date']}: {report['rows']:,} rows, "
             f"{report['text_bytes'] / 1e9:.2f} GB of text, {report['cores']} cores ({report['cpu']}), "
             + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".", "",
             "| stage | seconds | peak memory so far (MiB) | rows out | MB on disk |", "|---|---:|---:|---:|---:|"]
    for stage in report["stages"]:
        lines.append(f"| {stage['stage']} | {stage['seconds']:.1f} | {stage['peak_mib']:,.0f} | {stage['rows']:,} | "
                     f"{stage['bytes'] / 1e6:,.0f} |")
    met = "met" if report["target_met"] else "MISSED"
    lines += [f"| **all** | **{report['seconds']:.1f}** | **{report['peak_mib']:,.0f}** | | |", "",
              f"Target: at most {SECONDS} s and {GIB} GiB: {met}. Publishing (digests, fsync, the verifying read) "
              "counts; making the source does not. One run on one machine: expect other figures on another.", ""]
    return "\n".join(lines)


def _rows(rng: np.random.Generator, first: int, rows: int) -> pa.Table:
    questions = -(-rows // ROWS_PER_QUESTION)
    number = pa.array(np.arange(questions) + first // ROWS_PER_QUESTION).cast(pa.string())
    question = _join(*_sentences(questions, 3, rng), "How many were there after ", number, " days?")
    answer = pa.array(rng.integers(0, 10_000, rows)).cast(pa.string())
    solution = _join(*_sentences(rows, 10, rng), "The answer is ", answer)
    return pa.table({"question": question.take(pa.array(np.arange(rows) // ROWS_PER_QUESTION)), "answer": answer,
                     "solution": solution, "is_correct": pa.array(rng.random(rows) < 0.4)})


def _sentences(rows: int, count: int, rng: np.random.Generator) -> list[pa.Array]:
    """``count`` columns of sentences, drawn from so many that compression finds about as little as in real text."""
    stock = _stock()
    return [stock.take(pa.array(rng.integers(0, len(stock), rows))) for _ in range(count)]


@cache
def _stock() -> pa.Array:
    rng = np.random.default_rng(1)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    likely = 1 / np.arange(3, 29)
    lengths = rng.integers(2, 10, 4_000)
    words = ["".join(rng.choice(letters, length, p=likely / likely.sum())) for length in lengths]
    drawn = rng.zipf(1.3, (150_000, 12)) % len(words)
    figures = rng.integers(2, 1000, len(drawn))
    return pa.array([" ".join(words[i] for i in row) + f" = {figure}. " for row, figure in
                     zip(drawn.tolist(), figures.tolist(), strict=True)])


def _join(*parts: pa.Array | str) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def _peak_mib() -> float:
    # VmHWM, not ru_maxrss: the latter survives exec, so a child would begin with its parent's peak.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) / 1024, 1)
    raise OSError("this kernel reports no VmHWM")


if __name__ == "__main__":
    main()
