"""Guards against bad numbers: they look at a step's losses and gradients before the optimizer may use them."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object, reduce
from transformers import Trainer, TrainerCallback

from mathtune.errors import BadNumbers, TrainingError
from mathtune.faults import fault_point
from mathtune.order import Order

JUMP_WINDOW = 20  # steps whose median loss a jump is measured against
OVERFLOWS = 20  # skipped float16 steps in a row; the scale halves at each, from 65,536


class BadNumberGuard(TrainerCallback):
    """Stops before an optimizer step whose loss or gradient is not finite, or whose loss jumps.

    Trainer itself would step (exit status 0, loss logged as 0, every later checkpoint all NaN). Under loss scaling
    (float16) an overflowing gradient is how the scale is found, and Trainer skips that step: only a row of them counts.

    The losses of a step add up to its loss, over its forward passes and over the ranks, which all decide alike.

    Args:
        order: names the examples of a step.
        max_jump: how many times the median of the last losses a loss may be; None: any.
    """

    def __init__(self, order: Order, max_jump: float | None = None):
        self.order, self.max_jump = order, max_jump
        self.losses: list[torch.Tensor] = []
        self.examples: list[Sequence[int] | None] = []
        self.overflows = 0

    def note(self, loss: torch.Tensor, examples: Sequence[int] | None = None) -> None:
        """A forward pass's share of the step's loss, and the examples it was over; None: those of the whole step."""
        fault_point("loss", loss)
        self.losses.append(loss.detach())
        self.examples.append(examples)

    def watch(self, trainer: Trainer) -> None:
        """Notes what ``trainer.training_step`` returns."""
        training_step = trainer.training_step

        def noted(*args: Any, **kwargs: Any) -> torch.Tensor:
            loss = training_step(*args, **kwargs)
            self.note(loss)
            return loss

        trainer.training_step = noted

    def on_step_begin(self, args, state, control, **kwargs):
        self.losses.clear()
        self.examples.clear()

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        step = state.global_step + 1
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norms = torch.stack(torch._foreach_norm([p.grad for p in trained if p.grad is not None]))
        losses = torch.stack(self.losses).float()
        total = reduce(losses.sum(), "sum")  # over the ranks; the gradients are the same on all of them by now
        *losses, total, gradient = torch.cat([losses, total[None], norms.float().sum()[None]]).tolist()  # one synchronisation
        if not math.isfinite(total):
            raise self._bad_loss(losses, step)
        self.overflows = 0 if math.isfinite(gradient) else self.overflows + 1
        if self.overflows > (OVERFLOWS if args.fp16 else 0):
            raise self._bad_numbers(f"gradient is {gradient}", step, self.order.ids_of(step))
        self._refuse_jump(total, step, state.log_history)

    def _bad_loss(self, losses: list[float], step: int) -> BadNumbers:
        """Names the rows of the first forward pass whose loss is not finite, be it another rank's."""
        found = [(loss, self.order.ids_of(step) if examples is None else [self.order.ids[i] for i in examples])
                 for loss, examples in zip(losses, self.examples, strict=True) if not math.isfinite(loss)]
        loss, ids = gather_object(found)[0]
        return self._bad_numbers(f"loss is {loss}", step, ids)

    def _bad_numbers(self, what: str, step: int, ids: list[int]) -> BadNumbers:
        return BadNumbers(f"{what}; row_id {', '.join(map(str, ids))}", where=f"step {step}",
                          remedy="look at these rows, lower the learning rate, or model.dtype=float32; "
                          "the last checkpoint before this step is kept")

    def _refuse_jump(self, loss: float, step: int, log_history: list[dict[str, Any]]) -> None:
        before = [entry["loss"] for entry in log_history[-2 * JUMP_WINDOW:] if "loss" in entry][-JUMP_WINDOW:]
        if self.max_jump is None or len(before) < JUMP_WINDOW:
            return
        usual = statistics.median(before)
        if loss > self.max_jump * usual:
            raise TrainingError(f"loss jumped to {loss:.3f}, {loss / usual:.1f} times its median of {usual:.3f}",
                                where=f"step {step}", remedy="lower the learning rate, or raise sft.max_loss_jump")
