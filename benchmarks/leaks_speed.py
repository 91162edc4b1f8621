"""Duplicates of questions among a million rows: seconds, peak memory, and how many of the planted ones are found.

    python benchmarks/leaks_speed.py

Makes (not timed) a training pool, 10,000 validation and 10,000 test rows, a million in all: word problems of about 50 words
from sentence patterns with names, things and numbers, every question once. Then copies of validation and test questions are
planted in the pool: as they are, in another writing, and with words exchanged. A child process, held to two cores, looks for
them as the stage does. Of the planted copies the real Jaccard similarity is computed from their words alone.

Where datasketch is installed (it is no dependency), its MinHash and index are timed on some of the same shingles, too.
Prints a table and writes it to benchmarks/results/leaks_speed.{json,md}.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.leaks_data import make_parts
from benchmarks.machine import LIBRARIES, RESULTS, describe_machine, machine_line, write_results
from mathtune.leaks import Questions, find_leaks
from mathtune.near import PERMUTATIONS, SEED, bands, shingle
from mathtune.questions import normal_forms

SECONDS = 90  # the target
NEAR = 0.8
BINS = (0.8, 0.85, 0.9, 0.95, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--library-rows", type=int, default=50_000, help="rows on which the two libraries are compared")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the two result files")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # the child's folder
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted, data = make_parts(folder, arguments.rows)
        child = subprocess.run([sys.executable, __file__, "--measure", name], check=True, stdout=subprocess.PIPE, text=True)
        libraries = compare_libraries(folder, arguments.library_rows)
        figures = {**json.loads(child.stdout.splitlines()[-1]), "data": data, "libraries": libraries}
        figures["recall"] = recall(planted, np.load(folder / "found.npz"))
    figures |= {"rows": arguments.rows, "near": NEAR, "cores": 2, "machine": describe(),
                "target": {"seconds": SECONDS}, "target_met": figures["seconds"] < SECONDS}
    write_results("leaks_speed", figures, as_markdown(figures), arguments.results)
    print(as_markdown(figures))


def measure(folder: Path) -> dict:
    """The search, timed. Runs in a process of its own, so that its peak memory is its own."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    pa.set_cpu_count(2)
    start_mib = peak_mib()
    pool, validation, test = (Questions(name, folder / f"{name}.parquet") for name in ("pool", "validation", "test"))
    began, cpu = time.monotonic(), time.process_time()
    pairs, rows = find_leaks(pool, [validation, test], NEAR)
    pairs += find_leaks(validation, [test], NEAR)[0]
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    np.savez(folder / "found.npz", **{name: np.array(rows[column].to_pylist()) for name, column in
                                      (("kind", "kind"), ("part", "second"), ("row", "second_row"))})
    return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_mib": peak_mib(),
            "start_mib": start_mib, "pairs": [pair.model_dump(exclude={"examples"}) for pair in pairs]}


def recall(planted: list[dict], found: dict) -> list[dict]:
    """Of the planted copies of each kind (near ones by similarity), how many were found under it or a stronger one."""
    kinds = {(part, row): kind for kind, part, row in
             zip(found["kind"].tolist(), found["part"].tolist(), found["row"].tolist(), strict=True)}
    groups = [(kind, [one for one in planted if one["kind"] == kind]) for kind in ("exact", "normalised")]
    near = [one for one in planted if one["kind"] == "near"]
    groups += [(f"near, {low:.2f} to {high:.2f}", [one for one in near if low <= one["similarity"] < high])
               for low, high in zip(BINS[:-1], BINS[1:], strict=True)]
    groups.append((f"near, below {NEAR:.2f}", [one for one in near if one["similarity"] < NEAR]))
    return [{"planted": name, "rows": len(ones),
             "found": sum(kinds.get((one["part"], one["row"])) == one["kind"] for one in ones)} for name, ones in groups]


def compare_libraries(folder: Path, rows: int) -> dict[str, dict]:
    """Seconds for signatures of some pool rows, and to look them up among the validation rows' signatures."""
    pool, validation = (shingle(normal_forms(pq.read_table(folder / name, columns=["question"])["question"].slice(0, rows)
                                             .combine_chunks())) for name in ("pool.parquet", "validation.parquet"))
    figures = {"rensa": time_rensa(pool, validation)}
    if importlib.util.find_spec("datasketch"):
        figures["datasketch"] = time_datasketch(pool, validation)
    return {name: {"rows": len(pool[1]) - 1, **values} for name, values in figures.items()}


