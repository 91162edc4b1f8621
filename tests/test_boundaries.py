"""The walls: which folder may import which, and what the control plane never loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["mathtune", "storage", "tasks", "flows", "deployments"]
# modules of the compute plane proper: they run in the engine and may import torch at their top
COMPUTE = {"adapters", "attention", "checkpoints", "devices", "fast", "generation", "grpo", "guards", "inspect_base", "layout",
           "models", "packed_model", "packed_trainer", "packing", "ranks", "resume", "scoring", "sft", "solver_scoring",
           "stopping", "tokenise", "training", "verifier_scoring"}
HEAVY = {"torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate"}


def files():
    return [(room, path) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(("room", "path"), files(), ids=lambda value: str(getattr(value, "stem", value)))
def test_imports_point_one_way(room, path):
    for name in imported(path):
        head = name.split(".")[0]
        assert head != "prefect" or room != "mathtune", f"{path}: prefect in the compute plane"
        if head in ROOMS:
            assert ROOMS.index(head) <= ROOMS.index(room), f"{path} imports {name}, a room further on"


@pytest.mark.parametrize(("room", "path"), files(), ids=lambda value: str(getattr(value, "stem", value)))
def test_only_the_engines_modules_import_torch(room, path):
    if room == "mathtune" and path.relative_to(ROOT / room).parts[0].removesuffix(".py") in COMPUTE:
        return
    at_top = {name.split(".")[0] for name in imported(path, top_level_only=True)}
    assert not at_top & HEAVY, f"{path} imports {at_top & HEAVY}"
    for name in imported(path, top_level_only=True):
        parts = name.split(".")
        if parts[0] == "mathtune" and len(parts) > 1:
            assert parts[1] not in COMPUTE, f"{path} imports mathtune.{parts[1]}, which imports torch"


@pytest.mark.parametrize("module", ["flows.deployed", "flows.cli", "flows.plan", "flows.doctor", "flows.server_state",
                                    "deployments.bootstrap"])
def test_the_control_plane_starts_without_torch(module):
    code = f"import {module}, sys; assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_the_compute_plane_starts_without_prefect():
    code = ("import sys; sys.modules['prefect'] = None\n"
            "import mathtune.engine, mathtune.sft, mathtune.grpo, mathtune.scoring, mathtune.inspect_base")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
