"""Publishing: whole or not at all, checked when read, damaged folders set aside."""

import json
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from mathtune.errors import StoreError
from mathtune.store import ArtifactStore, create_once, publish_folder, read_manifest, write_atomically


def build(folder):
    (folder / "inner").mkdir()
    (folder / "rows.bin").write_bytes(b"rows" * 1000)
    (folder / "inner" / "more.bin").write_bytes(b"more")
    return {"rows": 4}


def test_the_same_key_is_built_once(tmp_path):
    store = ArtifactStore(tmp_path)
    made = store.get_or_build("stage", "key", build)
    found = store.get_or_build("stage", "key", lambda folder: pytest.fail("built again"))
    assert (made.cached, found.cached) == (False, True)
    assert found.facts == {"rows": 4} and set(found.files) == {"rows.bin", "inner/more.bin"}
    assert found.digest == made.digest


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fails(folder):
        (folder / "half").write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        ArtifactStore(tmp_path).get_or_build("stage", "key", fails)
    assert list((tmp_path / "stage").iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "manifest", "no manifest"])
def test_damage_is_seen_named_set_aside_and_made_good(tmp_path, damage):
    store = ArtifactStore(tmp_path)
    folder = store.get_or_build("stage", "key", build).folder
    file = folder / "rows.bin"
    data = bytearray(file.read_bytes())
    match damage:
        case "flip":
            data[1234] ^= 1
            file.write_bytes(data)
        case "truncate":
            file.write_bytes(data[:-1])
        case "empty":
            file.write_bytes(b"")
        case "remove":
            file.unlink()
        case "manifest":
            (folder / "manifest.json").write_text("{")
        case "no manifest":
            (folder / "manifest.json").unlink()
    again = store.get_or_build("stage", "key", build)
    assert not again.cached and again.path("rows.bin").read_bytes() == b"rows" * 1000
    aside = next(path for path in (tmp_path / "stage").iterdir() if path.name.startswith("damaged-"))
    assert ("manifest.json" if "manifest" in damage else "rows.bin") in (aside / "WHY.txt").read_text()
    assert len(store.damaged) == 1


def test_a_manifest_names_every_file(tmp_path):
    publish_folder(tmp_path / "x", build, {"stage": "s"})
    manifest = read_manifest(tmp_path / "x")
    assert manifest["files"]["inner/more.bin"]["bytes"] == 4
    (tmp_path / "x" / "inner" / "more.bin").write_bytes(b"MORE")
    with pytest.raises(StoreError, match=r"more\.bin: its bytes do not match"):
        read_manifest(tmp_path / "x")


def test_only_one_of_many_creates_a_head(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: create_once(tmp_path / "head-0001", f"link {i}"), range(64)))
    assert sum(won) == 1
    assert (tmp_path / "head-0001").read_text() == f"link {won.index(True)}"
    assert os.listdir(tmp_path) == ["head-0001"]


def _publish(path):
    publish_folder(path, build, {"stage": "s"})


def test_processes_that_publish_the_same_target_leave_one_whole_folder(tmp_path):
    processes = [multiprocessing.get_context("spawn").Process(target=_publish, args=(tmp_path / "x",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert read_manifest(tmp_path / "x")["facts"] == {"rows": 4}
    assert os.listdir(tmp_path) == ["x"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "state.json"
    texts = [json.dumps({"n": n, "pad": str(n) * 5000}) for n in range(40)]
    write_atomically(path, texts[0])

    def write():
        for text in texts:
            write_atomically(path, text)

    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(write)
        while not writing.done():
            assert path.read_text() in texts
        writing.result()
    assert os.listdir(tmp_path) == ["state.json"]
