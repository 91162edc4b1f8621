"""A child process of benchmarks/score_speed.py: makes model, adapter and rows, or scores them by one system.

    python -m benchmarks.score_child prepare|score TASK.json RESULT.json
"""

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_gpu
from benchmarks.score_data import write_adapter, write_rows
from benchmarks.sft_clock import GIB, product_rate
from benchmarks.shapes import linear_parameters, random_model, read_config
from mathtune.demo.base import build_base
from mathtune.generation import batches, generate, left_padded
from mathtune.jobs import Place, ScoreJob
from mathtune.models import Base, load_base
from mathtune.prompts import PromptBuilder
from mathtune.ranges import Range
from mathtune.recipe import Evaluation, Hardware, Lora, Model, Prompt
from mathtune.score_blocks import Scored
from mathtune.scoring import open_scorer, score, scoring_model
from mathtune.tables import read_range

WORD_TOKENS = 5
ALONE = 128  # rows whose scores in packs are compared with those of a pack each


def prepare(task: dict[str, Any]) -> dict[str, Any]:
    """Base, adapter and rows for all systems, and what this machine multiplies in a second."""
    folder = Path(task["folder"])
    base = folder / "base"
    if not (base / "config.json").is_file():
        build_base(base) if task["shape"] == "demo" else random_model(base, task["shape"], task["layers"])
    config = read_config(base)
    write_adapter(config, folder / "adapter")
    prompt = write_rows(base, task["rows"], folder / "rows.parquet")
    return {"status": "ok", "base": str(base), "adapter": str(folder / "adapter"), "rows": str(folder / "rows.parquet"),
            "prompt": prompt.model_dump(), "gpu": describe_gpu(), "rate": product_rate(),
            "linear_parameters": linear_parameters(config)}


def job_of(task: dict[str, Any]) -> ScoreJob:
    """The scoring job of all systems."""
    folder = Path(task["folder"])
    (folder / "scores").mkdir(parents=True)
    return ScoreJob(task="verifier", model=Model(base=task["base"], max_length=1024, dtype=task["dtype"]),
                    prompt=Prompt(**task["prompt"]), evaluation=Evaluation(batch_size=task["batch"]),
                    hardware=Hardware(**task["hardware"]), cache=str(folder / "cache"), adapter=task["adapter"], lora=Lora(),
                    rows=task["rows"], limit=task["limit"], words_rows=0, blocks=Place(url=str(folder), name="blocks"),
                    output=str(folder / "scores"))


def by_generate(job: ScoreJob, base: Base, warmup: int) -> dict[str, Any]:
    """Five greedy tokens of every row, so many rows at a time, after some for warm-up."""
    builder = PromptBuilder(job.prompt, base.tokenizer, job.model.max_length)
    prompts, _ = builder.verifier_prompts(read_range(Path(job.rows), 0, job.limit).to_pylist())
    with scoring_model(base, job.adapter) as model:
        list(generate(base, model, builder, prompts[:warmup], WORD_TOKENS))
        began = time.perf_counter()
        for batch in batches(prompts, job.evaluation.batch_size, lambda *_, **__: None, ""):
            list(generate(base, model, builder, [prompts[i] for i in batch], WORD_TOKENS))
        return {"seconds": time.perf_counter() - began, "tokens": sum(map(len, prompts))}


def by_padded_prefill(job: ScoreJob, base: Base, warmup: int) -> dict[str, Any]:
    """The logits of both labels by one padded forward pass of transformers' layers a batch."""
    builder = PromptBuilder(job.prompt, base.tokenizer, job.model.max_length)
    prompts, _ = builder.verifier_prompts(read_range(Path(job.rows), 0, job.limit).to_pylist())
    labels = list(builder.label_tokens())

    def logits(asked: list[list[int]]) -> torch.Tensor:
        ids, mask = left_padded(asked, base.tokenizer.pad_token_id, base.compute.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False)
        return out.logits[:, -1, labels].float().cpu()

    with scoring_model(base, job.adapter) as model:
        logits(prompts[:warmup])
        began = time.perf_counter()
        for batch in batches(prompts, job.evaluation.batch_size, lambda *_, **__: None, ""):
            logits([prompts[i] for i in batch])
        return {"seconds": time.perf_counter() - began, "tokens": sum(map(len, prompts))}


