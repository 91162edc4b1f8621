"""Head and cross-entropy at the tokens that predict a label: no logits are kept, and none is made for other tokens."""

import torch
from torch import Tensor
from torch.autograd import Function

LOGITS = 2**27  # float32 elements at a time: half a GiB


class LabelLoss(Function):
    """Sum of the cross-entropies, float32.

    The gradient is made with the loss, since the head is frozen and its logits would have to be kept, or made twice.

    Args of ``apply``:
        hidden: [M, H], normed, where the labels are predicted.
        head: [vocabulary, H].
        labels: int64 [M].
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        loss = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        rows = max(1, LOGITS // len(head))
        for begin in range(0, len(hidden), rows):
            part, wanted = hidden[begin:begin + rows], labels[begin:begin + rows, None]
            logits = (part @ head.t()).float()
            total = logits.logsumexp(-1, keepdim=True)
            loss += (total - logits.gather(1, wanted)).sum()
            share = logits.sub_(total).exp_()
            share.scatter_add_(1, wanted, torch.full_like(total, -1.0))
            gradient[begin:begin + rows] = share.to(hidden.dtype) @ head
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx, d_loss):
        gradient, = ctx.saved_tensors
        return (gradient.float() * d_loss).to(gradient.dtype), None, None  # one over the labels is no half-precision number
