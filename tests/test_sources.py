"""Local files and the generator as sources: formats, splits, hold-out, identity, and damage that is named."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathtune import local_files
from mathtune.digests import digest_value
from mathtune.errors import DataError
from mathtune.recipe_source import Source
from mathtune.sources import read_source, source_identity

GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason="../shared/data/gsm8k is not here")


def frame(rows: int, tag: str = "") -> pd.DataFrame:
    return pd.DataFrame({"question": [f"{tag}Q{row // 2}, \"so\"\nhow many?" for row in range(rows)],
                         "answer": [str(row) for row in range(rows)], "solution": ["a,\r\nb"] * rows,
                         "is_correct": [row % 3 == 0 for row in range(rows)]})


def write(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_json(path, orient="records", lines=True)
    return path


def read(folder: Path, task: str = "verifier", **source):
    out = folder / "out"
    out.mkdir(exist_ok=True)
    facts = read_source(Source(**source), task, out)
    assert sorted(path.name for path in out.iterdir()) == ["test.parquet", "train.parquet"]
    return facts, pq.read_table(out / "train.parquet"), pq.read_table(out / "test.parquet")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    path, tests = write(frame(50), tmp_path / f"a{suffix}"), write(frame(6, "T"), tmp_path / f"b{suffix}")
    facts, train, test = read(tmp_path, path=str(path), test_path=str(tests))
    expected = frame(50)
    assert train.select(list(expected.columns)).to_pylist() == expected.to_dict("records")
    assert train["row_id"].to_pylist() == list(range(50)) and test["ID"].to_pylist() == list(range(6))
    assert facts["classes"] == {"true": 17, "false": 33} and facts["test_rows"] == 6
    assert facts["columns"]["question"] == "question"


def test_a_folder_is_read_by_split(tmp_path):
    for name, rows in (("train-00000-of-00002", 4), ("train-00001-of-00002", 3), ("test", 2), ("validation", 9)):
        write(frame(rows, name), tmp_path / f"{name}.parquet")
    (tmp_path / "README.md").write_text("not data")
    facts, train, _ = read(tmp_path, path=str(tmp_path), test_split="test")
    assert facts["rows"] == 7 and facts["test_rows"] == 2
    assert train["row_id"].to_pylist() == list(range(7))
    facts, _, _ = read(tmp_path, path=str(tmp_path), test_split="test", train_split="rest")  # no such file: all others
    assert facts["rows"] == 16


def test_a_split_without_a_file_lists_those_there_are(tmp_path):
    write(frame(4), tmp_path / "train.csv")
    with pytest.raises(DataError, match="after the split tset") as caught:
        read(tmp_path, path=str(tmp_path), test_split="tset")
    assert "train" in caught.value.remedy


@pytest.mark.parametrize("tests", ["held out", "a file"])
def test_generators_are_written_beside_the_rows_and_change_none_of_them(tmp_path, tests):
    table = frame(50).assign(writer=[["small", None, "large"][row % 3] for row in range(50)])
    rows = {"path": str(write(table, tmp_path / "a.parquet"))}
    rows |= {"holdout": 10} if tests == "held out" else {"test_path": str(write(frame(6), tmp_path / "b.parquet"))}
    read(tmp_path, **rows)
    plain = {name: (tmp_path / "out" / name).read_bytes() for name in ("train.parquet", "test.parquet")}
    (tmp_path / "with").mkdir()
    facts = read_source(Source(**rows, columns={"generator": "writer"}), "verifier", tmp_path / "with")
    assert plain == {name: (tmp_path / "with" / name).read_bytes() for name in plain}
    origins = pq.read_table(tmp_path / "with" / "origins.parquet")
    assert origins["row_id"].to_pylist() == list(range(50)) and facts["columns"]["generator"] == "writer"
    assert origins["generator"].to_pylist() == [["small", "", "large"][row % 3] for row in range(50)]


def test_only_a_mapped_generator_changes_the_identity(tmp_path):
    path = str(write(frame(20), tmp_path / "a.csv"))
    plain, mapped = (source_identity(Source(path=path, holdout=4, columns=columns), "verifier")
                     for columns in ({}, {"generator": "answer"}))
    assert "generator" not in plain["source"]["columns"] and plain != mapped


def test_a_generator_column_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match="there is no column writer") as caught:
        read(tmp_path, path=str(write(frame(20), tmp_path / "a.csv")), holdout=4, columns={"generator": "writer"})
    assert "source.columns.generator" in caught.value.remedy


def test_limit_counts_training_rows_only(tmp_path):
    path, tests = write(frame(50), tmp_path / "a.parquet"), write(frame(50), tmp_path / "b.parquet")
    facts, train, _ = read(tmp_path, path=str(path), test_path=str(tests), limit=20)
    assert (facts["rows"], facts["test_rows"]) == (20, 50) and train["row_id"].to_pylist() == list(range(20))


@pytest.mark.parametrize("task", ["verifier", "solver"])
def test_hold_out_is_exact_and_by_question(tmp_path, task):
    path = write(frame(400), tmp_path / "a.parquet")
    facts, train, test = read(tmp_path, task, path=str(path), holdout=51)
    assert facts["test_rows"] == test.num_rows == 51
    assert facts["rows"] + facts["set_aside"] + 51 == 400 and facts["set_aside"] >= 1
    assert not set(train["question"].to_pylist()) & set(test["question"].to_pylist())
    assert test["ID"].to_pylist() == list(range(51))
    assert sorted(test["row_id"].to_pylist()) == test["row_id"].to_pylist() != list(range(51))
    if task == "verifier":
        assert facts["test_classes"] == {"true": 17, "false": 34, "unknown": 0}
        assert sum(facts["classes"].values()) == facts["rows"]
    else:
        assert test["is_correct"].null_count == 51 and "is_correct" not in train.column_names


def test_hold_out_keeps_the_ids_of_its_rows(tmp_path):
    path = write(frame(40).assign(key=range(100, 140)), tmp_path / "a.parquet")
    _, _, test = read(tmp_path, path=str(path), holdout=6, columns={"id": "key"})
    assert test["ID"].to_pylist() == [row + 100 for row in test["row_id"].to_pylist()]


def test_a_hold_out_of_everything_is_refused(tmp_path):
    with pytest.raises(DataError, match="holdout") as caught:
        read(tmp_path, path=str(write(frame(10), tmp_path / "a.csv")), holdout=10)
    assert "source.holdout" in caught.value.remedy


def test_ids_are_unique(tmp_path):
    write(frame(4).assign(key=[5, 6, 5, 7]), tmp_path / "test.parquet")
    write(frame(4), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="the ID 5 stands on 2 test rows") as caught:
        read(tmp_path, path=str(tmp_path), test_split="test", columns={"id": "key"})
    assert "key" in caught.value.where


def test_reading_is_the_same_bytes_again(tmp_path):
    path = write(frame(300), tmp_path / "a.csv")
    seen = []
    for _ in range(2):
        read(tmp_path, path=str(path), holdout=20)
        seen.append([(tmp_path / "out" / name).read_bytes() for name in ("train.parquet", "test.parquet")])
    assert seen[0] == seen[1]


# --- damage, each named --------------------------------------------------------------------------------------------

def refused(tmp_path, name: str, content: bytes) -> DataError:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_source(Source(path=str(tmp_path / name), holdout=1), "verifier", tmp_path)
    assert str(tmp_path / name) in caught.value.where
    return caught.value


HEAD = b"question,answer,solution,is_correct\n"
GOOD = b'"a, b",1,"x ""y"" z",True\nq2,2,s2,False\n'


@pytest.mark.parametrize(("content", "line"), [
    (HEAD + GOOD + b'"open,3,s,True\nq4,4,s,False\n', 4),  # swallows the rest of the file
    (HEAD + b'q1,1,s,True\nq2,2,s,"False\n', 3),  # pyarrow alone reads this as a row with the label "False\n"
    (HEAD + b'"open,1\n"q2,2,s,True\n', 2),  # and this as one row
    (HEAD + GOOD + b'q3,3,5" pipe,True\n', 4),
    (HEAD + GOOD + b"q3,3,True\n", 4),  # a field too few
    (HEAD + GOOD + b"q3,3,a,b,True\n", 4),  # a comma that is not quoted
])
@pytest.mark.parametrize("block", [7, 2**23])
def test_a_csv_file_with_bad_quotes_is_refused_with_the_line(tmp_path, monkeypatch, content, line, block):
    if block == 7:  # the scan over quotes must not depend on where its blocks end
        original = local_files.check_quotes
        monkeypatch.setattr(local_files, "check_quotes", lambda path: _with_block(monkeypatch, original, path))
    assert refused(tmp_path, "rows.csv", content).where.endswith(f"rows.csv, line {line}")


def _with_block(monkeypatch, check, path):
    with monkeypatch.context() as patched:
        patched.setattr(local_files, "_BLOCK", 7)
        check(path)


@given(st.lists(st.lists(st.text(alphabet='a",\n\r é', max_size=6), min_size=2, max_size=2), max_size=8),
       st.integers(1, 9), st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_csv_writer_writes_passes_the_quote_check(tmp_path, monkeypatch, rows, block, all_quoted):
    monkeypatch.setattr(local_files, "_BLOCK", block)
    path = tmp_path / "rows.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL).writerows([["q", "a"], *rows])
    local_files.check_quotes(path)
    if path.read_bytes().count(b'"'):  # without its last quote it does not
        data = path.read_bytes()
        at = data.rindex(b'"')
        path.write_bytes(data[:at] + data[at + 1:])
        with pytest.raises(DataError):
            local_files.check_quotes(path)


@pytest.mark.parametrize(("name", "content", "said"), [
    ("rows.parquet", b"", "empty"), ("rows.csv", b"", "empty"), ("rows.jsonl", b"", "empty"),
    ("rows.csv", HEAD, "no rows"), ("rows.jsonl", b"\n\n", "no rows"), ("rows.parquet", b"PAR1 nonsense", "Parquet"),
    ("rows.csv", HEAD + b"\xff\xfe,1,s,True\n", "CSV"),
])
def test_empty_and_foreign_files_are_refused(tmp_path, name, content, said):
    assert said in refused(tmp_path, name, content).what


@pytest.mark.parametrize(("line", "said"), [
    (b'{"question": "q', "not JSON"), (b"[1, 2]", "a list, not an object"),
    (b'{"question": "\xff"}', "not JSON"),
])
def test_a_bad_json_line_is_refused_with_its_number(tmp_path, line, said):
    good = json.dumps({"question": "q", "answer": 1, "solution": "s", "is_correct": True}).encode()
    error = refused(tmp_path, "rows.jsonl", b"\n".join([good, b"", line, good]))
    assert said in error.what and error.where.endswith("rows.jsonl, line 3")


def test_json_values_of_mixed_kinds_become_text_where_they_can(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"q{at}", "answer": answer, "solution": "s", "is_correct": True})
                              for at, answer in enumerate([3, "x", None, 2**70, 0.5])))
    _, train, _ = read(tmp_path, path=str(path), test_path=str(write(frame(2), tmp_path / "test.csv")))
    assert train["answer"].to_pylist() == ["3", "x", "", str(2**70), "0.5"]
    for value in ({"a": 1}, [1]):
        line = json.dumps({"question": value, "answer": 1, "solution": "s", "is_correct": True}).encode()
        assert "question" in refused(tmp_path, "rows.jsonl", line).what
        assert "beside" in refused(tmp_path, "rows.jsonl", line + b'\n{"question": "text"}').what


def test_a_parquet_cut_in_half_or_flipped_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    table = frame(5_000).assign(solution=[rng.bytes(40).hex() for _ in range(5_000)])
    data = write(table, tmp_path / "whole.parquet").read_bytes()
    assert "Parquet" in refused(tmp_path, "cut.parquet", data[:len(data) // 2]).what
    flipped = bytearray(data)
    flipped[len(data) // 2:len(data) // 2 + 200] = b"\xff" * 200
    assert "Parquet" in refused(tmp_path, "flipped.parquet", bytes(flipped)).what


def test_files_that_do_not_exist_or_are_of_no_known_kind(tmp_path):
    (tmp_path / "rows.xlsx").write_bytes(b"x")
    (tmp_path / "none").mkdir()
    for path, said in (("gone.csv", "does not exist"), ("rows.xlsx", "known kind"), ("none", "no Parquet")):
        for call in (lambda source: source_identity(source, "verifier"),
                     lambda source: read_source(source, "verifier", tmp_path)):
            with pytest.raises(DataError, match=said):
                call(Source(path=str(tmp_path / path), holdout=1))


def test_the_row_of_a_bad_value_counts_within_its_file(tmp_path):
    write(frame(5), tmp_path / "a.parquet")
    write(frame(5).assign(question=["q", "q", "", "q", "q"]), tmp_path / "b.parquet")
    with pytest.raises(DataError) as caught:
        read(tmp_path, path=str(tmp_path), holdout=1)
    assert caught.value.where == f"{tmp_path / 'b.parquet'}, row 2"


# --- identity ------------------------------------------------------------------------------------------------------

def test_the_identity_follows_content_and_mapping_not_the_place(tmp_path):
    (tmp_path / "x").mkdir()
    here, there = write(frame(5), tmp_path / "a.csv"), write(frame(5), tmp_path / "x" / "a.csv")

    def key(path, task="verifier", **more):
        return digest_value(source_identity(Source(path=str(path), **{"holdout": 1} | more), task))

    assert key(here) == key(there)
    others = [key(here, task="solver"), key(here, holdout=2), key(here, limit=3), key(here, label_values={"x": True}),
              key(here, columns={"solution": None}), key(write(frame(6), there))]
    assert len({key(here), *others}) == 7


def test_a_hub_commit_needs_no_network():
    source = Source(hub="someone/sums", revision="a" * 40, holdout=1)
    assert source_identity(source, "verifier")["source"]["revision"] == "a" * 40
    streamed = source.model_copy(update={"streaming": True})
    assert source_identity(source, "solver") == source_identity(streamed, "solver")


# --- the generator and real data -----------------------------------------------------------------------------------

@pytest.mark.parametrize("task", ["verifier", "solver"])
def test_the_generator_is_a_source(tmp_path, task):
    source = {"generator": {"rows": 60, "test_rows": 9, "seed": 3}}
    facts, train, test = read(tmp_path, task, **source)
    assert (facts["rows"], facts["test_rows"], train.num_rows, test.num_rows) == (60, 9, 60, 9)
    assert test["ID"].to_pylist() == list(range(9))
    identity = source_identity(Source(**source), task)
    assert identity["content"]["generator"]["seed"] == 3 and len(identity["content"]["version"]) == 64


@needs_gsm8k
def test_real_model_solutions_are_read_whole(tmp_path):
    facts, train, test = read(tmp_path, path=str(GSM8K / "model_solutions.parquet"), holdout=400)
    assert facts["rows"] + facts["set_aside"] + 400 == 3_676
    source = pq.read_table(GSM8K / "model_solutions.parquet").take(train["row_id"])
    for name in ("question", "answer", "solution", "is_correct"):
        assert train[name].to_pylist() == source[name].to_pylist()
    assert facts["empty_answers"] + pa.compute.sum(pa.compute.equal(test["answer"], "")).as_py() <= 11


@needs_gsm8k
def test_gsm8k_as_published_is_a_solvers_source(tmp_path):
    facts, train, _ = read(tmp_path, "solver", path=str(GSM8K), train_split="train", test_split="test",
                           columns={"solution": "answer", "answer": None})
    assert (facts["rows"], facts["test_rows"]) == (7_473, 1_319)
    assert train["answer"][0].as_py() == "72" and train["solution"][0].as_py().endswith("#### 72")


def test_reading_local_files_imports_neither_torch_nor_datasets(tmp_path):
    path = write(frame(20), tmp_path / "a.csv")
    program = ("import sys; from pathlib import Path; from mathtune.recipe_source import Source; "
               "from mathtune.sources import read_source; "
               f"read_source(Source(path={str(path)!r}, holdout=2), 'verifier', Path({str(tmp_path)!r})); "
               "assert not {'torch', 'datasets', 'huggingface_hub'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