def by_mathtune(job: ScoreJob, base: Base, warmup: int) -> dict[str, Any]:
    """The whole job as the engine runs it: adapter, dequantised weights, tokens, packs, blocks kept on the disk, the table."""
    builder = PromptBuilder(job.prompt, base.tokenizer, job.model.max_length)
    rows = read_range(Path(job.rows), 0, job.limit).to_pylist()
    prompts, _ = builder.verifier_prompts(rows)
    notes: dict[str, Any] = {}

    def listen(event: str, **fields: Any) -> None:
        if event == "plan":
            notes.update(plan=fields["text"], pack_tokens=fields["pack_tokens"])
            print(f"    {fields['text']}", flush=True)

    short = job.model_copy(update={"limit": warmup, "blocks": Place(url=job.blocks.url, name="warmup")})
    score(short, base, lambda *_, **__: None)
    began = time.perf_counter()
    score(job, base, listen)
    seconds = time.perf_counter() - began
    gaps = differences(job, base, rows[:ALONE], prompts[:ALONE])
    return {"seconds": seconds, "tokens": sum(map(len, prompts)), **notes, **gaps}


@torch.inference_mode()
def differences(job: ScoreJob, base: Base, rows: list[dict], prompts: list[list[int]]) -> dict[str, Any]:
    """How far P(True) of rows in packs is from that of a pack each; and how far it and that of transformers' layers, a row at a
    time, are from those layers in float32."""
    quiet = lambda *_, **__: None  # noqa: E731
    with scoring_model(base, job.adapter) as model, open_scorer(job, base, model, quiet) as scorer:
        packed = p_true(scorer.score(scorer.prepare(rows), Range(0, len(rows)), quiet))
        alone = torch.cat([p_true(scorer.score(scorer.prepare([row]), Range(0, 1), quiet)) for row in rows])
        labels = list(scorer.builder.label_tokens())
    plain = one_at_a_time(job, base, prompts, labels)
    in_float32 = job.model.model_copy(update={"dtype": "float32"})
    exact = one_at_a_time(job, load_base(in_float32, job.hardware, Path(job.cache)), prompts, labels)
    gaps = {"packed_from_alone": packed - alone, "packed_from_float32": packed - exact, "plain_from_float32": plain - exact,
            "packed_from_plain": packed - plain}
    return {"gaps": {name: {"largest": float(gap.abs().max()), "mean": float(gap.abs().mean())} for name, gap in gaps.items()},
            "p_spread": float(packed.std())}


def one_at_a_time(job: ScoreJob, base: Base, prompts: list[list[int]], labels: list[int]) -> torch.Tensor:
    """P(True) by transformers' layers, a forward pass a row."""
    with scoring_model(base, job.adapter) as model:
        asked = (torch.tensor([ids], device=base.compute.device) for ids in prompts)
        logits = torch.cat([model(input_ids=ids, logits_to_keep=1).logits[:, -1, labels].float() for ids in asked])
        return logits.double().softmax(-1)[:, 0].cpu()


def p_true(scored: Scored) -> torch.Tensor:
    """Float64 (rows,)."""
    logits = [torch.from_numpy(scored.table[name].to_numpy().copy()) for name in ("logit_true", "logit_false")]
    return torch.stack(logits, dim=-1).double().softmax(-1)[:, 0]


SYSTEMS = {"generate": by_generate, "prefill": by_padded_prefill, "mathtune": by_mathtune}


def score_rows(task: dict[str, Any]) -> dict[str, Any]:
    """One system's figures, or why there are none."""
    try:
        job = job_of(task)
        base = load_base(job.model, job.hardware, Path(job.cache))
        found = SYSTEMS[task["kind"]](job, base, task["warmup"])
    except torch.OutOfMemoryError as error:
        traceback.print_exc()
        return {"status": "out of memory", "message": str(error).splitlines()[0]}
    except Exception as error:  # one system's fault is its row in the table: the others go on
        traceback.print_exc()
        return {"status": "failed", "message": f"{type(error).__name__}: {str(error)[:500]}"}
    peak = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None
    return {"status": "ok", "rows": job.limit, "peak_gib": peak, **found}


def main() -> None:
    what, task, result = sys.argv[1:]
    found = {"prepare": prepare, "score": score_rows}[what](json.loads(Path(task).read_text()))
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
