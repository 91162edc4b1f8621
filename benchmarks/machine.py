"""What every benchmark says about where it ran, and where its results go."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "liger-kernel", "unsloth", "triton",
             "prefect", "pyarrow", "numpy")


def cpu_name() -> str:
    """The processor's model name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def describe_machine() -> dict[str, Any]:
    """Date, processor, cores, and the versions of Python and of the libraries that are installed."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "cpu": cpu_name(), "cores": os.cpu_count(), "versions": versions}


def describe_gpu() -> dict[str, Any]:
    """The first GPU's name, memory in GiB, driver and CUDA version; nothing where there is none. Imports torch."""
    import torch

    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1), "driver": _driver(),
            "cuda": torch.version.cuda}


def _driver() -> str:
    if not shutil.which("nvidia-smi"):  # not every container has it
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.split()[0]


def machine_line(machine: dict[str, Any]) -> str:
    """The same in a line, for people."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    chip = f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}" if "gpu" in machine else machine["cpu"]
    return f"{machine['date']}, {chip}, {machine['cores']} cores, {versions}\n"


def write_results(name: str, figures: dict[str, Any], markdown: str, folder: Path = RESULTS) -> None:
    """``NAME.json`` and ``NAME.md`` in a folder, which is made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    (folder / f"{name}.md").write_text(markdown)
