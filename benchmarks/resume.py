"""What checkpoints cost, and how exact a resume is, where it runs: on a GPU with and without hardware.deterministic.

    python benchmarks/resume.py                    the demo's base: SFT and GRPO, interrupted and not
    python benchmarks/resume.py --shape llama-8b   besides, an adapter on random weights of Llama-3.1-8B's shapes (16 GB disk)
    python benchmarks/resume.py --state llama-8b   without a GPU: only writes the state of such an adapter

Exactness: a job is trained in one go; then again, stopped in the middle by an exception and gone on from its checkpoint.
Printed is whether the adapters' bytes are the same, and by how much tensors and losses differ if not. Cost: seconds and
bytes of a checkpoint beside the seconds of a step, and the share of the training time at the default interval.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from benchmarks.machine import describe_gpu, describe_machine, machine_line, write_results
from benchmarks.shapes import SHAPES, random_model
from mathtune.demo.problems import rows
from mathtune.devices import make_deterministic
from mathtune.digests import digest_file
from mathtune.jobs import GrpoJob, Place, SftJob, TokeniseJob
from mathtune.models import Base, load_base
from mathtune.recipe import SAVE_EVERY, SAVE_MINUTES, Grpo, Hardware, Lora, Model, Prompt, Sft
from mathtune.tokenise import tokenise_rows

VERIFIER = "{question}\n{solution}\n{question}\n{solution}\n{question}\n{solution}\nAnswer: {answer}\nRight?\n"
SOLVER = "Question: {question}\nSolution:\n"
STEPS = 9


def write_rows(path: Path, task: str, count: int) -> str:
    table = rows(task, count, 5, "train").append_column("row_id", pa.array(range(count), pa.int64()))
    pq.write_table(table, path)
    return str(path)


def sft_job(folder: Path, model: Model, task: str, hardware: Hardware, **sft: Any) -> SftJob:
    """A job over generated rows, in a folder of its own."""
    folder.mkdir(parents=True)
    settings = Sft(**{"learning_rate": 5e-4, "examples_per_step": 64, "max_steps": STEPS, "save_every": 5, **sft})
    data = write_rows(folder / "rows.parquet", task, settings.examples_per_step * settings.max_steps)
    shared = {"task": task, "model": model, "prompt": Prompt(template=VERIFIER if task == "verifier" else SOLVER),
              "cache": str(folder / "cache")}
    tokens = TokeniseJob(**shared, rows=data, output=str(folder / "tokens.parquet"))
    tokenise_rows(tokens)
    return SftJob(**shared, lora=Lora(rank=16, alpha=32, dropout=0.05), sft=settings, hardware=hardware, tracking=None,
                  title="benchmark", tokens=tokens.output, validation_tokens=None, start_adapter=None,
                  checkpoints=Place(url=str(folder), name="checkpoints"), output=str(folder / "adapter"))


def grpo_job(folder: Path, model: Model, start: str, hardware: Hardware) -> GrpoJob:
    """GRPO on top of an adapter."""
    folder.mkdir(parents=True)
    grpo = Grpo(prompts=64, max_steps=STEPS, generations=8, prompts_per_step=8, max_new_tokens=48, learning_rate=3e-4,
                save_every=5)
    return GrpoJob(model=model, prompt=Prompt(template=SOLVER), lora=Lora(rank=16, alpha=32), grpo=grpo, hardware=hardware,
                   tracking=None, title="benchmark", cache=str(folder / "cache"),
                   rows=write_rows(folder / "rows.parquet", "solver", 64), start_adapter=start,
                   checkpoints=Place(url=str(folder), name="checkpoints"), output=str(folder / "adapter"))


class Stop(Exception):
    """Interrupts a training as a crash would, from its events."""


def train(job: SftJob | GrpoJob, base: Base, stop_at: int | None = None) -> list[dict[str, Any]]:
    """The job's events; raises ``Stop`` after a step if asked to."""
    from mathtune.grpo import refine
    from mathtune.sft import train_chunk

    events = []

    def emit(event: str, **fields: Any) -> None:
        events.append({"event": event, "at": time.monotonic(), **fields})
        if event == "step" and fields["step"] == stop_at:
            raise Stop

    (train_chunk if isinstance(job, SftJob) else refine)(job, base, emit)
    return events


