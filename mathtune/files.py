"""Files that are whole or not there: replaced atomically, created once, and folders sealed with a manifest of digests.

The manifest is a folder's last file: what has one is whole, and its digests say whether it still is.
"""

import errno
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mathtune.digests import digest_file, digest_value
from mathtune.errors import Damaged, StoreError
from mathtune.faults import fault_point

MANIFEST = "manifest.json"
DAMAGED = "damaged-"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_FAILS = (*DISK_FULL, errno.EROFS, errno.EIO)
MACHINE_PIDS = 0xEFFFFFFC  # the kernel's number for the process numbers of the machine itself, of no container


def host_name() -> str:
    """This machine, or this container of it: two may have one host name, but neither sees the other's processes."""
    name = socket.gethostname().replace("-", "_")
    try:
        pids = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return name
    return name if pids == MACHINE_PIDS else f"{name}.{pids}"


HOST = host_name()


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replaces the file at ``path`` in one step: a reader sees the old bytes or the new ones, never a mixture."""
    make_folder(path.parent)
    staging = path.with_name(scratch_name(f".{path.name}"))
    try:
        with open(staging, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """``write_atomically`` of a value as indented JSON."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def create_once(path: Path, data: str) -> bool:
    """Creates ``path`` whole, only if it is absent. Returns whether this call created it (compare-and-set)."""
    staging = path.with_name(scratch_name(f".{path.name}"))
    write_atomically(staging, data)
    try:
        os.link(staging, path)
        return True
    except FileExistsError:
        return path.read_text() == data  # a network file system may have made the link and lost the answer
    finally:
        staging.unlink()
        sync_folder(path.parent)


def seal(folder: Path, header: dict[str, Any]) -> None:
    """Syncs every file below ``folder`` and writes the manifest of their digests and sizes last."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            files[path.relative_to(folder).as_posix()] = {"sha256": digest_file(path), "bytes": path.stat().st_size}
        else:
            sync_folder(path)
    fault_point(f"{header['stage']}:synced")
    manifest = {**header, "files": files}
    write_json(folder / MANIFEST, {**manifest, "digest": digest_value(manifest)})


def parse_manifest(text: str, where: str) -> dict[str, Any]:
    """A manifest, held against its own digest.

    Raises:
        Damaged: it is not what was written, or names a file outside its folder.
    """
    try:
        manifest = json.loads(text)
        whole = digest_value({name: value for name, value in manifest.items() if name != "digest"}) == manifest["digest"]
    except (ValueError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise Damaged("the manifest is damaged", where=where)
    for name in manifest["files"]:
        if "\0" in name or name.startswith("/") or ".." in name.split("/"):
            raise Damaged(f"the manifest names a file outside its folder: {name!r}", where=where)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a sealed folder, after every file in it was checked against its digest.

    Raises:
        Damaged: the manifest or a file is missing or damaged; names it.
        StoreError: they cannot be read.
    """
    try:
        text = _readable(folder / MANIFEST, Path.read_bytes).decode()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise Damaged("the manifest is missing or damaged", where=str(folder / MANIFEST)) from error
    manifest = parse_manifest(text, str(folder / MANIFEST))
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise Damaged("a file named in the manifest is missing", where=str(path))
        if path.resolve() != folder.resolve() / name:
            raise Damaged("a symbolic link, not a file of this folder", where=str(path))
        if path.stat().st_size != facts["bytes"]:
            raise Damaged(f"{path.stat().st_size} bytes, the manifest says {facts['bytes']}", where=str(path))
        if _readable(path, digest_file) != facts["sha256"]:
            raise Damaged("its bytes do not match the digest in the manifest", where=str(path))
    return manifest


def _readable(path: Path, read: Callable[[Path], Any]) -> Any:
    """What ``read`` makes of a file; where the disk cannot give its bytes back, it is damaged."""
    try:
        return read(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        kind = Damaged if error.errno == errno.EIO else StoreError
        raise kind(f"it cannot be read: {error.strerror}", where=str(path)) from error


def make_folder(folder: Path) -> None:
    """Creates a folder and those above it that are missing. What is synced in a folder survives a power loss only if the
    entries on the way to it do."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes the entries of a folder (creations, renames) survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def scratch_name(prefix: str) -> str:
    """A name for unfinished work that tells, later, whether its owner still lives (``is_abandoned``)."""
    return f"{prefix}-{HOST}-{process_mark(os.getpid())}-{uuid.uuid4().hex[:8]}"


def process_mark(pid: int) -> str | None:
    """A process of this machine: its number, clock ticks at its start, and the boot, for numbers come again. None if there
    is none, if it has ended and nobody took notice (Z; in a container without an init), or no way to tell (no /proc)."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return None
    return None if state == "Z" else f"{pid}.{fields[18]}.{boot[:8]}"


def is_abandoned(name: str) -> bool:
    """Whether a ``scratch_name`` belongs to a process of this machine that is gone. Another machine's are left alone."""
    parts = name.rsplit("-", 3)
    if len(parts) < 4 or parts[1] != HOST or process_mark(os.getpid()) is None:
        return False
    pid = parts[2].partition(".")[0]
    return pid.isdigit() and process_mark(int(pid)) != parts[2]


def sweep(folder: Path) -> None:
    """Removes what processes of this machine left unfinished directly below ``folder`` when they were killed."""
    for path in folder.glob(".*"):
        if is_abandoned(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def check_space(folder: Path, expected_bytes: int) -> None:
    """Refuses to begin what the disk cannot hold.

    Raises:
        StoreError: less than ``expected_bytes`` are free.
    """
    free = shutil.disk_usage(folder).free
    if free < expected_bytes:
        raise StoreError(f"{expected_bytes / 2**20:,.1f} MiB are needed, {free / 2**20:,.1f} MiB are free",
                         where=str(folder), remedy="free some space; the same command goes on")


def damaged_name(name: str, reason: str) -> str:
    """``work/step-3`` → ``work/damaged-step-3-WHEN-WHY``: a name under which it is never used, and which says why."""
    under, _, last = name.rpartition("/")
    where, _, what = reason.splitlines()[0].partition(": ")
    why = re.sub(r"[^a-z0-9.]+", "-", f"{where.rpartition('/')[2]} {what}".lower()).strip("-")[:60].strip("-.")
    aside = f"{DAMAGED}{last}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:4]}-{why}"
    return f"{under}/{aside}" if under else aside


def is_live(name: str) -> bool:
    """Whether a folder's or file's name is one that was published, not unfinished, removed or set aside."""
    return not name.startswith((".", DAMAGED))


@contextmanager
def disk_errors(where: Path, only: tuple[int, ...] = ()) -> Iterator[None]:
    """Turns the operating system's refusal to write into an error that says where and what to do.

    Args:
        only: error numbers, where other things than this disk may raise OSError too (a download, a library).
    """
    try:
        yield
    except OSError as error:
        if only and error.errno not in only:
            raise
        full = error.errno in DISK_FULL
        raise StoreError("no space is left on the disk" if full else f"cannot write there: {error.strerror or error}",
                         where=str(where), remedy="free some space; the same command goes on" if full else
                         "check the folder's rights and the disk, or choose another storage.root") from error


def same_bytes(path: Path, data: bytes) -> bool:
    """Whether a file is there and holds exactly these bytes."""
    return path.is_file() and path.read_bytes() == data
