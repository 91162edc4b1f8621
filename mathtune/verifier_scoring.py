"""Scores a verifier: one forward pass a batch, the two label logits at the last prompt token, and on a sample the words it
would really generate."""

import torch

from mathtune.events import Emit
from mathtune.generation import batches, generate, left_padded, table_of
from mathtune.jobs import ScoreJob
from mathtune.models import Base
from mathtune.prompts import PromptBuilder
from mathtune.schemas import VERDICTS

WORD_TOKENS = 5  # as the published set-ups generate for a verdict


def label_logits(model, prompts: list[list[int]], tokens: tuple[int, int], pad: int, device) -> torch.Tensor:
    """Float32 logits ``[len(prompts), 2]`` of the two label tokens (true, false) after each prompt."""
    ids, mask = left_padded(prompts, pad, device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False).logits
    return logits[:, -1, list(tokens)].float().cpu()


def score_verifier(job: ScoreJob, base: Base, model, builder: PromptBuilder, rows: list[dict], emit: Emit):
    """Rows of ``schemas.VERDICTS``, and how many prompts were shortened."""
    tokens = builder.label_tokens()
    prompts, shortened = builder.verifier_prompts(rows)
    logits = torch.empty(len(rows), 2)
    for batch in batches(prompts, job.evaluation.batch_size, emit, "scoring"):
        logits[batch] = label_logits(model, [prompts[i] for i in batch], tokens, base.tokenizer.pad_token_id,
                                     base.compute.device)
    words: list[str | None] = [None] * len(rows)
    sample = prompts[:job.words_rows]
    for batch in batches(sample, job.evaluation.batch_size, emit, "listening"):
        for i, (ids, _) in zip(batch, generate(base, model, builder, [sample[i] for i in batch], WORD_TOKENS), strict=True):
            words[i] = base.tokenizer.decode(ids, skip_special_tokens=True)
    said = [None if word is None else builder.parse_words(word) for word in words]
    columns = [[row["row_id"] for row in rows], logits[:, 0].numpy(), logits[:, 1].numpy(),
               logits.softmax(-1)[:, 0].numpy(), (logits[:, 0] > logits[:, 1]).numpy(), said, words]
    return table_of(columns, VERDICTS), shortened
