"""Immutable folders of files: written beside, synced, sealed with a manifest of digests, published by one rename.

Used for Parquet artifacts (under a content key) and for a chain's links. What this leaves out: object stores;
the callers only see ``ArtifactStore`` and ``Artifact``, so a second backend has its room.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mathtune.digests import digest_file, digest_value
from mathtune.errors import StoreError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """A published folder.

    Attributes:
        stage: the stage that made it, e.g. ``"balance"``.
        key: digest of all that decides its content.
        folder: where it lies.
        files: digest of each file by its name inside the folder.
        facts: small JSON-able facts that the stage reports (rows kept, classes found ...).
        cached: whether it was there already.
    """

    stage: str
    key: str
    folder: Path
    files: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    cached: bool = False

    @property
    def digest(self) -> str:
        """Digest of the content (names and bytes of the files), whatever key it lies under."""
        return digest_value(self.files)

    def path(self, name: str) -> Path:
        return self.folder / name


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replaces the file at ``path`` in one step: a reader sees the old bytes or the new ones, never a mixture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(staging, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """``write_atomically`` of a value as indented JSON."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def create_once(path: Path, data: str) -> bool:
    """Creates ``path`` whole, only if it is absent. Returns whether this call created it (compare-and-set)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    write_atomically(staging, data)
    try:
        os.link(staging, path)
        return True
    except FileExistsError:
        return False
    finally:
        staging.unlink()
        _sync_folder(path.parent)


def publish_folder(target: Path, build: Callable[[Path], dict[str, Any]], header: dict[str, Any]) -> None:
    """Lets ``build`` fill a staging folder beside ``target``, seals it, and renames it to ``target``.

    ``build`` returns the facts for the manifest. If ``build`` raises, nothing is left behind. If another process
    published the same target first, its folder stays and this one's work is dropped.
    """
    staging = target.parent / f".staging-{target.name[:16]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    staging.mkdir(parents=True)
    try:
        facts = build(staging)
        seal(staging, {**header, "facts": facts})
        try:
            os.rename(staging, target)
        except OSError:
            if not (target / MANIFEST).is_file():
                raise
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def seal(folder: Path, header: dict[str, Any]) -> None:
    """Syncs every file below ``folder`` and writes the manifest of their digests and sizes last."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _sync_file(path)
            files[path.relative_to(folder).as_posix()] = {"sha256": digest_file(path), "bytes": path.stat().st_size}
        else:
            _sync_folder(path)
    write_json(folder / MANIFEST, {**header, "files": files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder, after every file in it was checked against its digest.

    Raises:
        StoreError: the manifest or a file is missing or damaged; names it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise StoreError("the manifest is missing or damaged", where=str(folder / MANIFEST)) from error
    for name, facts in expected.items():
        path = folder / name
        if not path.is_file():
            raise StoreError("a file named in the manifest is missing", where=str(path))
        if path.stat().st_size != facts["bytes"]:
            raise StoreError(f"{path.stat().st_size} bytes, the manifest says {facts['bytes']}", where=str(path))
        if digest_file(path) != facts["sha256"]:
            raise StoreError("its bytes do not match the digest in the manifest", where=str(path))
    return manifest


def set_aside(folder: Path, reason: str) -> Path:
    """Renames a damaged folder so that it is never used again, and leaves the reason beside its files."""
    aside = folder.with_name(f"damaged-{folder.name}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:4]}")
    os.rename(folder, aside)
    (aside / "WHY.txt").write_text(reason + "\n")
    return aside


class ArtifactStore:
    """Artifacts by stage and content key below one local folder: ``ROOT/STAGE/KEY/``."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self.damaged: list[str] = []

    def find(self, stage: str, key: str) -> Artifact | None:
        """The artifact under a key, every byte checked; None if there is none. A damaged one is set aside."""
        folder = self.root / stage / key
        if not folder.is_dir():
            return None
        try:
            manifest = read_manifest(folder)
        except StoreError as error:
            aside = set_aside(folder, str(error))
            self.damaged.append(f"{error}; set aside as {aside}, made again")
            return None
        files = {name: facts["sha256"] for name, facts in manifest["files"].items()}
        return Artifact(stage, key, folder, files, manifest["facts"], cached=True)

    def get_or_build(self, stage: str, key: str, build: Callable[[Path], dict[str, Any]]) -> Artifact:
        """The artifact under a key, made by ``build(folder) -> facts`` if it is not there yet."""
        if found := self.find(stage, key):
            return found
        publish_folder(self.root / stage / key, build, {"stage": stage, "key": key})
        made = self.find(stage, key)
        if made is None:
            raise StoreError("what was just written reads back damaged", where=str(self.root / stage / key),
                             remedy="check the disk; see damaged-* beside it")
        return replace(made, cached=False)


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
