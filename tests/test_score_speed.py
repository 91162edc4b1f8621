"""The benchmark of scoring runs every system on a tiny shape and tells how far packs are from single rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.score_speed import as_markdown

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_all_systems_score_a_tiny_shape_and_packs_agree_with_single_rows(tmp_path):
    ran = subprocess.run(
        [sys.executable, "benchmarks/score_speed.py", "--shape", "tiny", "--rows", "24", "--out", str(tmp_path)], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results = json.loads((tmp_path / "score_speed_tiny.json").read_text())
    systems = {system["name"]: system for system in results["systems"]}
    assert set(systems) == {"seed", "generate", "prefill", "mathtune"}
    assert all(system["status"] == "ok" and system["rows"] == 24 for system in systems.values()), systems
    assert len({system["tokens"] for system in systems.values()}) == 1 and systems["seed"]["ratio"] == 1
    gaps = systems["mathtune"]["gaps"]
    assert gaps["packed_from_alone"]["largest"] < 1e-5 and gaps["packed_from_float32"]["largest"] < 1e-5
    assert as_markdown(results) == (tmp_path / "score_speed_tiny.md").read_text()
