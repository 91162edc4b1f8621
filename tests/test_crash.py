"""A few rounds of the crash test (``make crash-test`` runs a hundred kills)."""

import pytest

from benchmarks.crash_test import SAVE_EVERY, crash_test, report


@pytest.mark.slow
def test_a_few_rounds_of_kills_end_with_the_bytes_of_undisturbed_runs(tmp_path):
    figures = report(crash_test(kills=3, seed=1, kinds=["verifier", "solver"], folder=tmp_path), seed=1)
    assert figures["differences"] == []
    assert figures["sigkills"] >= 3 and figures["rounds"] >= 2
    assert figures["most_steps_lost_a_kill"] <= SAVE_EVERY
