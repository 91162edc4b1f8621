"""Published folders and small texts by name, on a local disk or in an object store, with the same promises on both.

A folder is immutable and there whole or not at all. A text is replaced whole, or created only if absent: the
compare-and-set on which the chain's head rests. Here: the interface, and its local implementation, where a folder is
written beside, synced, sealed with a manifest and published by one rename. ``mathtune.object_folders`` has the other.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mathtune import files
from mathtune.faults import fault_point
from mathtune.files import (
    DISK_FAILS,
    MANIFEST,
    damaged_name,
    disk_errors,
    is_live,
    make_folder,
    read_manifest,
    scratch_name,
    seal,
    sync_folder,
    write_atomically,
)

Build = Callable[[Path], dict[str, Any]]
STAGING, REMOVED = ".staging", ".removed"


@dataclass(frozen=True)
class Published:
    """A published folder, its bytes checked: where it lies on this machine, and its manifest."""

    folder: Path
    manifest: dict[str, Any]


class Folders(Protocol):
    """Where published folders and texts lie. Names are relative, with ``/``."""

    url: str
    cache: Path | None
    """What ``open_folders`` made this of."""

    def publish(self, name: str, build: Build, header: dict[str, Any]) -> None:
        """Lets ``build`` fill an empty local folder and publishes it with what it returns as ``facts``.

        If ``build`` raises, nothing is left behind. If somebody published the name first, theirs stays and this is dropped.

        Args:
            header: further values of the manifest; ``stage`` among them.

        Raises:
            StoreError: it cannot be written; what was there before is untouched.
        """

    def fetch(self, name: str) -> Published | None:
        """A published folder on this machine, every byte checked; None if there is none.

        Raises:
            Damaged: names the file.
            StoreError: it cannot be reached or read.
        """

    def path(self, name: str) -> Path:
        """Where ``fetch`` puts a published folder on this machine."""

    def names(self, under: str) -> list[str]:
        """Names of the folders published directly below ``under``, sorted; damaged ones that are set aside left out."""

    def children(self, under: str) -> list[str]:
        """Names of whatever folders lie directly below ``under``, published or not, sorted."""

    def remove(self, name: str) -> None:
        """Takes a folder away with all below it; a published one at once or not at all."""

    def set_aside(self, name: str, reason: str) -> str:
        """Gives a damaged folder a name under which it is never used again, and leaves the reason in it. Returns the name."""

    def create_once(self, name: str, text: str) -> bool:
        """Creates a text only if it is absent. Returns whether this call created it."""

    def read(self, name: str) -> str | None:
        """A text, None if there is none."""

    def write(self, name: str, text: str) -> None:
        """Replaces a text."""

    def delete(self, name: str) -> None:
        """Takes a text away, if it is there."""

    def texts(self, under: str) -> list[str]:
        """Names of the texts directly below ``under``, sorted."""

    def local(self, name: str) -> Path:
        """A path on this machine for what only this machine uses under that name: locks, journals."""

    def sweep(self, under: str) -> None:
        """Removes unfinished work directly below ``under`` whose process on this machine is gone."""


def open_folders(url: str, cache: Path | None = None) -> Folders:
    """The folders at a local path, or at a URL such as ``s3://bucket/prefix`` with copies in the local folder ``cache``."""
    if "://" in url:
        from mathtune.object_folders import ObjectFolders

        return ObjectFolders(url, cache)
    return LocalFolders(url)


class LocalFolders:
    """``Folders`` below one local path."""

    def __init__(self, root: Path | str):
        self.url, self.cache, self.root = str(root), None, Path(root)

    def publish(self, name: str, build: Build, header: dict[str, Any]) -> None:
        target = self.root / name
        staging = target.parent / scratch_name(STAGING)
        try:
            with disk_errors(target):
                make_folder(target.parent)
                staging.mkdir()
            stage(staging, build, header)
            with disk_errors(target):
                try:
                    os.rename(staging, target)
                except OSError:
                    if not (target / MANIFEST).is_file():
                        raise
                sync_folder(target.parent)
            fault_point(f"{header['stage']}:published")
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def fetch(self, name: str) -> Published | None:
        folder = self.root / name
        return Published(folder, read_manifest(folder)) if folder.is_dir() else None

    def path(self, name: str) -> Path:
        return self.root / name

    def names(self, under: str) -> list[str]:
        return self.children(under)

    def children(self, under: str) -> list[str]:
        return sorted(path.relative_to(self.root).as_posix() for path in (self.root / under).glob("*")
                      if path.is_dir() and is_live(path.name))

    def remove(self, name: str) -> None:
        gone = (self.root / name).parent / scratch_name(REMOVED)
        with disk_errors(self.root / name):
            try:
                os.rename(self.root / name, gone)
            except FileNotFoundError:
                return
            sync_folder(gone.parent)  # or a power loss could undo the renaming, but not the removal of what is in it
        fault_point("remove:renamed")
        shutil.rmtree(gone, ignore_errors=True)

    def set_aside(self, name: str, reason: str) -> str:
        aside = damaged_name(name, reason)
        with disk_errors(self.root / name):
            os.rename(self.root / name, self.root / aside)
            (self.root / aside / "WHY.txt").write_text(reason + "\n")
        return aside

    def create_once(self, name: str, text: str) -> bool:
        with disk_errors(self.root / name):
            return files.create_once(self.root / name, text)

    def read(self, name: str) -> str | None:
        path = self.root / name
        return path.read_text() if path.is_file() else None

    def write(self, name: str, text: str) -> None:
        with disk_errors(self.root / name):
            write_atomically(self.root / name, text)

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def texts(self, under: str) -> list[str]:
        return sorted(f"{under}/{path.name}" for path in (self.root / under).glob("*") if path.is_file() and is_live(path.name))

    def local(self, name: str) -> Path:
        return self.root / name

    def sweep(self, under: str) -> None:
        files.sweep(self.root / under)


def stage(staging: Path, build: Build, header: dict[str, Any]) -> None:
    """Fills and seals a staging folder."""
    with disk_errors(staging, only=DISK_FAILS):
        facts = build(staging)
    fault_point(f"{header['stage']}:built")
    with disk_errors(staging):
        seal(staging, {**header, "facts": facts})
    fault_point(f"{header['stage']}:sealed")
