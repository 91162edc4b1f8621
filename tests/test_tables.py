"""Parquet by position: ranges, chosen rows, the shuffle on disk, the same bytes for the same rows, damage."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathtune import tables
from mathtune.errors import DataError, RangeError
from mathtune.tables import ROW_GROUP, TableWriter, count_rows, iterate_batches, read_range, reordered, take_rows

ROWS = 2 * ROW_GROUP + 7
SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.large_string())])


def table(rows: int) -> pa.Table:
    return pa.table({"n": range(rows), "text": [f"row {n} " * 3 for n in range(rows)]}, schema=SCHEMA)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "rows.parquet"
    with TableWriter(path, SCHEMA) as writer:
        writer.write(table(ROWS))
    return path


def test_row_groups_have_a_fixed_size_and_the_batches_do_not_show(path, tmp_path):
    other = tmp_path / "other.parquet"
    rng, rows = np.random.default_rng(0), table(ROWS)
    edges = [0, *sorted(rng.integers(0, ROWS, 40).tolist()), ROWS]
    with TableWriter(other, SCHEMA) as writer:
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            writer.write(rows.slice(low, high - low))
    metadata = pq.read_metadata(other)
    assert [metadata.row_group(group).num_rows for group in range(3)] == [ROW_GROUP, ROW_GROUP, 7]
    assert other.read_bytes() == path.read_bytes()


def test_writing_an_empty_slice_does_not_keep_its_table_alive(tmp_path):
    before = pa.total_allocated_bytes()
    with TableWriter(tmp_path / "rows.parquet", SCHEMA) as writer:
        for _ in range(20):
            writer.write(table(1000).slice(0, 0))
        assert pa.total_allocated_bytes() - before < table(1000).nbytes * 5


@given(st.integers(0, ROWS - 1), st.integers(1, ROWS))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_range_is_the_slice_of_the_whole(path, start, length):
    end = min(ROWS, start + length)
    assert read_range(path, start, end, ["n"])["n"].to_pylist() == list(range(start, end))


def test_a_range_reads_only_its_row_groups(path, monkeypatch):
    read = []
    original = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups",
                        lambda self, groups, **kw: read.extend(groups) or original(self, groups, **kw))
    assert read_range(path, ROW_GROUP, ROW_GROUP + 1).num_rows == 1
    assert read == [1]


@pytest.mark.parametrize(("start", "end"), [(0, ROWS + 1), (5, 5), (6, 5), (-1, 3)])
def test_a_range_that_is_not_there_is_refused(path, start, end):
    with pytest.raises(RangeError, match=f"{ROWS} rows") as caught:
        read_range(path, start, end)
    assert caught.value.exit_status == 2


@given(st.lists(st.integers(0, ROWS - 1), max_size=50))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_taken_in_the_order_asked_for(path, positions):
    taken = take_rows(path, np.array(positions, np.int64))
    assert taken["n"].to_pylist() == positions
    assert taken["text"].to_pylist() == [f"row {n} " * 3 for n in positions]


@pytest.mark.parametrize("bucket_bytes", [1, tables.BUCKET_BYTES])
def test_reordered_equals_take_and_leaves_no_scratch(path, tmp_path, monkeypatch, bucket_bytes):
    monkeypatch.setattr(tables, "BUCKET_BYTES", bucket_bytes)
    order = np.random.default_rng(0).permutation(ROWS)[:-5]  # some rows are dropped
    parts = list(reordered(path, order, tmp_path))
    assert len(parts) == (3 if bucket_bytes == 1 else 1)
    assert pa.concat_tables(parts)["n"].to_pylist() == order.tolist()
    assert list(tmp_path.iterdir()) == []


def test_batches_are_in_order_and_counted(path):
    assert count_rows(path) == ROWS
    assert sum(batch.num_rows for batch in iterate_batches(path, ["n"], batch_rows=1000)) == ROWS


@pytest.mark.parametrize("damage", ["cut", "footer", "not parquet", "missing"])
def test_a_damaged_file_is_named(path, tmp_path, damage):
    data, bad = path.read_bytes(), tmp_path / "bad.parquet"
    if damage != "missing":
        bad.write_bytes({"cut": data[:len(data) // 2], "footer": data[:-20] + b"\xff" * 12 + data[-8:],
                         "not parquet": b"n,text\n1,x\n"}[damage])
    with pytest.raises(DataError) as caught:
        list(iterate_batches(bad))
    assert caught.value.where == str(bad)


def test_a_flipped_page_is_found(path, tmp_path):
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data) // 2 + 64):
        data[at] ^= 0xFF
    (tmp_path / "bad.parquet").write_bytes(data)
    with pytest.raises(DataError, match="not a readable Parquet file") as caught:
        list(iterate_batches(tmp_path / "bad.parquet"))
    assert caught.value.where == str(tmp_path / "bad.parquet")


@pytest.mark.slow
def test_the_benchmark_runs_and_loses_no_row(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "million_rows.py"
    subprocess.run([sys.executable, script, "--rows", "20000", "--results", tmp_path], check=True, timeout=300)
    report = json.loads((tmp_path / "million_rows.json").read_text())
    rows = {stage["stage"]: stage["rows"] for stage in report["stages"]}
    assert rows["download"] == 20_000 and 15_000 < rows["balance"] <= 16_000
    assert rows["balance"] - 200 - 400 <= rows["split"] <= rows["balance"] - 200
    assert (tmp_path / "million_rows.md").read_text().count("|") > 20