def compare(make_job, folder: Path, base: Base) -> dict[str, Any]:
    """A job in one go twice, and once interrupted: are the bytes the same, how far are tensors and losses apart?"""
    losses, files = {}, {}
    for name in ("whole", "again", "interrupted"):
        job = make_job(folder / name)
        if name == "interrupted":
            try:
                train(job, base, stop_at=STEPS - 2)
            except Stop:
                pass
        events = train(job, base)
        losses[name] = {event["step"]: event["loss"] for event in events if event["event"] == "step"}
        files[name] = Path(job.output) / "adapter_model.safetensors"
    whole = load_file(files["whole"])
    result = {}
    for name in ("again", "interrupted"):
        other = load_file(files[name])
        distance = sum(float((other[key] - whole[key]).double().square().sum()) for key in whole) ** 0.5
        size = sum(float(whole[key].double().square().sum()) for key in whole) ** 0.5
        result[name] = {
            "same_bytes": digest_file(files[name]) == digest_file(files["whole"]),
            "relative_difference_of_tensors": distance / size,
            "largest_loss_difference": max(abs(loss - losses["whole"][step]) for step, loss in losses[name].items())}
    return result


def small_exactness(folder: Path, base: Base, model: Model) -> dict[str, Any]:
    """SFT with dropout, and GRPO, on the demo's base in NF4."""
    hardware = Hardware(micro_batch=32)  # GRPO alone reads it
    found = {"SFT": compare(lambda where: sft_job(where, model, "solver", hardware), folder / "sft", base)}
    start = str(folder / "sft" / "whole" / "adapter")
    found["GRPO"] = compare(lambda where: grpo_job(where, model, start, hardware), folder / "grpo", base)
    return found


def large_exactness(folder: Path, base: Base, model: Model) -> dict[str, Any]:
    """SFT with dropout on the large shape in NF4."""
    hardware = Hardware()
    return {"SFT": compare(lambda where: sft_job(where, model, "verifier", hardware, max_steps=STEPS, save_every=5),
                           folder / "sft", base)}


def trained_cost(folder: Path, base: Base, model: Model) -> dict[str, Any]:
    """Checkpoints of a real training beside its steps."""
    events = train(sft_job(folder / "cost", model, "verifier", Hardware(), max_steps=15, save_every=5), base)
    saved = [event for event in events if event["event"] == "checkpoint"]
    steps = [event for event in events if event["event"] == "step"]
    between = [b["at"] - a["at"] for a, b in zip(steps, steps[1:], strict=False) if a["step"] % 5]  # without those that save
    tokens = (steps[-1]["tokens"] - steps[0]["tokens"]) / (len(steps) - 1)
    return {**cost([event["seconds"] for event in saved], saved[0]["bytes"], statistics.median(between)),
            "tokens_a_step": round(tokens)}


