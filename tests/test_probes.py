"""The forgetting matrix: the same rows of a chunk for every later link, each chunk's share counted apart."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathtune.demo.problems import rows as demo_rows
from mathtune.ranges import Range
from mathtune.stages import probes
from mathtune.store import Artifact, ArtifactStore
from tests.test_comparison import with_verdicts


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 300), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_probes_are_rows_of_their_chunk_each_once_and_always_the_same(start, length, count, seed):
    chunk = Range(start, start + length)
    drawn = probes.probe_positions(chunk, count, seed)
    assert len(set(drawn.tolist())) == len(drawn) == min(count, length)
    assert drawn.min() >= chunk.start and drawn.max() < chunk.end
    assert np.array_equal(drawn, probes.probe_positions(chunk, count, seed))


def test_a_matrix_is_made_where_there_is_something_to_forget(make_recipe):
    links = [SimpleNamespace(range=Range(0, 96)), SimpleNamespace(range=None)]
    verifier, solver = make_recipe(), make_recipe("solver")
    assert probes.is_wanted(verifier, links) and not probes.is_wanted(verifier, links[:1])
    assert not probes.is_wanted(solver, links)  # it would have to generate: only where the recipe says so
    asked = make_recipe("solver", evaluation={"probe_rows": 8, "max_new_tokens": 16})
    assert probes.is_wanted(asked, links)  # GRPO after SFT
    assert not probes.is_wanted(make_recipe(evaluation={"probe_rows": 0}), links)


@pytest.fixture
def workspace(make_recipe, tmp_path):
    """A split of 200 rows, a place for artifacts, and a recipe that probes 30 rows of a chunk."""
    pool = demo_rows("verifier", 200, 1, "train").add_column(0, "row_id", pa.array(range(1000, 1200), pa.int64()))
    validation = demo_rows("verifier", 5, 2, "test").add_column(0, "row_id", pa.array(range(5), pa.int64()))
    files = {}
    for name, table in (("pool.parquet", pool), ("validation.parquet", validation)):
        pq.write_table(table, tmp_path / name)
        files[name] = name
    return (SimpleNamespace(recipe=make_recipe(evaluation={"probe_rows": 30}), artifacts=ArtifactStore(tmp_path / "artifacts")),
            Artifact("split", "", tmp_path, files))


def test_each_chunk_is_counted_apart_and_asked_the_same_rows_after_every_link(workspace, monkeypatch, tmp_path):
    """An engine that is right on the first chunk until it learns the third, and on every second row of the second."""
    work, parts = workspace
    asked = []

    def score(work, base, link, path, digest, *, limit, words_rows):
        rows = pq.read_table(path)
        asked.append(rows["row_id"].to_pylist())
        ids = rows["row_id"].to_numpy() - 1000
        first, second = (ids < 100) & (link.number < 3), (ids >= 100) & (ids < 150) & (np.arange(len(ids)) % 2 == 0)
        folder = tmp_path / f"scores-{link.number}"
        folder.mkdir()
        pq.write_table(with_verdicts(rows, first | second), folder / "scores.parquet")
        return Artifact("score", "", folder, {})

    monkeypatch.setattr(probes, "score_rows", score)
    links = [SimpleNamespace(number=number, range=chunk) for number, chunk in
             ((1, Range(0, 100)), (3, Range(100, 150)), (4, Range(190, 200)), (5, None))]  # link 2 was skipped, 5 is GRPO
    found = probes.forgetting(work.recipe, links, [probes.probe(work, {}, parts, links[:i]).value for i in range(1, 5)])
    assert (found.rows, found.chunks, found.links) == (30, ["[0:100)", "[100:150)", "[190:200)"], [1, 3, 4, 5])
    values = [[one.value for one in row] for row in found.accuracy]
    assert values == [[1.0], [0.0, 0.5], [0.0, 0.5, 0.0], [0.0, 0.5, 0.0]]
    assert [[one.n for one in row] for row in found.accuracy] == [[30], [30, 30], [30, 30, 10], [30, 30, 10]]
    assert asked[1][:30] == asked[0] and asked[2][:60] == asked[1] and asked[3] == asked[2]
