"""Hub sources, by the real client libraries against a stand-in server. The endpoint is read at import: subprocesses."""

import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub_server import COMMITS, REPO, HubServer

TRAIN, TEST = 5_000, 100
PROGRAM = """
import json, sys
from pathlib import Path
from mathtune.errors import MathtuneError
from mathtune.recipe_source import Source
from mathtune.sources import pin_source, read_source, source_identity
source = Source(**json.loads(sys.argv[1]))
try:
    result = {"identity": source_identity(source, "verifier"), "pinned": pin_source(source).revision,
              "facts": read_source(source, "verifier", Path(sys.argv[2]))}
except MathtuneError as error:
    result = {"error": error.to_dict(), "status": error.exit_status}
print(json.dumps(result | {"torch": "torch" in sys.modules}))
"""


def parquet(name: str, rows: int) -> bytes:
    table = pa.table({"question": [f"{name}: question {row // 2}" for row in range(rows)],
                      "answer": [str(row) for row in range(rows)],
                      "solution": [f"working {row} " * 5 for row in range(rows)],
                      "is_correct": [row % 3 == 0 for row in range(rows)]})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=1000)
    return sink.getvalue()


FILES = {commit: {"README.md": b"# Sums\n", "data/train-00000-of-00001.parquet": parquet(name, TRAIN),
                  "data/test-00000-of-00001.parquet": parquet(name, TEST)} for name, commit in COMMITS.items()}


@pytest.fixture
def read(tmp_path):
    def run(url: str, **source) -> dict:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        settings = {"hub": REPO, "test_split": "test"} | source
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(settings), str(out)], env=environment,
                              capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])
    return run


@pytest.mark.slow
def test_whole_and_streamed_give_the_same_rows_without_torch(read, tmp_path):
    tables = {}
    with HubServer(FILES) as hub:
        for streaming in (False, True):
            result = read(hub.url, streaming=streaming)
            assert result["facts"]["rows"] == TRAIN and result["facts"]["test_rows"] == TEST
            assert not result["torch"]
            files = {name: (tmp_path / "out" / name).read_bytes() for name in ("train.parquet", "test.parquet")}
            tables[streaming] = result["identity"], files
    assert tables[False] == tables[True]
    train = pq.read_table(tmp_path / "out" / "train.parquet")
    assert train["row_id"].to_pylist() == list(range(TRAIN))
    assert train["question"][2].as_py() == "main: question 1"


def test_streaming_stops_at_the_limit(read, tmp_path):
    with HubServer(FILES) as hub:
        assert read(hub.url, streaming=True, limit=1_500)["facts"]["rows"] == 1_500
    assert pq.read_table(tmp_path / "out" / "train.parquet")["answer"].to_pylist() == [str(i) for i in range(1_500)]


@pytest.mark.slow
def test_a_branch_or_tag_is_pinned_to_its_commit(read, tmp_path):
    with HubServer(FILES) as hub:
        tag = read(hub.url, revision="v1")
        assert tag["pinned"] == COMMITS["v1"]
        assert pq.read_table(tmp_path / "out" / "train.parquet")["question"][0].as_py() == "v1: question 0"
        hub.requests.clear()
        commit = read(hub.url, revision=COMMITS["v1"])
        assert commit["identity"] == tag["identity"]
        assert f"GET /api/datasets/{REPO}" not in hub.requests  # nothing was left to resolve


@pytest.mark.parametrize(("source", "said"), [
    ({"revision": "nope"}, "no such data set or revision"),
    ({"hub": "someone/else"}, "no such data set"),
    ({"test_split": "tset"}, "['train', 'test']"),
    ({"config": "hard"}, "['default']"),
])
def test_what_the_hub_does_not_have_is_the_users_mistake(read, source, said):
    with HubServer(FILES) as hub:
        result = read(hub.url, **source)
    assert result["error"]["type"] == "DataError" and result["status"] == 2
    assert said in result["error"]["what"]
    assert "source." in result["error"]["remedy"]


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_that_stops_half_way_is_the_machines_fault(read, streaming):
    with HubServer(FILES, cut_after=20_000) as hub:
        result = read(hub.url, streaming=streaming)
    assert result["error"]["type"] == "MachineError" and result["status"] == 1
    assert REPO in result["error"]["where"]
    assert "run the same command again" in result["error"]["remedy"]


def test_a_hub_that_is_away_is_the_machines_fault(read):
    with HubServer(FILES) as hub:
        url = hub.url
    assert read(url)["error"]["type"] == "MachineError"