def time_rensa(pool: tuple, validation: tuple) -> dict[str, float]:
    from rensa import RMinHashLSH

    from mathtune.near import _signatures

    index = RMinHashLSH(NEAR, PERMUTATIONS, bands(NEAR))
    index.insert_many(_signatures(*validation), 0)
    began = time.monotonic()
    signatures = _signatures(*pool)
    signed = time.monotonic()
    index.query_all(signatures)
    return {"signatures": round(signed - began, 2), "lookup": round(time.monotonic() - signed, 2)}


def time_datasketch(pool: tuple, validation: tuple) -> dict[str, float]:
    from datasketch import MinHash, MinHashLSH

    def sign(shingles: np.ndarray, edges: np.ndarray) -> list:
        # Its hash function gets what is a hash already: the best case.
        tokens = (shingles >> np.uint64(32)).tolist()
        sets = [tokens[low:high] for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
        return MinHash.bulk(sets, num_perm=PERMUTATIONS, seed=SEED, hashfunc=int)

    index = MinHashLSH(num_perm=PERMUTATIONS, params=(bands(NEAR), PERMUTATIONS // bands(NEAR)))
    for key, signature in enumerate(sign(*validation)):
        index.insert(key, signature)
    began = time.monotonic()
    signatures = sign(*pool)
    signed = time.monotonic()
    for signature in signatures:
        index.query(signature)
    return {"signatures": round(signed - began, 2), "lookup": round(time.monotonic() - signed, 2)}


def describe() -> dict:
    """The machine, with the versions of the libraries that matter here."""
    machine = describe_machine()
    machine["versions"] = {name: version for name, version in machine["versions"].items()
                           if name not in LIBRARIES or name in ("pyarrow", "numpy")}
    libraries = {name: importlib.metadata.version(name) for name in ("rensa", "datasketch") if importlib.util.find_spec(name)}
    return machine | {"versions": machine["versions"] | libraries}


def as_markdown(figures: dict) -> str:
    """The figures as a Markdown page."""
    data, met = figures["data"], "met" if figures["target_met"] else "MISSED"
    lines = ["# Duplicates of questions among a million rows", "", "`python benchmarks/leaks_speed.py`, "
             + machine_line(figures["machine"]),
             f"{figures['rows']:,} rows, {data['words']:.0f} words a question on average, {data['chars'] / 1e6:,.0f} MB of "
             f"text. Near: Jaccard similarity of word pairs of {figures['near']} or more.", "",
             f"**{figures['seconds']:.1f} s on {figures['cores']} cores** ({figures['cpu_seconds']:.1f} s of processor time), "
             f"peak memory {figures['peak_mib']:,.0f} MiB ({figures['start_mib']:,.0f} MiB of it Python and its libraries). "
             f"Target: under {SECONDS} s: {met}.", "",
             "| between | rows | exact | normalised | near |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {pair['first']}, {pair['second']} | {pair['first_rows']:,} and {pair['second_rows']:,} | {pair['exact']:,} | "
              f"{pair['normalised']:,} | {pair['near']:,} |" for pair in figures["pairs"]]
    lines += ["", "| planted | rows | found under that kind | share |", "|---|---:|---:|---:|"]
    lines += [f"| {row['planted']} | {row['rows']:,} | {row['found']:,} | "
              + (f"{row['found'] / row['rows']:.2%} |" if row["rows"] else "|") for row in figures["recall"]]
    lines += ["", f"MinHash and index alone ({PERMUTATIONS} permutations, {bands(NEAR)} bands, the same shingles, 10,000 "
              "indexed questions):", "", "| library | rows | signatures, s | lookup, s |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {row['rows']:,} | {row['signatures']:.2f} | {row['lookup']:.2f} |"
              for name, row in figures["libraries"].items()]
    return "\n".join([*lines, "", "One run on one machine: expect other figures on another.", ""])


def peak_mib() -> float:
    # VmHWM, not ru_maxrss: the latter survives exec, so a child would begin with its parent's peak.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024, 1)


if __name__ == "__main__":
    main()
