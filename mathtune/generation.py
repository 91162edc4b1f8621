"""Completions by transformers' ``generate``, in batches of prompts of like length."""

from collections.abc import Iterator

import pyarrow as pa
import torch

from mathtune.events import Emit
from mathtune.models import Base
from mathtune.prompts import PromptBuilder


def generate(base: Base, model, builder: PromptBuilder, prompts: list[list[int]], limit: int):
    """Greedy completions: for each prompt its new ids up to the end token, and whether it ended by itself."""
    ids, mask = left_padded(prompts, base.tokenizer.pad_token_id, base.compute.device)
    stops = builder.stop_tokens()
    output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, temperature=None,
                            top_p=None, top_k=None, eos_token_id=stops, pad_token_id=base.tokenizer.pad_token_id)
    for new in output[:, ids.shape[1]:].tolist():
        end = next((i for i, token in enumerate(new) if token in stops), None)
        yield new[:end], end is not None


def left_padded(prompts: list[list[int]], pad: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, int64 (prompts, longest), padded on the left."""
    width = max(len(ids) for ids in prompts)
    ids = torch.tensor([[pad] * (width - len(one)) + one for one in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=device)
    return ids, mask


def batches(prompts: list[list[int]], size: int, emit: Emit, what: str) -> Iterator[list[int]]:
    """Places of prompts, so many at a time, the longest first: what memory they need shows at once."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    for begin in range(0, len(order), size):
        yield order[begin:begin + size]
        emit("progress", text=what, done=min(begin + size, len(order)), total=len(order))


def table_of(columns: list, schema: pa.Schema) -> pa.Table:
    """A table of columns in the schema's order."""
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
