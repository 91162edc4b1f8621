"""Power loss at any system call: a traced program is replayed on a modelled disk, which keeps only what was synced."""

import ast
import itertools
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from mathtune.files import read_manifest
from tests.disk_fixtures import PUBLISH, PUBLISH_Y, PUBLISH_Z, needs_strace, run_program
from tests.test_chain import PINS, make_link

PUBLISH_CHECKPOINTS = """
    from mathtune.checkpoints import Checkpoints
    with Checkpoints(folders, 'a', {}, SimpleNamespace(place=lambda step: {}), print) as checkpoints:
        for step in (1, 2, 3):
            (checkpoints.scratch / f'checkpoint-{step}').mkdir()
            build(checkpoints.scratch / f'checkpoint-{step}')
            checkpoints.publish(step)
            checkpoints.keep(None)"""
MODELLED = "open,creat,openat,write,pwrite64,writev,ftruncate,truncate,fallocate,copy_file_range,sendfile,fsync,fdatasync," \
           "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat"


@dataclass(eq=False)
class Node:
    """A file (bytes) or folder (entries) of a modelled disk: as programs see it, and as it was when it was last synced."""

    seen: bytes | dict
    synced: bytes | dict

    def at(self, path: str, view: str) -> "Node | None":
        node = self
        for part in path.split("/") if path else ():
            node = node and getattr(node, view).get(part)
        return node

    def write_to(self, path: Path, entries: str) -> None:
        """Writes out what a power loss leaves: of files what was synced, of folders the synced entries or the last ones."""
        if isinstance(self.synced, bytes):
            path.write_bytes(self.synced)
            return
        path.mkdir()
        for name, node in getattr(self, entries).items():
            node.write_to(path / name, entries)


def replay(body: str, tmp_path: Path):
    """Runs a program on an empty disk and yields the modelled disk as it is after each of its calls."""
    root, trace = tmp_path / "disk", tmp_path / "trace"
    root.mkdir()
    done = run_program(body, root / "new" / "store", "strace", "-f", "--seccomp-bpf", "-y", "-s", "1000000", "-o", str(trace),
                       "-e", f"trace={MODELLED}")
    assert done.returncode == 0, done.stderr
    disk = Node({}, {})
    for line in trace.read_text().splitlines():
        call, arguments, result = re.fullmatch(r"\d+ +(\w+)\((.*)\) += (.+)|.*", line).groups()
        assert "<unfinished" not in line
        if call is None or not re.search(rf"{root}[/>]", arguments) or result.startswith("-"):
            continue
        quoted = [ast.literal_eval(f"b{text}") for text in re.findall(r'"(?:[^"\\]|\\.)*"', arguments)]
        named = re.findall(rf"<{root}/?([^>]*)>", arguments)
        paths = [text.decode().removeprefix(f"{root}/") for text in quoted if text.startswith(f"{root}/".encode())]
        parts = [(disk.at(path.rpartition("/")[0], "seen").seen, path.rpartition("/")[2]) for path in paths]
        match call:
            case "openat" if "O_CREAT" in arguments:
                node = parts[0][0].setdefault(parts[0][1], Node(b"", b""))
                node.seen = b"" if "O_TRUNC" in arguments else node.seen
            case "openat":
                assert "O_TRUNC" not in arguments
            case "mkdir":
                parts[0][0][parts[0][1]] = Node({}, {})
            case "write":
                disk.at(named[0], "seen").seen += quoted[-1]
            case "fsync" | "fdatasync":
                node = disk.at(named[0], "seen")
                node.synced = node.seen if isinstance(node.seen, bytes) else dict(node.seen)
            case "rename":
                parts[1][0][parts[1][1]] = parts[0][0].pop(parts[0][1])
            case "link":
                parts[1][0][parts[1][1]] = parts[0][0][parts[0][1]]
            case "unlink" | "rmdir":
                del parts[0][0][parts[0][1]]
            case "unlinkat":
                del disk.at(named[0], "seen").seen[quoted[0].decode()]
            case _:
                pytest.fail(f"the model does not know {line[:200]}")
        yield disk


def left_whole(disk: Node, name: str, scratch: Path) -> bool:
    """Whether a published folder surely survives a power loss now; fails where a half one could."""
    for view, entries in itertools.product(("seen", "synced"), repeat=2):
        if node := disk.at(name, view):
            shutil.rmtree(scratch, ignore_errors=True)
            node.write_to(scratch, entries)
            assert len(read_manifest(scratch)["files"]) >= 2
    return disk.at(name, "synced") is not None


@needs_strace
@pytest.mark.parametrize(("body", "names"), [
    (f"{PUBLISH}; {PUBLISH_Y}; folders.remove('a/x'); {PUBLISH_Z}", ["a/x", "a/y", "a/z"]),
    pytest.param(PUBLISH_CHECKPOINTS, [f"a/step-{step:08d}" for step in (1, 2, 3)], marks=pytest.mark.slow)])
def test_power_lost_at_any_call_leaves_folders_whole_or_absent_and_always_one(tmp_path, body, names):
    survivors, begun = [], False
    for disk in replay(body, tmp_path):
        survivors = [name for name in names if left_whole(disk, f"new/store/{name}", tmp_path / "left")]
        assert survivors or not begun, "the older one was lost before the newer one was safe"
        begun = bool(survivors)
    assert survivors[-1] == names[-1]


@needs_strace
def test_power_lost_at_any_call_leaves_no_head_without_its_link(tmp_path):
    store, link = "new/store/c", make_link()
    for disk in replay("extend(Chain(folders, 'c'), make_link())", tmp_path):
        safe = left_whole(disk, f"{store}/links/0001-sft-0-10-{link.key[:12]}", tmp_path / "left")
        for view in ("seen", "synced"):
            if head := disk.at(f"{store}/head-0001", view):
                assert json.loads(head.synced)["verdict"] == "accepted" and safe
                assert json.loads(disk.at(f"{store}/pins.json", "synced").synced) == PINS
    assert disk.at(f"{store}/head-0001", "synced")


@needs_strace
def test_power_lost_at_any_call_leaves_a_text_as_it_was_or_as_it_shall_be(tmp_path):
    path, durable = "new/store/state.json", [None]
    for disk in replay("write_atomically(folders.root / 'state.json', 'old'); folders.write('state.json', 'new')", tmp_path):
        seen, synced = (disk.at(path, view) for view in ("seen", "synced"))
        assert seen is None or seen.synced in (b"old", b"new")
        durable.append(synced and synced.synced)
    assert [text for text, _ in itertools.groupby(durable)] == [None, b"old", b"new"]