def state_cost(folder: Path, shape: str) -> dict[str, Any]:
    """Writes and publishes what a checkpoint of such an adapter holds, without training it: no GPU is needed."""
    from mathtune.checkpoints import Checkpoints
    from mathtune.folders import LocalFolders
    from mathtune.order import lay_out

    width, wide, layers = (SHAPES[shape][name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads = width * SHAPES[shape]["num_key_value_heads"] // SHAPES[shape]["num_attention_heads"]
    sides = [(width, width), (width, heads), (width, heads), (width, width), (width, wide), (width, wide), (wide, width)]
    tensors = {f"{layer}.{number}.{part}": torch.randn(16, size) for layer in range(layers)
               for number, pair in enumerate(sides) for part, size in zip("AB", pair, strict=True)}
    moments = {name: {"exp_avg": tensor.clone(), "exp_avg_sq": tensor.square()} for name, tensor in tensors.items()}
    seconds = []
    order = lay_out(list(range(64_000)), 64_000, 64, 0)
    with Checkpoints(LocalFolders(folder / "state"), "checkpoints", {}, order, lambda *_, **__: None) as checkpoints:
        for step in range(1, 6):
            began = time.monotonic()
            saved = checkpoints.scratch / f"checkpoint-{step}"
            saved.mkdir()
            save_file(tensors, saved / "adapter_model.safetensors")
            torch.save({"state": moments}, saved / "optimizer.pt")
            written = checkpoints.publish(step)
            checkpoints.keep(None)
            seconds.append(time.monotonic() - began)
    return cost(seconds, written, None)


def cost(seconds: list[float], written: int, step_seconds: float | None) -> dict[str, Any]:
    """Seconds of a checkpoint as a share of the training between two at the default interval."""
    a_save = statistics.median(seconds)
    interval = 60 * SAVE_MINUTES.default
    if step_seconds is not None:
        interval = min(interval, SAVE_EVERY.default * step_seconds)
    return {"bytes": written, "seconds_a_checkpoint": round(a_save, 3), "slowest": round(max(seconds), 3),
            "seconds_a_step": step_seconds and round(step_seconds, 3), "seconds_between_checkpoints": round(interval, 1),
            "share_of_training_time": round(a_save / interval, 5)}


def show(results: dict[str, Any]) -> str:
    """The results as Markdown tables."""
    lines = ["# Resume: exactness and cost", ""]
    if results["exactness"]:
        lines += ["| training | mode | second whole run: same bytes | resumed: same bytes | tensors differ by | losses by |",
                  "|---|---|---|---|---:|---:|"]
        for row in results["exactness"]:
            again, resumed = row["again"], row["interrupted"]
            lines.append(f"| {row['kind']}, {row['base']} ({row['dtype']}) | {row['mode']} | {_yes(again['same_bytes'])} | "
                         f"{_yes(resumed['same_bytes'])} | {resumed['relative_difference_of_tensors']:.2g} | "
                         f"{resumed['largest_loss_difference']:.2g} |")
        lines.append("")
    for name, figures in results.get("cost", {}).items():
        lines += [f"| {name} | |", "|---|---:|", *(f"| {key.replace('_', ' ')} | {value:,} |" for key, value in figures.items()
                                                  if value is not None), ""]
    return "\n".join([*lines, machine_line(results["machine"])])


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), help="train an adapter on random weights of this shape, too")
    parser.add_argument("--state", choices=list(SHAPES), help="only write the state of an adapter on this shape")
    parser.add_argument("--name", default="resume", help="of the files in benchmarks/results/")
    arguments = parser.parse_args()
    machine = {**describe_machine(), **describe_gpu()}
    results: dict[str, Any] = {"machine": machine, "cost": {}, "exactness": []}
    with tempfile.TemporaryDirectory(prefix="mathtune-resume-") as name:
        if arguments.state:
            results["cost"][f"{arguments.state}, state alone"] = state_cost(Path(name), arguments.state)
        else:
            measure(Path(name), arguments.shape, results)
    text = show(results)
    print(text)
    write_results(arguments.name, results, text)


def measure(folder: Path, shape: str | None, results: dict[str, Any]) -> None:
    """Cost on the large shape, then exactness on both bases as they are, then in deterministic mode: it cannot be undone."""
    bases = {}
    if shape:
        model = Model(base=random_model(folder / "model", shape), max_length=512)
        bases[shape] = (large_exactness, load_base(model, Hardware(), folder / "models"), model)
        results["cost"][shape] = trained_cost(folder, *bases[shape][1:])
    demo = Model(base="builtin:demo", max_length=384)
    bases["demo"] = (small_exactness, load_base(demo, Hardware(), folder / "models"), demo)
    for mode in ("as it is", "deterministic") if torch.cuda.is_available() else ("as it is",):
        if mode == "deterministic":
            make_deterministic()
        for name, (look, base, model) in bases.items():
            for kind, found in look(folder / mode / name, base, model).items():
                dtype = str(base.compute.dtype).removeprefix("torch.")
                results["exactness"].append({"kind": kind, "base": name, "dtype": dtype, "mode": mode, **found})


if __name__ == "__main__":
    main()
