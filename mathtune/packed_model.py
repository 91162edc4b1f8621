"""A model that takes packs: ``packed`` replaces the forward of a PEFT model by one that takes a pack and returns a loss, which
is what ``mathtune.packed_trainer`` calls.

A Llama goes through ``mathtune.fast``. Any other causal language model goes as transformers made it, if its attention can be
replaced; its LM head, too, sees only the tokens that predict a label.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy

from mathtune import attention
from mathtune.devices import Compute
from mathtune.errors import ModelError
from mathtune.fast.llama import FastLlama
from mathtune.fast.loss import LabelLoss
from mathtune.packing import Pack, make_pack
from mathtune.planner import Plan
from mathtune.tokens import Tokens


@contextmanager
def packed(adapted: PeftModel, compute: Compute, plan: Plan) -> Iterator[PeftModel]:
    """While this lasts, ``adapted(pack=..., denominator=..., stepped=...)`` is the pack's loss: the sum of its labels'
    cross-entropies over ``denominator``, the label tokens of the whole step. ``stepped``: it is the first after a step.

    Raises:
        ModelError: the model's attention cannot be replaced, or its layers mix the examples of a pack.
    """
    if plan.fast:
        step = FastLlama(adapted, compute.dtype, plan.recompute, plan.resident)
        adapted.forward = lambda pack, denominator, stepped: step.loss(
            pack, refreshed=not stepped, training=adapted.training) / denominator
        try:
            yield adapted
        finally:
            del adapted.forward
    else:
        with _attention_replaced(adapted):
            yield adapted


@contextmanager
def _attention_replaced(adapted: PeftModel) -> Iterator[None]:
    base, forward = adapted.get_base_model(), adapted.forward
    before, head = base.config._attn_implementation, base.get_output_embeddings()
    base.set_attn_implementation(attention.NAME)
    if base.config._attn_implementation != attention.NAME:  # transformers only warns
        raise ModelError("its attention cannot be replaced", where=type(base).__name__, remedy=attention.REMEDY)
    try:
        _refuse_mixing(adapted, forward)
        if type(head) is nn.Linear and head.bias is None:  # neither adapted nor more than a product
            base.set_output_embeddings(nn.Identity())
            adapted.forward = lambda pack, denominator, stepped: LabelLoss.apply(
                _at_labels(forward, pack), head.weight, pack.labels) / denominator
        else:
            adapted.forward = lambda pack, denominator, stepped: pack_loss(forward, pack, denominator)
        yield
    finally:
        base.set_output_embeddings(head)
        vars(adapted).pop("forward", None)
        base.set_attn_implementation(before)


def pack_loss(forward: Callable, pack: Pack, denominator: int) -> torch.Tensor:
    """The sum of the losses of a pack's labels over ``denominator``.

    Args:
        forward: a causal language model's, under ``attention.NAME``.
        pack: on the model's device.
        denominator: label tokens of the whole optimizer step.

    Returns:
        Float32 scalar.
    """
    return cross_entropy(_at_labels(forward, pack).float(), pack.labels, reduction="sum") / denominator


def _at_labels(forward: Callable, pack: Pack) -> torch.Tensor:
    """What comes out of the model where labels are predicted: (labels, vocabulary), or (labels, hidden) without its head."""
    return forward(input_ids=pack.input_ids[None], position_ids=pack.positions[None], logits_to_keep=pack.label_index,
                   use_cache=False, pack=pack).logits[0]


@torch.no_grad()
def _refuse_mixing(adapted: PeftModel, forward: Callable) -> None:
    """Holds that an example's logits are the same alone and behind another one: a recurrent layer carries one's state on
    into the next. Rounding may differ: by far less than the square root of the dtype's precision."""
    adapted.eval()  # dropout would differ, too
    base = adapted.get_base_model()
    two = Tokens(np.arange(2), np.arange(2, 34, dtype=np.int32), np.array([0, 16, 32]), np.ones(2, dtype=np.int32))
    packs = (make_pack(two, examples, 0).to(base.device) for examples in ([1], [0, 1]))
    alone, behind = (_at_labels(forward, pack).float()[-15:] for pack in packs)
    if (alone - behind).norm() > torch.finfo(base.dtype).eps ** 0.5 * alone.norm():
        raise ModelError("its layers mix examples that stand one behind the other", where=type(base).__name__,
                         remedy=attention.REMEDY)
