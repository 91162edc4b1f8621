"""A program that publishes, to be run under strace, and small file systems that can be mounted, filled and made read-only."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
HEADER = {"stage": "s"}
PROGRAM = """
import sys; from pathlib import Path; from types import SimpleNamespace
from mathtune.chain import Chain; from mathtune.errors import StoreError
from mathtune.files import write_atomically; from mathtune.folders import LocalFolders; from mathtune.store import ArtifactStore
from tests.folders_fixtures import build; from tests.test_chain import extend, make_link
folders = LocalFolders(sys.argv[1])
try: {}
except StoreError as error: sys.exit(str(error))
"""
PUBLISH, PUBLISH_Y, PUBLISH_Z = (f"folders.publish('a/{name}', build, {HEADER})" for name in "xyz")


def run_program(body: str, root: Path, *under: str) -> subprocess.CompletedProcess:
    return subprocess.run([*under, sys.executable, "-c", PROGRAM.format(body), str(root)], capture_output=True, text=True,
                          cwd=Path(__file__).parents[1], timeout=120)


@contextmanager
def mounts(tmp_path: Path):
    """Makes a small file system (tmpfs or a loop-mounted ext4) and mounts it below ``tmp_path``; all are gone afterwards."""
    mounted = []

    def make(kind: str = "tmpfs", options: str = "size=8m") -> Path:
        point, image = tmp_path / f"disk{len(mounted)}", tmp_path / "image"
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "mathtune-test", str(point)]
        if kind == "ext4":
            image.write_bytes(b"")
            os.truncate(image, 8 * 2**20)
            if subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], capture_output=True).returncode:
                pytest.skip("no mkfs.ext4 here")
            command = ["mount", "-o", "loop", str(image), str(point)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        mounted.append(point)
        return point

    try:
        yield make
    finally:
        for point in mounted:
            subprocess.run(["umount", "--lazy", str(point)])


@contextmanager
def filled(disk: Path, left: int):
    """While this lasts a neighbour's file leaves so many bytes free."""
    with open(disk / "neighbour", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - left)
    try:
        yield
    finally:
        (disk / "neighbour").unlink()


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)
