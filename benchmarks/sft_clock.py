"""Seconds and memory of a training, and the rate of large products on the machine it runs on."""

import resource
import statistics
import time
from typing import Any

import torch

GIB = 2**30


class Clock:
    """Takes the time at the end of every optimizer step, with the GPU's work done.

    Args:
        steps: how many there will be, for the lines of progress.
    """

    def __init__(self, steps: int):
        self.steps = steps
        self.cuda = torch.cuda.is_available()
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.tokens: list[int] = []  # that the trainer says it has seen so far
        self.retries_before: int | None = None

    def start(self) -> None:
        """The base is loaded, the training begins."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.ends = [time.perf_counter()]

    def step(self) -> None:
        """A step is done."""
        if self.cuda:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if len(self.ends) == 2 and self.cuda:
            self.retries_before = torch.cuda.memory_stats()["num_alloc_retries"]
        print(f"    step {len(self.ends) - 1} of {self.steps}: {self.ends[-1] - self.ends[-2]:.2f} s", flush=True)

    def note(self, loss: float, tokens: float | None) -> None:
        """What the trainer says of the step: its loss, and the tokens so far."""
        self.losses.append(loss)
        if tokens is not None:
            self.tokens.append(int(tokens))

    def figures(self) -> dict[str, Any]:
        """Seconds of each step (the first with all that comes before it), losses, tokens, and the peak of memory in GiB."""
        seconds = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        return {"step_seconds": [round(one, 4) for one in seconds], "losses": self.losses, "tokens_seen": self.tokens,
                **self._memory()}

    def _memory(self) -> dict[str, Any]:
        if not self.cuda:
            return {"peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2), "memory": "process"}
        stats = torch.cuda.memory_stats()
        return {"peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2), "memory": "GPU, allocated",
                "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
                "allocator_retries": stats["num_alloc_retries"] - self.retries_before}


def product_rate() -> dict[str, Any]:
    """FLOP/s of a large square product of random numbers: bfloat16 on a GPU, float32 on a CPU; the median of many."""
    cuda = torch.cuda.is_available()
    size, dtype, repeats = (8192, torch.bfloat16, 100) if cuda else (1024, torch.float32, 20)
    device = "cuda" if cuda else "cpu"
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = [_seconds(a, b) for _ in range(4 * repeats)][-repeats:]  # the first ones before the clocks have settled
    return {"flop_per_second": 2 * size**3 / statistics.median(seconds), "size": size,
            "dtype": str(dtype).removeprefix("torch."), "threads": None if cuda else torch.get_num_threads()}


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    if not a.is_cuda:
        began = time.perf_counter()
        torch.mm(a, b)
        return time.perf_counter() - began
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    torch.mm(a, b)
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1000
