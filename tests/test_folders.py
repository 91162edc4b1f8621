"""Publishing, on a local path and in an object store: whole or not at all, checked when read, created once."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mathtune.errors import StoreError
from mathtune.files import create_once, is_abandoned, process_mark, scratch_name, write_atomically
from mathtune.folders import open_folders
from tests.folders_fixtures import build, damage_file

HEADER = {"stage": "s"}


def test_what_is_published_comes_back_whole(folders):
    folders.publish("a/x", build, HEADER)
    found = folders.fetch("a/x")
    assert found.manifest["facts"] == {"rows": 4} and found.manifest["stage"] == "s"
    assert found.manifest["files"]["inner/more.bin"]["bytes"] == 4
    assert (found.folder / "inner" / "more.bin").read_bytes() == b"more"
    assert folders.names("a") == ["a/x"] and folders.fetch("a/y") is None


def test_who_publishes_second_changes_nothing(folders):
    folders.publish("a/x", build, HEADER)
    folders.publish("a/x", lambda folder: (folder / "rows.bin").write_text("other") and {}, HEADER)
    assert (folders.fetch("a/x").folder / "rows.bin").read_bytes() == b"rows" * 1000


@pytest.mark.parametrize("damage", ["flip", "truncate", "zeroes", "remove"])
def test_a_damaged_copy_is_fetched_again_from_an_object_store_and_refused_on_a_disk(folders, damage):
    folders.publish("a/x", build, HEADER)
    damage_file(folders.fetch("a/x").folder / "rows.bin", damage)
    if folders.cache:
        assert (folders.fetch("a/x").folder / "rows.bin").read_bytes() == b"rows" * 1000
    else:
        with pytest.raises(StoreError, match=r"rows\.bin"):
            folders.fetch("a/x")


def test_what_an_object_store_has_damaged_is_refused_and_set_aside(s3_url, tmp_path):
    folders = open_folders(s3_url, tmp_path / "copies")
    folders.publish("a/x", build, HEADER)
    data = folders.fetch("a/x").manifest["data"]
    folders.fs.pipe_file(f"{folders.prefix}/a/x/{data}/rows.bin", b"rowz" * 1000)
    other = open_folders(s3_url, tmp_path / "another machine")
    with pytest.raises(StoreError, match=r"rows\.bin: its bytes do not match") as caught:
        other.fetch("a/x")
    aside = other.set_aside("a/x", str(caught.value))
    assert "rows.bin-its-bytes-do-not-match" in aside and other.read(f"{aside}/WHY.txt") == f"{caught.value}\n"
    assert other.names("a") == [] and other.fetch("a/x") is None


def test_a_manifest_that_says_something_else_is_refused(folders):
    folders.publish("a/x", build, HEADER)
    text = folders.read("a/x/manifest.json")
    folders.write("a/x/manifest.json", text.replace('"rows": 4', '"rows": 5'))
    with pytest.raises(StoreError, match="the manifest is damaged"):
        folders.fetch("a/x")


def test_a_text_is_created_by_one_only(folders):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: folders.create_once("c/head-0001", f"link {i}"), range(24)))
    assert sum(won) == 1
    assert folders.read("c/head-0001") == f"link {won.index(True)}"
    assert folders.texts("c") == ["c/head-0001"]
    folders.delete("c/head-0001")
    folders.delete("c/head-0001")
    assert folders.read("c/head-0001") is None and folders.texts("c") == []


def test_removed_is_gone_and_its_neighbours_stay(folders):
    for name in ("a/x", "a/y"):
        folders.publish(name, build, HEADER)
    folders.remove("a/x")
    folders.remove("a/x")
    assert folders.names("a") == ["a/y"] and folders.fetch("a/x") is None
    folders.remove("a")
    assert folders.names("a") == []


@pytest.mark.parametrize("at", ["s:built", "s:synced", "s:sealed", "object:uploaded", "s:published", "remove:renamed"])
def test_a_kill_in_publishing_or_removing_leaves_a_whole_folder_or_none_and_no_litter(folders, tmp_path, at):
    program = f"""
from pathlib import Path
from mathtune.folders import open_folders
from tests.folders_fixtures import build
folders = open_folders({folders.url!r}, Path({str(folders.cache)!r}))
folders.publish("a/x", build, {HEADER})
folders.remove("a/x")
"""
    fault = json.dumps({"at": at, "do": "kill"})
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ, "MATHTUNE_FAULT": fault}, timeout=60)
    if at == "object:uploaded" and not folders.cache:
        assert killed.returncode == 0
        return
    assert killed.returncode == -signal.SIGKILL
    assert folders.names("a") == (["a/x"] if at == "s:published" else [])
    if folders.names("a"):
        assert folders.fetch("a/x").manifest["facts"] == {"rows": 4}
    folders.sweep("a")
    left = [path.name for path in folders.local("a").glob(".*")] if folders.local("a").is_dir() else []
    assert left == []
    folders.publish("a/x", build, HEADER)
    assert folders.fetch("a/x").manifest["facts"] == {"rows": 4}


def test_what_a_living_process_is_at_is_not_swept(folders):
    def look_while_building(folder):
        folders.sweep("a")
        return build(folder)

    folders.publish("a/x", look_while_building, HEADER)
    assert folders.names("a") == ["a/x"]
    assert not is_abandoned(".staging-elsewhere-1-abc") and not is_abandoned(".hidden")


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes namespaces")
def test_another_container_of_this_machine_is_another_machine_though_it_has_the_same_name():
    ask = f"from mathtune.files import is_abandoned; print(is_abandoned({scratch_name('.staging')!r}))"
    container = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", ask]
    assert subprocess.check_output(container, text=True).strip() == "False"


def test_an_ended_process_whose_parent_took_no_notice_is_gone():
    child = subprocess.Popen(["sleep", "60"])
    assert process_mark(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_mark(child.pid) is None
    child.wait()


def test_an_object_store_that_is_away_is_named_with_what_to_do(s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreError, match="the object store refuses or cannot be reached") as caught:
        open_folders(s3_url, tmp_path).read("x")
    assert caught.value.where == s3_url and "AWS_ENDPOINT_URL" in caught.value.remedy


def test_a_creation_whose_answer_was_lost_is_ours_and_what_was_published_stays(s3_url, tmp_path, monkeypatch):
    """The store commits, the reply is lost, the driver tries again and is told that the object is there."""
    folders = open_folders(s3_url, tmp_path)
    pipe_file = folders.fs.pipe_file

    def lost(path, data, mode="overwrite"):
        pipe_file(path, data, mode=mode)
        if mode == "create":
            raise FileExistsError(path)

    monkeypatch.setattr(folders.fs, "pipe_file", lost)
    folders.publish("a/x", build, HEADER)
    assert folders.create_once("c/lease", "mine")
    assert open_folders(s3_url, tmp_path / "another machine").fetch("a/x").manifest["facts"] == {"rows": 4}


def test_only_one_of_many_creates_a_file(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: create_once(tmp_path / "head-0001", f"link {i}"), range(64)))
    assert sum(won) == 1
    assert (tmp_path / "head-0001").read_text() == f"link {won.index(True)}"
    assert os.listdir(tmp_path) == ["head-0001"]


def _publish(path):
    open_folders(str(path)).publish("x", build, HEADER)


def test_processes_that_publish_the_same_name_leave_one_whole_folder(tmp_path):
    processes = [multiprocessing.get_context("spawn").Process(target=_publish, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert open_folders(str(tmp_path)).fetch("x").manifest["facts"] == {"rows": 4}
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
