"""``Folders`` in an object store, through fsspec: S3 and what speaks its protocol.

An object store has no rename, so the manifest is the commit: a folder's files go under ``NAME/data-…/``, its manifest, which
names that place, is written last and only if there is none. What has no manifest is not there. Verified copies lie in a
local cache. Credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL …).
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from mathtune import files
from mathtune.errors import Damaged, StoreError
from mathtune.faults import fault_point
from mathtune.files import (
    DISK_FULL,
    MANIFEST,
    damaged_name,
    disk_errors,
    is_abandoned,
    is_live,
    parse_manifest,
    read_manifest,
    scratch_name,
)
from mathtune.folders import REMOVED, STAGING, Build, Published, stage

DATA = "data"


class ObjectFolders:
    """``Folders`` below one URL, for example ``s3://bucket/prefix``.

    Args:
        url: with its protocol; the store must know how to create an object only if it is absent (S3's If-None-Match).
        cache: local folder of verified copies, locks and journals.
    """

    def __init__(self, url: str, cache: Path):
        self.url, self.cache = url.rstrip("/"), Path(cache)
        with self._errors():
            self.fs, self.prefix = fsspec.core.url_to_fs(self.url, skip_instance_cache=True, use_listings_cache=False)

    def publish(self, name: str, build: Build, header: dict[str, Any]) -> None:
        staging = (self.cache / name).parent / scratch_name(STAGING)
        data = scratch_name(DATA)
        try:
            with disk_errors(staging):
                staging.mkdir(parents=True)
            stage(staging, build, {**header, "data": data})
            if self._upload(staging, name, data):
                fault_point(f"{header['stage']}:published")
                self._keep(staging, name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def fetch(self, name: str) -> Published | None:
        text = self.read(f"{name}/{MANIFEST}")
        if text is None:
            return None
        kept = self.cache / name
        try:
            if (kept / MANIFEST).read_text() == text:
                return Published(kept, read_manifest(kept))
        except (OSError, StoreError):
            pass  # no copy here, or a damaged one: the object store has the truth
        return self._download(name, text)

    def path(self, name: str) -> Path:
        return self.cache / name

    def names(self, under: str) -> list[str]:
        return [name for name in self.children(under) if self.read(f"{name}/{MANIFEST}") is not None]

    def children(self, under: str) -> list[str]:
        return [name for name in self._children(under, "directory") if is_live(name.rpartition("/")[2])]

    def remove(self, name: str) -> None:
        with self._errors():
            for path in (f"{name}/{MANIFEST}", name):  # the manifest first: without it the folder is not there
                if self.fs.exists(self._at(path)):
                    self.fs.rm(self._at(path), recursive=True)
                fault_point("remove:renamed")
        shutil.rmtree(self.cache / name, ignore_errors=True)

    def set_aside(self, name: str, reason: str) -> str:
        aside = damaged_name(name, reason)
        self.write(f"{aside}/WHY.txt", reason + "\n")
        with self._errors():
            self.fs.copy(self._at(name) + "/", self._at(aside) + "/", recursive=True)
        self.remove(name)
        return aside

    def create_once(self, name: str, text: str) -> bool:
        with self._errors():
            try:
                self.fs.pipe_file(self._at(name), text.encode(), mode="create")
            except FileExistsError:
                return self.read(name) == text  # ours, if the answer to a first attempt was lost on its way
        return True

    def read(self, name: str) -> str | None:
        with self._errors():
            try:
                return self.fs.cat_file(self._at(name)).decode()
            except FileNotFoundError:
                return None

    def write(self, name: str, text: str) -> None:
        with self._errors():
            self.fs.pipe_file(self._at(name), text.encode())

    def delete(self, name: str) -> None:
        with self._errors():
            if self.fs.exists(self._at(name)):
                self.fs.rm_file(self._at(name))

    def texts(self, under: str) -> list[str]:
        return self._children(under, "file")

    def local(self, name: str) -> Path:
        return self.cache / name

    def sweep(self, under: str) -> None:
        files.sweep(self.cache / under)
        for folder in self._children(under, "directory"):
            data = [name for name in self._children(folder, "directory") if is_abandoned(name.rpartition("/")[2])]
            if data:
                committed = json.loads(self.read(f"{folder}/{MANIFEST}") or "{}").get("data")
                for name in data:
                    if name.rpartition("/")[2] != committed:
                        with self._errors():
                            self.fs.rm(self._at(name), recursive=True)

    def _upload(self, staging: Path, name: str, data: str) -> bool:
        manifest = (staging / MANIFEST).read_text()
        with self._errors():
            for file in json.loads(manifest)["files"]:
                self.fs.put_file(str(staging / file), self._at(f"{name}/{data}/{file}"))
        fault_point("object:uploaded")
        if self.create_once(f"{name}/{MANIFEST}", manifest):
            return True
        with self._errors():
            self.fs.rm(self._at(f"{name}/{data}"), recursive=True)
        return False

    def _download(self, name: str, text: str) -> Published:
        staging = (self.cache / name).parent / scratch_name(STAGING)
        try:
            manifest = parse_manifest(text, f"{self.url}/{name}/{MANIFEST}")
            data = manifest["data"]
            with disk_errors(staging):
                staging.mkdir(parents=True)
                for file in manifest["files"]:
                    (staging / file).parent.mkdir(parents=True, exist_ok=True)
                    self._get(f"{name}/{data}/{file}", staging / file)
                (staging / MANIFEST).write_text(text)
                read_manifest(staging)
                return Published(self._keep(staging, name), manifest)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _get(self, name: str, to: Path) -> None:
        with self._errors(), disk_errors(to, only=DISK_FULL):  # drivers raise EIO themselves
            try:
                self.fs.get_file(self._at(name), str(to))
            except FileNotFoundError:
                raise Damaged("a file named in the manifest is missing", where=f"{self.url}/{name}") from None

    def _keep(self, staging: Path, name: str) -> Path:
        kept = self.cache / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        old = kept.parent / scratch_name(REMOVED)
        with suppress(FileNotFoundError):
            os.rename(kept, old)
        with suppress(OSError):  # another process of this machine put the same there
            os.rename(staging, kept)
        shutil.rmtree(old, ignore_errors=True)
        return kept

    def _children(self, under: str, kind: str) -> list[str]:
        with self._errors():
            try:
                found = self.fs.ls(self._at(under), detail=True)
            except FileNotFoundError:
                return []
        return sorted(one["name"].rstrip("/").removeprefix(f"{self.prefix}/") for one in found if one["type"] == kind)

    def _at(self, name: str) -> str:
        return f"{self.prefix}/{name}".rstrip("/")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError, StoreError):
            raise
        except ImportError as error:
            raise StoreError(str(error), where=self.url,
                             remedy="pip install 'mathtune[s3]', or a local storage.root") from error
        except Exception as error:  # fsspec's drivers raise each their own kinds
            raise StoreError(f"the object store refuses or cannot be reached: {error}", where=self.url,
                             remedy="check the credentials and AWS_ENDPOINT_URL; the same command goes on") from error
