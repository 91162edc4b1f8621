"""A model that takes packs: ``packed`` replaces the forward of a PEFT model by one that takes a pack and returns a loss, which
is what ``mathtune.packed_trainer`` calls; ``LabelReader`` gives the logits of two labels, for ``mathtune.verifier_scoring``.

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
from mathtune.prefill_plan import Prefill
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
        with _loss_of_packs(adapted):
            yield adapted


LabelLogits = Callable[[Pack], torch.Tensor]


class LabelReader:
    """Reads the logits of two tokens where each example of a pack (of one label each) predicts its label.

    Only these two rows of the head are read, in float32: half-precision logits of 16 and more are an eighth apart.

    Args:
        model: the base, with an adapter or without; it can be used otherwise between two readings.
        labels: the two tokens.
    """

    def __init__(self, model: nn.Module, compute: Compute, plan: Prefill, labels: tuple[int, int]):
        self.model, self.compute = model, compute
        self.head = _base_of(model).get_output_embeddings()
        self.rows = self.head.weight[list(labels)].float()
        self.bias = 0.0 if self.head.bias is None else self.head.bias[list(labels)].float()
        self.step = FastLlama(model, compute.dtype, "none", plan.resident) if plan.fast else None
        if self.step:
            self.step.factors.refresh()

    @contextmanager
    def reading(self) -> Iterator[LabelLogits]:
        """While this lasts the model takes packs: float32 logits [examples, 2] come out."""
        if self.step:
            with torch.autocast(self.compute.device.type, enabled=False):  # its parts choose their own dtypes
                yield lambda pack: self._logits(self.step.hidden(pack))
            return
        base = _base_of(self.model)
        with _attention_of_packs(self.model):
            base.set_output_embeddings(nn.Identity())
            try:
                yield lambda pack: self._logits(_at_labels(self.model, pack))
            finally:
                base.set_output_embeddings(self.head)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.compute.device.type, enabled=False):
            return hidden.float() @ self.rows.t() + self.bias


def _base_of(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def _attention_of_packs(model: nn.Module) -> Iterator[None]:
    """While this lasts the model's attention is that over packs.

    Raises:
        ModelError: it cannot be replaced, or its layers mix the examples of a pack.
    """
    base = _base_of(model)
    before = base.config._attn_implementation
    base.set_attn_implementation(attention.NAME)
    if base.config._attn_implementation != attention.NAME:  # transformers only warns
        raise ModelError("its attention cannot be replaced", where=type(base).__name__, remedy=attention.REMEDY)
    try:
        _refuse_mixing(model)
        yield
    finally:
        base.set_attn_implementation(before)


@contextmanager
def _loss_of_packs(adapted: PeftModel) -> Iterator[None]:
    """While this lasts the model's forward takes a pack and returns its loss, by transformers' own layers."""
    base, forward = adapted.get_base_model(), adapted.forward
    head = base.get_output_embeddings()
    with _attention_of_packs(adapted):
        try:
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
def _refuse_mixing(model: nn.Module) -> None:
    """Holds that an example's logits are the same alone and behind another one: a recurrent layer carries one's state on
    into the next. Rounding may differ: by far less than the square root of the dtype's precision."""
    model.eval()  # dropout would differ, too
    base = _base_of(model)
    two = Tokens(np.arange(2), np.arange(2, 34, dtype=np.int32), np.array([0, 16, 32]), np.ones(2, dtype=np.int32))
    packs = (make_pack(two, examples, 0).to(base.device) for examples in ([1], [0, 1]))
    alone, behind = (_at_labels(model, pack).float()[-15:] for pack in packs)
    if (alone - behind).norm() > torch.finfo(base.dtype).eps ** 0.5 * alone.norm():
        raise ModelError("its layers mix examples that stand one behind the other", where=type(base).__name__,
                         remedy=attention.REMEDY)
