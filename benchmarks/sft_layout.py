"""What the planner chooses on cards of several sizes, and what it really takes; and how long a GPU idles between two chunks.

    python benchmarks/sft_layout.py --shape llama-8b --cards 16,40,80,141

Each card up to this machine's is imitated by a cap on its memory (hardware.memory_gib) and trains two steps; of larger ones
the plan alone is shown. Then two chunks, one on top of the other, in one engine: the gap is the time from the last step of
the first to the first step of the second, less what a step takes. Writes sft_layout.{json,md}.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig

import mathtune.attention
import mathtune.fast.attention
import mathtune.layout
from benchmarks.machine import RESULTS, describe_gpu, describe_machine, machine_line, write_results
from benchmarks.sft_mathtune import job_of
from benchmarks.sft_speed import MAX_LENGTH, prepare
from benchmarks.sft_systems import EXAMPLES_PER_STEP
from mathtune.devices import Compute
from mathtune.engine import Engine
from mathtune.errors import MathtuneError
from mathtune.jobs import SftJob
from mathtune.layout import Layout, StepSizes, shape_of
from mathtune.planner import CONTEXT, GIB, base_bytes
from mathtune.recipe import Hardware
from mathtune.sft import make_order
from mathtune.tokens import read_tokens

# GiB that nvidia-smi shows of a card sold with so many GB
USABLE = {16: 14.6, 24: 23.5, 40: 39.4, 48: 47.4, 80: 79.1, 141: 139.8}
T4 = 16  # a card of this size is one: float16, and no flash kernel, so that attention takes padded buckets


def planned(job: SftJob, card: float) -> dict[str, Any]:
    """The plan of a card that is not here, from the model's configuration alone."""
    compute = Compute(torch.device("cuda"), torch.float16 if card == USABLE[T4] else torch.bfloat16, "")
    shape, tokens = shape_of(AutoConfig.from_pretrained(job.model.base), compute, job.lora), read_tokens(Path(job.tokens))
    layout = Layout(shape, job.lora, Hardware(), compute, StepSizes.of(tokens, make_order(job.sft, tokens.row_ids.tolist())))
    weights = base_bytes(shape, 2, nf4=True)
    plan = layout.plan(int(card * GIB) - CONTEXT - weights)
    return {"pack_tokens": plan.pack_tokens, "packs": plan.packs, "recompute": plan.recompute, "resident": plan.resident,
            "expected_gib": (plan.bytes + weights + CONTEXT) / GIB}


@contextmanager
def without_flash() -> Iterator[None]:
    """Attention as on a GPU before SM 8.0."""
    with ExitStack() as stack:
        for module in (mathtune.attention, mathtune.fast.attention, mathtune.layout):
            stack.enter_context(patch.object(module, "attention_path", lambda *_: "bucketed"))
        yield


def trained(engine: Engine, events: list[dict[str, Any]], job: SftJob) -> dict[str, Any]:
    """Peak memory and speed of a job under its cap, or why there are none."""
    events.clear()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        engine.run(job)
    except (torch.OutOfMemoryError, MathtuneError) as error:
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    steps = [event for event in events if event["event"] == "step"]
    seconds = statistics.median(b["at"] - a["at"] for a, b in zip(steps, steps[1:], strict=False))
    return {"reserved_gib": (torch.cuda.max_memory_reserved() + CONTEXT) / GIB,
            "allocated_gib": torch.cuda.max_memory_allocated() / GIB,
            "tokens_per_second": (steps[-1]["tokens"] - steps[0]["tokens"]) / (len(steps) - 1) / seconds}


def gap(engine: Engine, events: list[dict[str, Any]], prepared: dict[str, Any], shape: str, folder: Path) -> dict[str, float]:
    """Seconds between two chunks in which the GPU does nothing."""
    first = job_of(prepared, shape, folder / "first", EXAMPLES_PER_STEP, 5, [])
    second = job_of(prepared, shape, folder / "second", EXAMPLES_PER_STEP, 5, [])
    second = second.model_copy(update={"start_adapter": first.output})
    events.clear()
    engine.run(first)
    ended, before = time.monotonic(), len(events)
    engine.run(second)
    last = [event["at"] for event in events[:before] if event["event"] == "step"][-1]
    steps = [event["at"] for event in events[before:] if event["event"] == "step"]
    step = statistics.median(b - a for a, b in zip(steps, steps[1:], strict=False))
    return {"ending": ended - last, "beginning": steps[0] - ended - step, "gap": steps[0] - last - step, "step": step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(MAX_LENGTH), default="llama-8b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has, for a try")
    parser.add_argument("--cards", default="16,40,80,141", help="GB of the cards, with commas between")
    parser.add_argument("--prepared", type=Path, help="folder of base and examples, made where absent, kept for the next call")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    events: list[dict[str, Any]] = []
    engine = Engine(lambda event, **fields: events.append({"event": event, "at": time.monotonic(), **fields}))
    here, rows = torch.cuda.get_device_properties(0).total_memory / GIB, []
    with tempfile.TemporaryDirectory(prefix="mathtune-layout-") as name:
        folder = Path(name)
        prepared = prepare(arguments.prepared or folder / "prepared", arguments.shape, arguments.layers)
        between = gap(engine, events, prepared, arguments.shape, folder / "gap")
        for card in map(int, arguments.cards.split(",")):
            as_a_t4 = ["model.dtype=float16"] if card == T4 else []
            job = job_of(prepared, arguments.shape, folder / str(card), EXAMPLES_PER_STEP, 4,
                         [f"hardware.memory_gib={USABLE[card]}", *as_a_t4])
            with without_flash() if card == T4 else nullcontext():
                rows.append({"card": card, "usable_gib": USABLE[card], **planned(job, USABLE[card])})
                if USABLE[card] < here + 1:
                    rows[-1].update(trained(engine, events, job))
            print(rows[-1], flush=True)
    results = {"shape": arguments.shape, "cards": rows, "gap": between, "machine": {**describe_machine(), **describe_gpu()}}
    text = as_markdown(results)
    write_results("sft_layout", results, text, arguments.out)
    print(text, flush=True)


HEAD = ("card", "usable GiB", "tokens of a pack", "packs a step", "computed again", "weights kept", "expected GiB", "peak GiB",
        "tokens/s")


def as_markdown(results: dict[str, Any]) -> str:
    lines = [f"# How a step is laid on a card: {results['shape']}, {EXAMPLES_PER_STEP} examples a step", "",
             "Peak: what torch held, with CUDA's own share. tokens/s: of this machine's GPU under that cap, not of that card.",
             f"The {T4} GB card is taken for a T4: float16, attention in padded buckets.", "",
             f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for row in results["cards"]:
        found = [f"{row['reserved_gib']:.1f}", f"{row['tokens_per_second']:,.0f}"] if "reserved_gib" in row else [
            row.get("failed", "larger than this card"), ""]
        cells = [f"{row['card']} GB", row["usable_gib"], f"{row['pack_tokens']:,}", row["packs"], row["recompute"],
                 "yes" if row["resident"] else "no", f"{row['expected_gib']:.1f}", *found]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    between = results["gap"]
    lines += ["", f"Between two chunks of one run the GPU idles for {between['gap']:.2f} s: {between['ending']:.2f} s after "
              f"the last step (checkpoint, adapter), {between['beginning']:.2f} s before the first (tokens, adapter, trainer, "
              "weights).", ""]
    return "\n".join([*lines, machine_line(results["machine"])])


if __name__ == "__main__":
    main()
