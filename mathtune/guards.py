"""Guards against bad numbers: they look at a step's losses and gradients before the optimizer may use them."""

import math
import statistics
from typing import Any

import torch
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

    Args:
        order: names the examples of a step.
        batch: examples of one micro-batch; None where what is trained on is generated (then the whole step is named).
        max_jump: how many times the median of the last losses a loss may be; None: any.
    """

    def __init__(self, order: Order, batch: int | None, max_jump: float | None = None):
        self.order, self.batch, self.max_jump = order, batch, max_jump
        self.losses: list[torch.Tensor] = []
        self.overflows = 0

    def watch(self, trainer: Trainer) -> None:
        """Notes the loss of every micro-batch of ``trainer``."""
        training_step = trainer.training_step

        def noted(*args: Any, **kwargs: Any) -> torch.Tensor:
            loss = training_step(*args, **kwargs)
            fault_point("loss", loss)
            self.losses.append(loss.detach())
            return loss

        trainer.training_step = noted
        trainer.add_callback(self)

    def on_step_begin(self, args, state, control, **kwargs):
        self.losses.clear()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        step = state.global_step + 1
        norms = torch.stack(torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None]))
        figures = torch.cat([torch.stack(self.losses).float(), norms.float().sum()[None]]).tolist()  # one synchronisation
        *losses, gradient = figures
        bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
        if bad:
            raise self._bad_numbers(f"loss is {losses[bad[0]]}", step, bad[0])
        self.overflows = 0 if math.isfinite(gradient) else self.overflows + 1
        if self.overflows > (OVERFLOWS if args.fp16 else 0):
            raise self._bad_numbers(f"gradient is {gradient}", step, None)
        self._refuse_jump(sum(losses), step, state.log_history)

    def _bad_numbers(self, what: str, step: int, micro_batch: int | None) -> BadNumbers:
        ids = self.order.ids_of(step)
        if micro_batch is not None and self.batch is not None:
            ids = ids[micro_batch * self.batch:(micro_batch + 1) * self.batch]
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
