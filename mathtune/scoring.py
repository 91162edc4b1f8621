"""Scores a model on fixed rows. Verifier: one forward pass a batch, the two label logits at the last prompt token, and
on a sample the words it would really generate. Solver: a greedy completion and the answer found in it.

Rows are batched by length (less padding) and written in their own order.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mathtune.adapters import load_adapter
from mathtune.answers import extract_answer, same_answer
from mathtune.events import Emit
from mathtune.jobs import ScoreJob
from mathtune.models import Base, borrowed
from mathtune.prompts import PromptBuilder
from mathtune.schemas import SOLUTIONS, VERDICTS

WORD_TOKENS = 5  # as the published set-ups generate for a verdict


def score(job: ScoreJob, base: Base, emit: Emit) -> dict[str, Any]:
    """Scores the job's rows and writes them to ``job.output``. Returns rows, shortened prompts and seconds."""
    rows = pq.read_table(job.rows).slice(0, job.limit).to_pylist()
    builder = PromptBuilder(job.prompt, base.tokenizer, job.model.max_length)
    began = time.monotonic()
    with scoring_model(base, job.adapter) as model:
        score_rows = _score_verifier if job.task == "verifier" else _score_solver
        table, shortened = score_rows(job, base, model, builder, rows, emit)
    pq.write_table(table, job.output, compression="zstd")
    return {"rows": len(rows), "shortened": shortened, "seconds": round(time.monotonic() - began, 3)}


@contextmanager
def scoring_model(base: Base, adapter: str | None) -> Iterator[torch.nn.Module]:
    """The base, with the adapter in a folder where one is given, under the compute dtype."""
    with borrowed(base) as model:
        adapted = load_adapter(model, Path(adapter)) if adapter else model
        half = base.compute.dtype != torch.float32
        try:
            with torch.inference_mode(), torch.autocast(base.compute.device.type, base.compute.dtype, enabled=half):
                yield adapted
        finally:
            if adapter:
                adapted.unload()


def label_logits(model, prompts: list[list[int]], tokens: tuple[int, int], pad: int, device) -> torch.Tensor:
    """Float32 logits ``[len(prompts), 2]`` of the two label tokens (true, false) after each prompt."""
    ids, mask = _left_padded(prompts, pad, device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False).logits
    return logits[:, -1, list(tokens)].float().cpu()


def _score_verifier(job: ScoreJob, base: Base, model, builder: PromptBuilder, rows: list[dict], emit: Emit):
    tokens = builder.label_tokens()
    prompts, shortened = builder.verifier_prompts(rows)
    logits = torch.empty(len(rows), 2)
    for batch in _batches(prompts, job.evaluation.batch_size, emit, "scoring"):
        logits[batch] = label_logits(model, [prompts[i] for i in batch], tokens, base.tokenizer.pad_token_id,
                                     base.compute.device)
    words: list[str | None] = [None] * len(rows)
    sample = prompts[:job.words_rows]
    for batch in _batches(sample, job.evaluation.batch_size, emit, "listening"):
        for i, (ids, _) in zip(batch, _generate(base, model, builder, [sample[i] for i in batch], WORD_TOKENS), strict=True):
            words[i] = base.tokenizer.decode(ids, skip_special_tokens=True)
    said = [None if word is None else builder.parse_words(word) for word in words]
    columns = [[row["row_id"] for row in rows], logits[:, 0].numpy(), logits[:, 1].numpy(),
               logits.softmax(-1)[:, 0].numpy(), (logits[:, 0] > logits[:, 1]).numpy(), said, words]
    return _table(columns, VERDICTS), shortened


def _score_solver(job: ScoreJob, base: Base, model, builder: PromptBuilder, rows: list[dict], emit: Emit):
    prompts, shortened = builder.prompt_ids(rows, reserve=job.evaluation.max_new_tokens)
    completions, finished = [""] * len(rows), [False] * len(rows)
    for batch in _batches(prompts, job.evaluation.batch_size, emit, "solving"):
        generated = _generate(base, model, builder, [prompts[i] for i in batch], job.evaluation.max_new_tokens)
        for i, (ids, ended) in zip(batch, generated, strict=True):
            completions[i], finished[i] = base.tokenizer.decode(ids, skip_special_tokens=True), ended
    given = [extract_answer(completion) for completion in completions]
    correct = [same_answer(row["answer"], answer) for row, answer in zip(rows, given, strict=True)]
    return _table([[row["row_id"] for row in rows], completions, given, correct, finished], SOLUTIONS), shortened


def _generate(base: Base, model, builder: PromptBuilder, prompts: list[list[int]], limit: int):
    """Greedy completions: for each prompt its new ids up to the end token, and whether it ended by itself."""
    ids, mask = _left_padded(prompts, base.tokenizer.pad_token_id, base.compute.device)
    stops = builder.stop_tokens()
    output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, temperature=None,
                            top_p=None, top_k=None, eos_token_id=stops, pad_token_id=base.tokenizer.pad_token_id)
    for new in output[:, ids.shape[1]:].tolist():
        end = next((i for i, token in enumerate(new) if token in stops), None)
        yield new[:end], end is not None


def _left_padded(prompts: list[list[int]], pad: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids in prompts)
    ids = torch.tensor([[pad] * (width - len(one)) + one for one in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=device)
    return ids, mask


def _batches(prompts: list[list[int]], size: int, emit: Emit, what: str) -> Iterator[list[int]]:
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)  # longest first: memory shows at once
    for begin in range(0, len(order), size):
        yield order[begin:begin + size]
        emit("progress", text=what, done=min(begin + size, len(order)), total=len(order))


def _table(columns: list, schema: pa.Schema) -> pa.Table:
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
