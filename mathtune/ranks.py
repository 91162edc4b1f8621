"""Ranks: the processes that train a chunk together, and how they agree on what only one of them can know.

Gradients go through Trainer's own process group (NCCL between GPUs, gloo between CPUs). What a clock, a signal, a disk or a
bad number decides goes through a second one (gloo) that waits however long it takes: the first rank may be publishing a
checkpoint. Failures do not pass here: the rank that has one tells the control plane, which ends them all.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # a rank that is gone is seen by its connection, one that hangs by the control plane


class ToldByFirst(Exception):
    """Every rank fails with the same error, and the first one tells."""


class Ranks:
    """The processes of one training, as one of them sees them. Alone, everything is agreed on at once.

    Args:
        rank: this one's number; the first has 0, and alone writes, publishes and reports.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self._group: dist.ProcessGroup | None = None

    @classmethod
    def launched(cls) -> "Ranks":
        """Those that the launcher of this process told it of."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Meets the others, once; ``device`` is what this rank computes on. Trainer finds the process group and takes it."""
        if self.size == 1 or self._group is not None:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank. All must ask."""
        if self.size == 1:
            return here
        flag = torch.tensor([here], dtype=torch.uint8)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        return bool(flag.item())

    def gather(self, here: T) -> list[T]:
        """What each rank has, by rank. All must ask; any value that can be pickled."""
        if self.size == 1:
            return [here]
        everywhere: list[T] = [None] * self.size
        dist.all_gather_object(everywhere, here, group=self._group)
        return everywhere

    def from_first(self, decide: Callable[[], T]) -> T:
        """What the first rank decides, on every rank; ``decide`` is called there only. All must ask."""
        if self.size == 1:
            return decide()
        decided = [decide() if self.first else None]
        dist.broadcast_object_list(decided, src=0, group=self._group)
        return decided[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier(group=self._group)

    def raise_first(self, error: Exception | None) -> None:
        """Raises the error of the lowest rank that has one, on the first rank; all must ask, and all stop.

        Raises:
            ToldByFirst: on the other ranks.
        """
        if not self.any(error is not None):
            return
        errors = [one for one in self.gather(error) if one is not None]
        raise errors[0] if self.first else ToldByFirst()


ALONE = Ranks()
