"""Scores a verifier: the logits of the two labels at the last token of each prompt, by one forward pass over packs of prompts;
and on a sample the words that it would really generate."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from mathtune.errors import BadNumbers
from mathtune.events import Emit
from mathtune.generation import batches, generate
from mathtune.jobs import ScoreJob
from mathtune.layout import CPU_TOKENS, free_bytes, shape_of
from mathtune.models import Base
from mathtune.packed_model import LabelReader
from mathtune.packing import Pack, cut, fill_up, make_pack
from mathtune.planner import ROUNDED
from mathtune.prefill_plan import Prefill, plan_prefill
from mathtune.prompts import Examples, PromptBuilder
from mathtune.ranges import Range
from mathtune.recipe import Lora
from mathtune.schemas import VERDICTS
from mathtune.score_blocks import Scored
from mathtune.tokens import Tokens

WORD_TOKENS = 5  # as the published set-ups generate for a verdict
SHOWN = 5  # rows that an error names
LABELS = 128  # of a pack on a GPU, where all packs are of one shape


@dataclass(frozen=True)
class Prompts:
    """A block's prompts, ready for the device.

    Attributes:
        row_ids: of the rows.
        ids: token ids of every prompt.
        packs: of all prompts.
        shortened: prompts that lost their middle.
    """

    row_ids: list[int]
    ids: list[list[int]]
    packs: list[Pack]
    shortened: int


class VerifierScorer:
    """Scores blocks of rows.

    Args:
        job, base, builder: what to score with.
        model: the base, or the base with an adapter, for generating words.
        reader: of the labels' logits.
        plan: how prompts are laid out.
    """

    def __init__(self, job: ScoreJob, base: Base, model, builder: PromptBuilder, reader: LabelReader, plan: Prefill):
        self.job, self.base, self.model, self.builder, self.reader, self.plan = job, base, model, builder, reader, plan

    def prepare(self, rows: list[dict]) -> Prompts:
        """Token ids and packs of a block; needs no device."""
        ids, shortened = self.builder.verifier_prompts(rows)
        tokens = prompt_tokens(ids)
        prefix = tokens.shared_prefix
        if self.base.compute.device.type == "cuda":
            packs = [pack.pin() for pack in even_packs(tokens, prefix, self.plan.pack_tokens)]
        else:
            packs = [make_pack(tokens, places, prefix) for places in cut(tokens.lengths, prefix, self.plan.pack_tokens)]
        return Prompts([row["row_id"] for row in rows], ids, packs, shortened)

    def score(self, prompts: Prompts, block: Range, emit: Emit) -> Scored:
        """Rows of ``schemas.VERDICTS`` for a block.

        Raises:
            BadNumbers: a logit is no number; names the rows.
        """
        logits = self._label_logits(prompts, emit)
        if bad := (~logits.isfinite().all(dim=1)).nonzero().flatten().tolist():
            rows = ", ".join(str(prompts.row_ids[i]) for i in bad[:SHOWN])
            raise BadNumbers(f"the labels' logits of {len(bad)} of {len(prompts.row_ids)} rows are no numbers", remedy=(
                "look at these rows; model.dtype=float32 has a wider range than float16"), where=f"row_id {rows}")
        words = self._words(prompts.ids[:max(0, self.job.words_rows - block.start)], emit)
        words += [None] * (len(prompts.ids) - len(words))
        said = [None if word is None else self.builder.parse_words(word) for word in words]
        columns = [prompts.row_ids, logits[:, 0].numpy(), logits[:, 1].numpy(), logits.softmax(-1)[:, 0].numpy(),
                   (logits[:, 0] > logits[:, 1]).numpy(), said, words]
        return Scored(pa.table(columns, schema=VERDICTS), prompts.shortened)

    def _label_logits(self, prompts: Prompts, emit: Emit) -> torch.Tensor:
        """Float32 (rows, 2), of true and false."""
        found, done = [], 0
        with self.reader.reading() as logits_of:
            for pack in prompts.packs:
                found.append(logits_of(pack.to(self.base.compute.device))[:len(pack.examples)])
                done += len(pack.examples)
                emit("progress", text="scoring", done=done, total=len(prompts.ids))
        logits = torch.empty(len(prompts.ids), 2)
        places = np.concatenate([pack.examples for pack in prompts.packs])
        logits[torch.from_numpy(places)] = torch.cat(found).cpu()
        return logits

    def _words(self, prompts: list[list[int]], emit: Emit) -> list[str | None]:
        words: list[str | None] = [None] * len(prompts)
        for batch in batches(prompts, self.job.batch_size, emit, "listening"):
            asked = [prompts[i] for i in batch]
            for i, (ids, _) in zip(batch, generate(self.base, self.model, self.builder, asked, WORD_TOKENS), strict=True):
                words[i] = self.base.tokenizer.decode(ids, skip_special_tokens=True)
        return words


def verifier_scorer(job: ScoreJob, base: Base, model, builder: PromptBuilder, sample: list[dict], emit: Emit) -> VerifierScorer:
    """A scorer of the job's rows; ``sample``: some of them, for the plan.

    Raises:
        ModelError: the label words begin with the same token.
        MachineError: not even one prompt fits.
    """
    labels = builder.label_tokens()
    plan = plan_scoring(job, base, prompt_tokens(builder.verifier_prompts(sample)[0]))
    emit("plan", text=str(plan), pack_tokens=plan.pack_tokens, resident=plan.resident)
    return VerifierScorer(job, base, model, builder, LabelReader(model, base.compute, plan, labels), plan)


def prompt_tokens(prompts: list[list[int]]) -> Tokens:
    """Prompts as examples of one label token each, which a pack does not compute: only where it would be predicted."""
    return Tokens.of_examples(Examples(list(range(len(prompts))), [[*ids, 0] for ids in prompts], [len(ids) for ids in prompts],
                                       shortened=0, dropped=0))


def even_packs(tokens: Tokens, prefix: int, size: int) -> list[Pack]:
    """Packs of one shape: a prompt's score does not depend, by rounding either, on what else is scored.

    Args:
        size: tokens of each; more only where one prompt alone has more.
    """
    packs = []
    for places in cut(tokens.lengths, prefix, size - LABELS):
        for start in range(0, len(places), LABELS):
            pack = make_pack(tokens, places[start:start + LABELS], prefix)
            needed = len(pack.input_ids) + LABELS
            packs.append(fill_up(pack, size if needed <= size else -(-needed // ROUNDED) * ROUNDED, LABELS))
    return packs


def plan_scoring(job: ScoreJob, base: Base, sample: Tokens) -> Prefill:
    """The packs of this machine; half as large for every time that memory ran out."""
    hardware, compute = job.hardware, base.compute
    shape = shape_of(base.model.config, compute, job.lora or Lora())
    own = sample.lengths.mean() - sample.shared_prefix
    limit = hardware.pack_tokens or (CPU_TOKENS if compute.device.type == "cpu" else None)
    longest = job.model.max_length + (LABELS if compute.device.type == "cuda" else 0)
    plan = plan_prefill(shape, job.lora.rank if job.lora else 0, compute.dtype.itemsize, free_bytes(compute, hardware),
                        longest, (own + sample.shared_prefix) / own, limit, hardware.resident)
    return replace(plan, pack_tokens=max(2 * LABELS, plan.pack_tokens >> job.halvings))
