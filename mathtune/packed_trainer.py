"""Trainer over packs: one item of its dataset is one optimizer step, cut into the packs that this machine holds.

Trainer keeps the loop, optimizer, schedule, checkpoints and callbacks. What is other here: gradients accumulate inside
``training_step`` (Trainer's own accumulation is 1), the loss is normalised over the labels of the whole step, whatever the
packs and ranks, and no sampler or collator comes between ``mathtune.order`` and the model.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainingArguments

from mathtune.order import Order
from mathtune.packing import Pack, cut, make_pack
from mathtune.tokens import Tokens

NoteLoss = Callable[[torch.Tensor, tuple[int, ...]], None]


@dataclass(frozen=True)
class StepPacks:
    """One optimizer step as one rank computes it.

    Attributes:
        packs: this rank's; a rank that has none computes one for the sake of the others, which wait for its gradients.
        idle: whether that is so: then the pack counts for nothing.
        tokens: real tokens of the whole step, a shared prefix counted for each example.
        label_tokens: of the whole step.
    """

    packs: list[Pack]
    idle: bool
    tokens: int
    label_tokens: int


def cut_step(tokens: Tokens, examples: np.ndarray, budget: int, rank: int = 0, ranks: int = 1) -> StepPacks:
    """The packs of some examples, on the CPU.

    Args:
        tokens: the table.
        examples: int64, indices of the step's examples.
        budget: tokens of a pack.
        rank, ranks: the process that computes them, of how many.
    """
    lengths, prefix = tokens.lengths[examples], tokens.shared_prefix
    mine = [pack for pack in cut(lengths, prefix, budget, ranks)[rank::ranks] if pack]
    packs = [make_pack(tokens, examples[places].tolist(), prefix) for places in mine or [[0]]]
    total = int(lengths.sum())
    return StepPacks(packs, not mine, total, total - int(tokens.prompt_lengths[examples].sum()))


class PackedSteps(IterableDataset):
    """The steps of a run that are left, each made in a thread while the one before it is computed.

    Args:
        tokens: the table.
        order: the examples of every step.
        done: steps that are done.
        budget: tokens of a pack.
        rank, ranks: the process that computes them, of how many.
        pin: whether to make them in pinned memory, for a GPU.
    """

    def __init__(self, tokens: Tokens, order: Order, done: int, budget: int, rank: int = 0, ranks: int = 1, pin: bool = False):
        self.tokens, self.order, self.done, self.budget = tokens, order, done, budget
        self.rank, self.ranks, self.pin = rank, ranks, pin

    def __len__(self) -> int:
        return self.order.steps - self.done

    def __iter__(self) -> Iterator[StepPacks]:
        with ThreadPoolExecutor(1, thread_name_prefix="packs") as maker:
            ahead = maker.submit(self._make, self.done + 1)
            for step in range(self.done + 2, self.order.steps + 2):
                made = ahead.result()
                if step <= self.order.steps:
                    ahead = maker.submit(self._make, step)
                yield made

    def _make(self, step: int) -> StepPacks:
        made = cut_step(self.tokens, self.order.examples_of(step), self.budget, self.rank, self.ranks)
        if self.pin:
            made.packs[:] = [pack.pin() for pack in made.packs]
        return made


class PackedTrainer(Trainer):
    """Trains a model that takes packs: ``model(pack=..., denominator=..., stepped=...)`` is the sum of a pack's label losses
    over ``denominator``, a scalar; ``stepped``: its parameters may differ from the last pack's (``mathtune.packed_model``).

    Args:
        model: it.
        args: Trainer's; ``gradient_accumulation_steps`` is 1.
        steps: those that are left.
        validation: the validation examples as if they were one step; None where nothing is evaluated.
        note_loss: is given every pack's share of the step's loss (on the device, detached) and the pack's examples.
    """

    def __init__(self, model: torch.nn.Module, args: TrainingArguments, steps: PackedSteps, validation: StepPacks | None,
                 note_loss: NoteLoss):
        super().__init__(model, args, train_dataset=steps, eval_dataset=validation)
        # Trainer frees the card's memory before it trains; the next chunk's first step would have to ask for it again
        self.accelerator.free_memory = lambda *objects: list(objects)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.note_loss = note_loss
        self.tokens_seen = 0

    def release(self) -> None:
        """Gives back the memory of adapter, gradients and optimizer. Trainer and its callbacks know each other in circles: it
        would go when Python next looks for those, and the next chunk would be planned without it."""
        if self.optimizer:
            self.optimizer.state.clear()
        for parameter in self.trained:
            parameter.grad, parameter.data = None, parameter.data.new_empty(0)

    def get_train_dataloader(self) -> DataLoader:
        """The steps as they come. Accelerate must not shard them: every rank has its own packs of every step."""
        return DataLoader(self.train_dataset, batch_size=None, collate_fn=_as_it_is)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The next step; it knows its label tokens, so that none need be counted."""
        return list(itertools.islice(epoch_iterator, num_batches)), None

    def floating_point_ops(self, inputs: StepPacks) -> int:
        """0: Trainer's estimate wants padded batches, and nobody reads it."""
        return 0

    def training_step(self, model, inputs: StepPacks, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward of this rank's packs. Returns what Trainer logs: the step's loss, as the mean over ranks."""
        if not self.model.training:  # ``model`` may be a wrapper, which evaluation does not touch
            model.train()
        if "zero_grad" not in vars(model):
            model.zero_grad = self._zero_grad
        ranks = self.accelerator.num_processes  # whose gradients are averaged, though their losses add up
        total = torch.zeros((), device=self.args.device)
        for number, pack in enumerate(inputs.packs, 1):
            with nullcontext() if number == len(inputs.packs) else self.accelerator.no_sync(model):
                loss = self._loss(model, pack, inputs, stepped=number == 1)
                self.accelerator.backward(loss * ranks)
            self.note_loss(loss.detach(), pack.examples)
            total += loss.detach()
        self.tokens_seen += inputs.tokens
        return total * ranks

    # A model with adapters has thousands of modules: to walk through them for its few hundred trained parameters, as Trainer
    # does several times a step, would leave the GPU idle for 5% of it.

    def _zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.trained:
            parameter.grad = None

    def _clip_grad_norm(self, model) -> torch.Tensor:
        return self.accelerator.clip_grad_norm_(self.trained, self.args.max_grad_norm)

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Logs the mean loss of a validation label, over all of them."""
        self.model.eval()
        losses = [self._loss(self.model, pack, self.eval_dataset, stepped=True) for pack in self.eval_dataset.packs]
        loss = self.accelerator.reduce(torch.stack(losses).sum(), "sum")
        metrics = {f"{metric_key_prefix}_loss": loss.item()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Adds ``num_tokens``, the real tokens since this trainer began."""
        if "loss" in logs:
            logs["num_tokens"] = self.tokens_seen
        super().log(logs, start_time)

    def _loss(self, model, pack: Pack, step: StepPacks, stepped: bool) -> torch.Tensor:
        loss = model(pack=pack.to(self.args.device), denominator=step.label_tokens, stepped=stepped)
        return loss * 0 if step.idle else loss


def _as_it_is(step: StepPacks) -> StepPacks:
    return step
