"""The artifact store: what a stage made, under the digest of all that decides it. Found there, it is not made again."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mathtune.digests import digest_value
from mathtune.errors import Damaged, StoreError
from mathtune.folders import Folders, LocalFolders


@dataclass(frozen=True)
class Artifact:
    """A published folder.

    Attributes:
        stage: the stage that made it, e.g. ``"balance"``.
        key: digest of all that decides its content.
        folder: where it lies on this machine.
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


class ArtifactStore:
    """Artifacts by stage and content key: ``STAGE/KEY/`` below one place.

    Args:
        folders: the place, or a local path.
    """

    def __init__(self, folders: Folders | Path | str):
        self.folders = LocalFolders(folders) if isinstance(folders, str | Path) else folders
        self.damaged: list[str] = []

    def find(self, stage: str, key: str) -> Artifact | None:
        """The artifact under a key, every byte checked; None if there is none. A damaged one is set aside."""
        name = f"{stage}/{key}"
        try:
            found = self.folders.fetch(name)
        except Damaged as error:
            aside = self.folders.set_aside(name, str(error))
            self.damaged.append(f"{error}; set aside as {aside}, made again")
            return None
        if found is None:
            return None
        files = {file: facts["sha256"] for file, facts in found.manifest["files"].items()}
        return Artifact(stage, key, found.folder, files, found.manifest["facts"], cached=True)

    def get_or_build(self, stage: str, key: str, build: Callable[[Path], dict[str, Any]]) -> Artifact:
        """The artifact under a key, made by ``build(folder) -> facts`` if it is not there yet."""
        if found := self.find(stage, key):
            return found
        self.folders.sweep(stage)
        self.folders.publish(f"{stage}/{key}", build, {"stage": stage, "key": key})
        made = self.find(stage, key)
        if made is None:
            raise StoreError("what was just written reads back damaged", where=f"{self.folders.url}/{stage}/{key}",
                             remedy="check the disk; see damaged-* beside it")
        return replace(made, cached=False)
