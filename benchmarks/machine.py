"""What every benchmark says about where it ran, and where its results go."""

import importlib.metadata
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "prefect", "pyarrow", "numpy")


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


def machine_line(machine: dict[str, Any]) -> str:
    """The same in a line, for people."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['date']}, {machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, {versions}\n"


def write_results(name: str, figures: dict[str, Any], markdown: str) -> None:
    """``results/NAME.json`` and ``results/NAME.md``."""
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(markdown)
