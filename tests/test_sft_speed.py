"""The speed benchmark: lengths as the real rows have them, honest arithmetic, and one run of every system on a tiny shape."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sft_data import EXAMPLES, FIRST_FREE, LABEL, PREFIX, lengths, random_examples, steps_of, write_examples
from benchmarks.sft_report import as_markdown, figures_of, floor_tokens_per_second, ratios
from benchmarks.sft_systems import SYSTEMS, choose
from benchmarks.shapes import SHAPES, linear_parameters

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_examples_are_as_long_as_the_real_ones(seed):
    drawn = lengths(EXAMPLES, seed)
    assert drawn.mean() == pytest.approx(229, abs=3)
    assert np.percentile(drawn, 95) == pytest.approx(338, abs=8)


def test_examples_share_the_instruction_and_end_in_a_label(tmp_path):
    tokens = write_examples("tiny", tmp_path, 1024, 200, tmp_path / "tokens.parquet")
    assert tokens.shared_prefix == PREFIX
    assert tokens.label_tokens == LABEL * 200
    assert tokens.ids.min() >= FIRST_FREE and tokens.ids.max() < 1024
    assert len({tuple(tokens.of(i)[-LABEL:]) for i in range(200)}) == 2
    assert random_examples(200, 1024).input_ids == [tokens.of(i).tolist() for i in range(200)]


def test_every_system_gets_the_same_examples_of_a_step(tmp_path):
    from benchmarks.sft_mathtune import make_job
    from benchmarks.sft_systems import Task
    from benchmarks.sft_trl import in_steps
    from mathtune.sft import make_order

    tokens = write_examples("tiny", tmp_path, 1024, 200, tmp_path / "tokens.parquet")
    task = Task(system="", kind="", base="", tokens="", folder="", max_length=1024, warmup=1, timed=1, per_step=72,
                micro_batch=18, optimizer="adamw_torch", settings={"sorted": True})
    ours = make_order(make_job(task).sft, tokens.row_ids.tolist())
    theirs = in_steps(tokens, task)
    for step in (1, 2):
        assert sorted(theirs[step - 1]) == sorted(ours.ids_of(step))
        assert (np.diff(tokens.lengths[theirs[step - 1]]) <= 0).all()
    assert (steps_of(tokens, 2, 72) == ours.positions.reshape(2, 72)).all()


def test_floor_is_four_operations_a_frozen_parameter():
    parameters = linear_parameters(SHAPES["llama-8b"])
    assert parameters == 32 * (4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14336) == 6_979_321_856
    assert floor_tokens_per_second(parameters, 790e12) == pytest.approx(28_298, abs=1)
    assert floor_tokens_per_second(10, 80) == 2


def test_figures_are_of_the_timed_steps_alone():
    measured = {"status": "ok", "step_seconds": [9.0, 1.0, 2.0, 4.0], "step_tokens": [100, 100, 100, 100], "losses": [3.0],
                "tokens_seen": [100, 200, 300, 400], "peak_gib": 1.0, "memory": "process", "micro_batch": 4}
    slow, fast = (figures_of({**measured, "step_seconds": [9.0, *(factor * s for s in (1.0, 2.0, 4.0))]}, 1, 8, floor=200)
                  for factor in (1, 0.25))
    assert slow["tokens_per_second"] == {"median": 50, "lowest": 25, "highest": 100}
    assert slow["examples_per_second"]["median"] == 4
    assert slow["fraction_of_floor"] == 0.25
    assert slow["first_step_seconds"] == 9
    rows = [{"system": "seed", **slow}, {"system": "fast", **fast}, {"system": "broken", "status": "failed", "message": "x"}]
    ratios(rows, "seed")
    assert [row.get("ratio") for row in rows] == [1, 4, None]


def test_systems_are_chosen_by_name_size_and_variant():
    assert [system.name for system in choose([], [])] == list(SYSTEMS)
    fixed, variant = choose(["trl-tuned@36"], [["small", "hardware.pack_tokens=2048"]])
    assert fixed.micro_batches == fixed.on_cpu == (36,) and fixed.settings == SYSTEMS["trl-tuned"].settings
    assert variant.name == "mathtune small" and variant.settings["overrides"] == ["hardware.pack_tokens=2048"]


@pytest.mark.slow
def test_all_systems_run_on_a_tiny_shape_and_see_the_same_tokens(tmp_path):
    ran = subprocess.run(
        [sys.executable, "benchmarks/sft_speed.py", "--shape", "tiny", "--warmup", "1", "--timed", "2", "--examples", "216",
         "--systems", "seed,trl-tuned,trl-packed,unsloth,mathtune", "--out", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results = json.loads((tmp_path / "sft_speed_tiny.json").read_text())
    systems = {system["system"]: system for system in results["systems"]}
    assert systems.pop("unsloth")["status"] == "skipped"  # there is no GPU in a test
    for system in systems.values():
        assert system["status"] == "ok", system
        assert system["tokens"] == system["tokens_as_the_trainer_counts"]
        assert {"tokens_per_second", "examples_per_second", "step_seconds", "first_step_seconds", "fraction_of_floor", "ratio",
                "peak_gib", "first_loss"} <= system.keys()
    seed = systems.pop("seed")
    assert seed["ratio"] == 1 and seed["per_step"] == 8
    assert len({system["tokens"] for system in systems.values()}) == 1
    reference = systems["trl-tuned"]["first_loss"]  # before the first update, so rounding apart it is the same whoever trains
    assert all(system["first_loss"] == pytest.approx(reference, rel=1e-5) for system in systems.values())
    assert results["floor"] > 0 and "torch" in results["machine"]["versions"]
    assert as_markdown(results) == (tmp_path / "sft_speed_tiny.md").read_text()
    assert (tmp_path / "sft_speed_tiny.png").stat().st_size > 5_000
    assert "trl-packed" in ran.stdout.rpartition("tokens/s")[0]
