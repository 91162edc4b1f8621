"""``mathtune doctor``: what a run needs of this machine, each ✗ with the command that mends it. Imports no torch itself."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.findings import Finding

FREE_GIB = 10
PROBE = """
import json, torch, bitsandbytes
layer = bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32)
device = "cuda" if torch.cuda.is_available() else "cpu"
layer = layer.to(device)
x = torch.randn(2, 64, device=device, requires_grad=True)
layer(x).sum().backward()
count = torch.cuda.device_count()
name = (f"{count} × " if count > 1 else "") + torch.cuda.get_device_name(0) if device == "cuda" else "no GPU, CPU"
memory = torch.cuda.mem_get_info(0) if device == "cuda" else None
print("RESULT" + json.dumps({"device": name, "memory": memory, "gradient": bool(x.grad.isfinite().all())}))
"""


def examine(console: Console) -> bool:
    """Prints every finding. Returns whether all are good."""
    checks: list[Callable[[], Finding]] = [check_python, check_packages, check_nf4, check_writable, check_disk, check_tokens]
    findings = [*(check() for check in checks), *check_prefect()]
    lines = Table.grid(padding=(0, 1))
    for finding in findings:
        mark = Text("✓", "green") if finding.good else Text("✗", "red")
        lines.add_row(Text(" "), mark, Text(finding.about), Text(finding.seen if finding.good else
                                                                 f"{finding.seen}\n→ {finding.remedy}"))
    console.print(lines)
    return all(finding.good for finding in findings)


def check_python() -> Finding:
    version = sys.version.split()[0]
    return Finding("Python", (3, 11) <= sys.version_info[:2] <= (3, 12), version, "install Python 3.11 or 3.12")


def check_packages() -> Finding:
    """The packages whose other versions are known to break things."""
    wanted = {"prefect": "3.8.8", "fastapi": "0.150.0", "sqlalchemy": "2.0.58"}
    found = {name: importlib.metadata.version(name) for name in wanted}
    off = [name for name in wanted if found[name] != wanted[name]]
    seen = ", ".join(f"{name} {found[name]}" for name in found)
    return Finding("packages", not off, seen, "pip install " + " ".join(f"{name}=={wanted[name]}" for name in off))


def check_nf4() -> Finding:
    """A forward and a backward pass through an NF4 layer, in a process of its own."""
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    result = next((line for line in probe.stdout.splitlines() if line.startswith("RESULT")), None)
    if result is None:
        last = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        return Finding("NF4", False, last, "pip install --force-reinstall -c constraints.txt torch bitsandbytes")
    facts = json.loads(result.removeprefix("RESULT"))
    memory = f", {facts['memory'][0] / 2**30:.0f} of {facts['memory'][1] / 2**30:.0f} GiB free" if facts["memory"] else ""
    return Finding("NF4", facts["gradient"], f"{facts['device']}{memory}; forward and backward pass run",
                   "the gradient is not finite: update the GPU driver, or model.quantization=none")


def check_writable() -> Finding:
    try:
        with tempfile.TemporaryDirectory(dir=".", prefix=".mathtune-probe-"):
            return Finding("folder", True, f"{Path.cwd()} can be written")
    except OSError as error:
        return Finding("folder", False, f"{Path.cwd()}: {error.strerror}", "change to a folder that you may write to")


def check_disk() -> Finding:
    free = shutil.disk_usage(".").free / 2**30
    return Finding("disk", free > FREE_GIB, f"{free:.0f} GiB free", f"free {FREE_GIB} GiB, or set storage.root to another disk")


def check_prefect() -> list[Finding]:
    """All that a configured server must hold; where none is configured, Prefect's in-process one will be used."""
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        return [Finding("Prefect", True, "no server configured: runs use one in process")]
    from flows.server_state import examine_server

    return examine_server()


def check_tokens() -> Finding:
    """Tokens are optional; only whether they are there is said, never what they are."""
    names = ("HF_TOKEN", "WANDB_API_KEY")
    return Finding("tokens", True, ", ".join(f"{name} {'set' if os.environ.get(name) else 'not set'}" for name in names) +
                   " (needed for gated models and online tracking only)")
