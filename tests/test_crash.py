"""A few rounds of the crash test (``make crash-test`` runs a hundred kills)."""

import pytest
from prefect.settings import PREFECT_API_URL

from benchmarks import crash_test


@pytest.mark.slow
def test_a_few_rounds_of_kills_end_with_the_bytes_of_undisturbed_runs(tmp_path, prefect_server, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())  # one server for all starts: each one's own takes seconds
    monkeypatch.setitem(crash_test.PIPELINES, "verifier", [*crash_test.VERIFIER, "chunks.end=400"])
    tally = crash_test.crash_test(kills=3, seed=1, kinds=["verifier", "solver"], folder=tmp_path)
    figures = crash_test.report(tally, seed=1)
    assert figures["differences"] == []
    assert figures["sigkills"] >= 3 and figures["rounds"] >= 2
    assert figures["most_steps_lost_a_kill"] <= crash_test.SAVE_EVERY
