"""Which device and compute dtype to use, and why."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from mathtune.errors import ModelError
from mathtune.planner import CONTEXT, GIB
from mathtune.recipe import Hardware, Model


@dataclass(frozen=True)
class Compute:
    """Where the products run, and in which dtype (the adapters' masters are float32 whatever it is)."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def choose_compute(model: Model, hardware: Hardware) -> Compute:
    """Device and dtype by capability, of each rank its own device. TRL and Trainer would take bfloat16 everywhere, which a
    T4 (SM 7.5) lacks.

    Raises:
        ModelError: there is no such device, or more ranks than GPUs.
    """
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("no CUDA device is visible to torch", where="hardware.device", remedy="hardware.device=auto")
    ranks, visible = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if hardware.device != "cpu" and 1 < ranks > visible:
        raise ModelError(f"{ranks} GPUs are asked for, torch sees {visible}", where="hardware.gpus",
                         remedy=f"hardware.gpus={max(1, visible)}, or more of them in CUDA_VISIBLE_DEVICES" if visible else
                         f"hardware.gpus=1, or hardware.device=cpu for {ranks} processes without a GPU")
    use_cuda = hardware.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_cuda else torch.device("cpu")
    if model.dtype != "auto":
        return Compute(device, getattr(torch, model.dtype), "the recipe says so")
    if not use_cuda:
        return Compute(device, torch.float32, "CPU: float32 products are exact and as fast on small models")
    major, minor = torch.cuda.get_device_capability(device)
    if major >= 8:
        return Compute(device, torch.bfloat16, f"SM {major}.{minor} multiplies bfloat16")
    return Compute(device, torch.float16, f"SM {major}.{minor} has no bfloat16 units: float16 with loss scaling")


def cap_memory(hardware: Hardware, compute: Compute) -> None:
    """Keeps this process to ``hardware.memory_gib`` of the card, CUDA's own share included."""
    if compute.device.type == "cuda":
        total = torch.cuda.get_device_properties(compute.device).total_memory
        wanted = hardware.memory_gib * GIB - CONTEXT if hardware.memory_gib else total
        torch.cuda.set_per_process_memory_fraction(min(1.0, wanted / total), compute.device)


NO_PEAK: dict[str, float | None] = {"peak_gib": None, "peak_rss_gib": None}  # of a body that does not run


@contextmanager
def peak_memory(compute: Compute) -> Iterator[dict[str, float | None]]:
    """Measures the most memory that is held while the body runs, the base included, and has it in the mapping afterwards:
    ``peak_gib`` of the GPU, by torch; without one ``peak_rss_gib`` of this process, by the kernel (None where it does not
    tell, as outside Linux). The kernel's mark is put back by writing 5 to clear_refs (proc_pid_clear_refs(5))."""
    peak = dict(NO_PEAK)
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    yield peak
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            peak["peak_rss_gib"] = int(found[1]) * 1024 / GIB


def make_deterministic() -> None:
    """Lets this process compute the same bytes every time on a GPU, from its first product on; an operation that cannot
    raises. See https://docs.pytorch.org/docs/stable/notes/randomness.html; cuBLAS reads its variable at its start."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
