"""Packs through a model as transformers made it: any causal language model whose attention can be replaced.

``packed`` replaces the forward of a PEFT model by one that takes a pack and returns a loss, which is what
``mathtune.packed_trainer`` calls. The LM head sees only the tokens that predict a label.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from mathtune import attention
from mathtune.errors import ModelError
from mathtune.packing import Pack


@contextmanager
def packed(adapted: PeftModel) -> Iterator[PeftModel]:
    """While this lasts, ``adapted(pack=..., denominator=...)`` is the pack's loss (see ``pack_loss``).

    Raises:
        ModelError: the model's attention cannot be replaced.
    """
    base, forward = adapted.get_base_model(), adapted.forward
    before = base.config._attn_implementation
    base.set_attn_implementation(attention.NAME)
    if base.config._attn_implementation != attention.NAME:
        raise ModelError("its attention cannot be replaced", where=type(base).__name__, remedy="name another model.base")
    adapted.forward = lambda pack, denominator: pack_loss(forward, pack, denominator)
    try:
        yield adapted
    finally:
        adapted.forward = forward
        base.set_attn_implementation(before)


def pack_loss(forward, pack: Pack, denominator: int) -> torch.Tensor:
    """The sum of the losses of a pack's labels over ``denominator``.

    Args:
        forward: a causal language model's, under ``attention.NAME``.
        pack: on the model's device.
        denominator: label tokens of the whole optimizer step.

    Returns:
        Float32 scalar.
    """
    output = forward(input_ids=pack.input_ids[None], position_ids=pack.positions[None], logits_to_keep=pack.label_index,
                     use_cache=False, pack=pack)
    return cross_entropy(output.logits[0].float(), pack.labels, reduction="sum") / denominator
